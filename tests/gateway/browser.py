"""Headless Chromium, for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

PATIENCE_S = 30.0
_FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --no-proxy-server --mute-audio
    --use-fake-device-for-media-stream --use-fake-ui-for-media-stream
"""


def open_browser(profile: Path) -> Chrome:
    """A browser with a fresh profile that records beeps when it is to record."""
    options = ChromeOptions()
    for flag in _FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1000,1300")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options, Service(shutil.which("chromedriver")))
