"""Parts of the page that run in the browser."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar


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
        _priority_changes: ClassVar[list[str]] = ["seen"]  # Panel holds back others for 50 ms

    return Link


@cache
def template_class() -> Any:
    """Return the template of the page, which a browser gets twice as soon as from Panel's own."""
    import panel as pn

    class QuickTemplate(pn.Template):
        """Look for the models of a page once, and not again after each of its parts is added."""

        def _init_doc(self, doc: Any = None, *args: Any, **options: Any) -> Any:
            found = doc if doc is not None else pn.state.curdoc
            if found is None:
                return super()._init_doc(doc, *args, **options)
            with found.models.freeze():
                return super()._init_doc(found, *args, **options)

        def __repr__(self) -> str:
            return type(self).__name__  # Panel's own lists all parts, whenever one is added

    return QuickTemplate
