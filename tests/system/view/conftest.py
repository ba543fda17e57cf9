"""A real browser, and pages in it that note what goes wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("LUME_DIFF_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000.0  # [ms]


class Window:
    """One page, what it asked for and what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)

    def open(self, url: str) -> Window:
        """Load a page; returns when frames come."""
        self.page.goto(url)
        self.page.get_by_text("● live").wait_for()
        return self

    def unlock(self, token: str) -> None:
        """Give a token at the top of the page."""
        self.page.get_by_placeholder("Token for writing").fill(token)
        self.page.get_by_role("button", name="Unlock").click()

    def knob(self, name: str) -> Any:
        """Return the field of a knob."""
        return self.page.locator(f'[data-knob="{name}"]')

    def says(self, text: Any) -> Any:
        """Wait until a text is on the page; returns where."""
        found = self.page.get_by_text(text).first
        found.wait_for()
        return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a browser with an empty profile."""
    pytest.importorskip("panel")
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing; tools/browser.sh tells how to install it")
    with playwright.sync_playwright() as running:
        made = running.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=_ARGUMENTS,
            viewport={"width": 1600, "height": 1000},
        )
        yield made
        made.close()


@pytest.fixture
def window(context: Any) -> Iterator[Callable[[str], Window]]:
    """Return what opens a page; all are closed at the end, and nothing may have gone wrong on them."""
    opened: list[Window] = []

    def open_page(url: str) -> Window:
        opened.append(Window(context.new_page()))
        return opened[-1].open(url)

    yield open_page
    for one in opened:
        one.page.close()
    assert not [text for one in opened for text in one.wrong]
