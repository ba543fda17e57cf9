"""The page in a real browser, of models that are followed in this process."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlparse

import pytest

pytest.importorskip("panel")

from lume_diff.control.readings import Condition
from lume_diff.view.live_view import LiveView
from lume_diff.view.model_source import ModelSource
from tests.unit.ioc.conftest import QUENCH, Magnet
from tests.unit.view.conftest import eventually

pytestmark = pytest.mark.system
TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def source():
    with ModelSource(Magnet(), writable=True, title="a magnet") as made:
        yield made.wait_ready(60.0)


@pytest.fixture(scope="module")
def view(source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lume_diff.view.live_view._UNUSED", 2000)  # [ms] so that nobody waits for closed pages
        with LiveView(source, token=TOKEN) as made:
            yield made


@pytest.fixture(autouse=True)
def at_rest(source):
    """Begin each test at the same set-points."""
    outcome = []
    source.restore({"current": 0.0, "gap": 0.1, "polarity": "normal"}, "test", outcome.append)
    assert eventually(lambda: bool(outcome))


def test_the_page_asks_no_foreign_host(view, window):
    found = window(view.url)
    found.says("Knobs")
    found.page.get_by_role("button", name="Save").wait_for()  # of the last panel that comes
    hosts = {urlparse(url.removeprefix("blob:")).netloc for url in found.asked}
    assert hosts <= {urlparse(view.url).netloc, ""}
    assert "'self'" in found.page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")


def test_another_page_cannot_talk_to_the_server(view):
    place = urlparse(view.url)
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {place.netloc}",
        "Origin: http://elsewhere.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection((place.hostname, place.port), 20.0) as line:
        line.sendall("\r\n".join([*lines, "", ""]).encode())
        assert line.recv(100).split(b"\r\n")[0].split()[1] == b"403"


def test_writing_takes_the_token_and_the_keyboard_is_enough(view, window, source):
    found = window(view.url)
    knob = found.knob("current")
    assert knob.is_disabled()
    found.unlock("wrong token, wrong token")
    found.says("wrong token: still read-only")
    assert knob.is_disabled()
    found.unlock(TOKEN)
    found.says("writing is unlocked")
    knob.click(trial=True)  # as soon as it is enabled
    found.page.get_by_label("Filter knobs by name").focus()
    found.page.keyboard.press("Tab")
    if not knob.evaluate("element => element.getRootNode().activeElement === element"):
        found.page.keyboard.press("Tab")  # a browser may stop at what scrolls
    found.page.keyboard.type("2.53")
    found.page.keyboard.press("Enter")
    assert eventually(lambda: source.latest().value("field") == pytest.approx(5.06))
    found.page.keyboard.press("ArrowUp")  # a two-hundredth of the limits
    assert eventually(lambda: source.latest().value("current") == pytest.approx(2.63))
    knob.fill("99")
    knob.press("Enter")
    found.says(re.compile("current was not written: .*99"))
    assert source.latest().value("current") == pytest.approx(2.63)


def test_an_alarm_shows_with_the_time_since_it_was_good(view, window, source):
    found = window(view.url)
    outcome = []
    source.write({"current": 4.5}, "test", outcome.append)
    found.says("field — ◆ MAJOR: 9 is above 8")
    source.write({"current": QUENCH}, "test", outcome.append)
    found.says(re.compile(r"field, force, map — ✖ INVALID: .*quench.*; last good \d+ s ago"))
    first = source.latest()
    assert first.readings["field"].condition is Condition.FAILED
    found.says(re.compile(r"last good [2-9] s ago"))  # it goes on while nothing comes
    assert source.latest().cycle == first.cycle


def test_a_snapshot_restores(view, window, source):
    found = window(view.url)
    found.unlock(TOKEN)
    found.says("writing is unlocked")
    found.page.get_by_placeholder("such as: before the scan").fill("at rest")
    found.page.get_by_placeholder("such as: before the scan").press("Tab")
    found.page.get_by_role("button", name="Save").click()
    found.says("All 3 set-points are as in this snapshot.")
    source.write({"current": 3.0}, "test", lambda error: None)
    found.says("1 of 3 set-points differ:")
    found.page.get_by_role("button", name="Restore").click()
    found.says("restored")
    assert source.latest().value("current") == 0.0


def test_closed_pages_free_everything(view, window):
    opened = [window(view.url) for _ in range(3)]
    assert view.pages >= 3
    for one in opened:
        one.page.goto("about:blank")
    assert eventually(lambda: view.pages == 0, 40.0)
    assert view._fan_out.viewers == 0


def test_a_page_without_its_server_says_so(source, window):
    with LiveView(source) as view:
        found = window(view.url)
        found.says("● live")
    found.says("Nothing has come from the server since")
    assert "lost" in found.page.locator("body").get_attribute("class")
    found.wrong.clear()  # a browser complains that nobody answers
