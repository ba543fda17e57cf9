"""Parts of the page that run in the browser."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def link_class() -> Any:
    """Return the component that acknowledges frames, and tells the reader when none comes any more."""
    import param
    from panel.custom import JSComponent

    class Link(JSComponent):
        """See the script for what it does."""

        sent = param.Integer(0)  #: number of the frame that was sent last
        seen = param.Integer(0)  #: number of the frame that has come last
        patience = param.Number(4.0)  #: [s] without a frame
        comes_back = param.Boolean(True)  #: whether the page loads itself again when its server is back

        _esm = Path(__file__).with_name("link.js")

    return Link
