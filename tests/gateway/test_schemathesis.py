"""schemathesis: whatever the OpenAPI document allows, and much that it does not, is answered as the document says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import requests

from tests.gateway.process import Gateway

# A text may be what the schema says and still be one that no model speaks, and voices are not in the schema.
UNFOUNDED = "positive_data_acceptance"
EXAMPLES = "2"


def test_no_request_is_answered_otherwise_than_described(gateway: Gateway, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    flags = ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--workers", "2", "--seed", "1"]
    flags += ["--checks", "all", "--exclude-checks", UNFOUNDED, "--continue-on-failure", "--no-color"]
    done = subprocess.run(
        [program, "run", f"{gateway.url}/openapi.json", *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert requests.get(f"{gateway.url}/readiness").status_code == 200
    assert not [line for line in gateway.lines if line["event"] == "request failed"]
