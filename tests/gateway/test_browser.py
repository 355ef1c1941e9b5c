"""The page at / as people use it, in headless Chromium."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from lighttts.gateway.keys import new_key, write_keys
from lighttts.transport.wire import Cancel, Synth
from tests.client.fake_broker import FakeBroker, begin_only, refuse
from tests.gateway.browser import PATIENCE_S, open_browser
from tests.gateway.process import Gateway
from tests.system.stack import Stack

TEXT = "The quick brown fox jumps over the lazy dog. It was not amused."
LONG = " ".join([TEXT] * 4)
PAINTED = """
const canvas = document.getElementById("wave");
if (!canvas.width) return 0;
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return data.filter((value, i) => i % 4 === 3 && value).length;
"""


class Page:
    """The page as it is shown."""

    def __init__(self, chrome: Chrome, url: str) -> None:
        self.chrome = chrome
        chrome.get(url)

    def at(self, name: str) -> WebElement:
        return self.chrome.find_element("id", name)

    def write(self, name: str, text: str) -> None:
        self.at(name).clear()
        self.at(name).send_keys(text)

    def choose_own_voice(self) -> None:
        self.chrome.find_element("css selector", "label:has(#kind-own)").click()

    def record(self) -> None:
        """Two seconds of what the microphone hears."""
        self.at("record").click()
        self.wait_for("recorded", "recording, 2 s")
        self.at("record").click()
        self.wait_for("recorded", r"\d\.\d s recorded.*")

    def wait_for(self, name: str, pattern: str) -> None:
        """Returns when element `name` shows it."""
        seen = ""

        def shows(_: Chrome) -> bool:
            nonlocal seen
            seen = self.at(name).text
            return bool(re.fullmatch(pattern, seen))

        try:
            WebDriverWait(self.chrome, PATIENCE_S, 0.05).until(shows)
        except TimeoutException:
            raise AssertionError(f"{name} shows {seen!r}, the state is {self.at('state').text!r}") from None

    def painted(self) -> int:
        """Pixels of the waveform."""
        return int(self.chrome.execute_script(PAINTED))


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = open_browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def page(chrome: Chrome, gateway: Gateway) -> Page:
    return Page(chrome, gateway.url)


def test_a_text_is_heard_and_its_figures_and_waveform_are_shown(page: Page) -> None:
    page.wait_for("voice", "tiny-voice")
    page.chrome.get_log("browser")  # of the tests before
    assert page.painted() == 0
    page.write("text", TEXT)
    page.at("speak").click()
    page.wait_for("first", r"\d+\.\d\d s")
    page.wait_for("total", r"\d+\.\d\d s")
    assert float(page.at("length").text.split()[0]) > 0
    assert page.painted() > 100
    # What the policy forbids, and errors of the script, would be among them.
    assert [line for line in page.chrome.get_log("browser") if line["level"] == "SEVERE"] == []


def test_what_is_recorded_is_the_voice(page: Page) -> None:
    page.choose_own_voice()
    page.record()
    page.write("text", LONG)
    page.at("speak").click()
    page.wait_for("first", r"\d+\.\d\d s")
    # How long the tiny model goes on with this voice is a matter of chance.
    page.at("stop").click()
    page.wait_for("state", "stopped")
    assert float(page.at("length").text.split()[0]) > 0


def test_the_recording_and_its_text_reach_the_broker(chrome: Chrome) -> None:
    with FakeBroker() as broker, Gateway(broker.endpoint) as gateway:
        page = Page(chrome, gateway.url)
        page.choose_own_voice()
        page.record()
        page.write("said", "beep beep")
        page.at("speak").click()
        asked = broker.wait_for(Synth)
        page.write("instruct", "In a whisper.")
        page.wait_for("state", "done")
        page.at("speak").click()
        again = broker.wait_for(Synth, 2)
        page.wait_for("state", "done")
    with wave.open(io.BytesIO(asked.prompt)) as recording:
        assert (recording.getnchannels(), recording.getframerate()) == (1, 24000)
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
    assert len(samples) > 12000
    assert np.abs(samples.astype(int)).max() > 1000
    assert asked.prompt_text == "beep beep"
    assert (again.prompt, again.prompt_text, again.instruct) == (asked.prompt, "", "In a whisper.")


def test_a_file_can_be_the_voice(chrome: Chrome, prompt_wav: bytes, tmp_path: Path) -> None:
    (tmp_path / "me.wav").write_bytes(prompt_wav)
    (tmp_path / "me.txt").write_text("no recording")
    with FakeBroker() as broker, Gateway(broker.endpoint) as gateway:
        page = Page(chrome, gateway.url)
        page.choose_own_voice()
        page.at("file").send_keys(str(tmp_path / "me.txt"))
        page.wait_for("state", "This is no recording that can be read.")
        page.at("file").send_keys(str(tmp_path / "me.wav"))
        page.wait_for("recorded", r"\d\.\d s recorded.*")
        page.write("said", "")
        page.at("speak").click()
        page.wait_for("state", "done")
        assert broker.wait_for(Synth).prompt.startswith(b"RIFF")


def test_stopping_cancels_what_is_being_spoken(chrome: Chrome) -> None:
    with FakeBroker(script={Synth: begin_only}) as broker, Gateway(broker.endpoint) as gateway:
        page = Page(chrome, gateway.url)
        page.at("text").send_keys(Keys.CONTROL, Keys.ENTER)
        page.wait_for("state", "speaking")
        page.at("text").send_keys(Keys.ESCAPE)
        page.wait_for("state", "stopped")
        broker.wait_for(Cancel)
        assert page.at("speak").is_enabled()


def test_what_goes_wrong_is_shown(chrome: Chrome) -> None:
    with (
        FakeBroker(script={Synth: refuse("overloaded", "come back later", retryable=True)}) as broker,
        Gateway(broker.endpoint) as gateway,
    ):
        page = Page(chrome, gateway.url)
        page.wait_for("voice", r"heart\s+june")
        page.at("speak").click()
        page.wait_for("state", "come back later")
        assert "wrong" in page.at("state").get_attribute("class").split()
        page.choose_own_voice()
        page.at("speak").click()
        page.wait_for("state", "There is no recording yet.*")


def test_a_key_is_asked_for_where_one_is_needed(chrome: Chrome, stack: Stack, page: Page, tmp_path: Path) -> None:
    page.wait_for("voice", "tiny-voice")
    assert not page.at("key").is_displayed()
    key, secret = new_key("alice", 4, 600)
    write_keys(tmp_path / "api-keys", [key])
    with Gateway(stack.endpoint, f"gateway.keys={tmp_path}/api-keys") as gateway:
        guarded = Page(chrome, gateway.url)
        guarded.wait_for("state", "no valid API key.*")
        assert guarded.chrome.switch_to.active_element == guarded.at("key")
        guarded.at("key").send_keys(secret, Keys.TAB)
        guarded.wait_for("voice", "tiny-voice")
        guarded.at("speak").click()
        guarded.wait_for("total", r"\d+\.\d\d s")


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page: Page) -> None:
    page.wait_for("voice", "tiny-voice")
    page.choose_own_voice()
    controls = page.chrome.find_elements("css selector", "input, select, textarea, button, canvas")
    unnamed = [control.get_attribute("id") for control in controls if control.is_displayed() and not name_of(control)]
    assert unnamed == []
    page.at("text").click()
    reached = set()
    for _ in range(12):
        page.chrome.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.chrome.switch_to.active_element.get_attribute("id"))
    assert reached >= {"kind-own", "said", "record", "choose", "speed", "instruct", "speak"}


def name_of(control: WebElement) -> str:
    return str(control.accessible_name).strip()


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_narrow_and_wide_windows(page: Page, width: int) -> None:
    device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    try:
        assert page.chrome.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colours_that_the_user_prefers(page: Page, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    ground = page.chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    bright = [int(part) > 128 for part in re.findall(r"\d+", ground)[:3]]
    assert bright == [scheme == "light"] * 3


def test_the_api_is_described_without_resources_from_elsewhere(page: Page) -> None:
    page.chrome.get_log("browser")  # of the tests before
    page.chrome.find_element("link text", "API").click()
    WebDriverWait(page.chrome, PATIENCE_S).until(lambda chrome: chrome.find_elements("css selector", "details"))
    described = {summary.text for summary in page.chrome.find_elements("css selector", "summary")}
    assert any("/v1/audio/speech" in text for text in described)
    page.chrome.find_element("xpath", "//summary[contains(., '/v1/audio/speech')]").click()
    assert "stream_format" in page.chrome.find_element("css selector", "details[open]").text
    assert [line for line in page.chrome.get_log("browser") if line["level"] == "SEVERE"] == []
