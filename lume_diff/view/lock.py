"""The field at the top of the page where the token is given that unlocks writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lume_diff.view.session_source import SessionSource

if TYPE_CHECKING:
    from panel.viewable import Viewable

_STYLE = {"font": "16px system-ui, sans-serif", "color": "#ffffff", "background": "#102a43", "padding": "0 6px"}


def lock(source: SessionSource, needs_token: bool) -> Viewable:
    """Return the field, or the words that say why there is none.

    Args:
        source: of this page.
        needs_token: whether writing is possible with a token.
    """
    import panel as pn

    said = pn.pane.HTML(_words(source), styles=_STYLE, margin=(4, 12))
    if not needs_token:
        return said
    field = pn.widgets.PasswordInput(placeholder="Token for writing", width=220, margin=0)
    unlock = pn.widgets.Button(label="Unlock", width=90, margin=0)
    relock = pn.widgets.Button(label="Lock", width=90, margin=0, visible=False)

    def show(words: str) -> None:
        said.object = words
        field.value = field.value_input = ""
        field.visible = unlock.visible = not source.writable
        relock.visible = source.writable

    def try_token(event: Any) -> None:
        typed = field.value_input or field.value
        if typed and not source.writable:  # leaving the field comes before the click, and both are told
            show(_words(source) if source.unlock(typed) else _said("✖ wrong token: still read-only"))

    def lock_again(event: Any) -> None:
        source.lock()
        show(_words(source))

    unlock.on_click(try_token)
    field.param.watch(try_token, "value")
    relock.on_click(lock_again)
    return pn.Row(said, field, unlock, relock, align="center")


def _words(source: SessionSource) -> str:
    return _said("▶ writing is unlocked" if source.writable else "■ read-only")


def _said(text: str) -> str:
    return f'<span role="status" aria-live="polite">{text}</span>'
