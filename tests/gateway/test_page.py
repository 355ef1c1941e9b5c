"""The pages at / and /docs."""

from __future__ import annotations

import re

import pytest
import requests

from tests.gateway.process import Gateway


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_from_elsewhere(gateway: Gateway, path: str) -> None:
    response = requests.get(f"{gateway.url}{path}")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|//[a-z]", re.sub(r"(?m)^\s*//.*$", "", response.text))


def test_what_the_page_asks_for_exists(gateway: Gateway) -> None:
    asked = re.findall(r'fetch\("([^"]+)"', requests.get(f"{gateway.url}/").text)
    known = requests.get(f"{gateway.url}/openapi.json").json()["paths"]
    assert asked
    assert all(f"/{path}" in known for path in asked)
