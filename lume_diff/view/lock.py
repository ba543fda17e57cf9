"""The field at the top of the page where the token is given that unlocks writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lume_diff.view.session_source import SessionSource

if TYPE_CHECKING:
    from panel.viewable import Viewable

_STYLE = {"font": "16px system-ui, sans-serif", "color": "#ffffff"}


def lock(source: SessionSource, needs_token: bool) -> Viewable:
    """Return the field, or the words that say why there is none.

    Args:
        source: of this page.
        needs_token: whether writing is possible with a token.
    """
    import panel as pn

    said = pn.pane.HTML(_words(source), styles=_STYLE, margin=(4, 0))
    if not needs_token:
        return said
    field = pn.widgets.PasswordInput(placeholder="Token for writing", width=220, margin=0)
    button = pn.widgets.Button(label="Unlock", width=90, margin=0)

    def turn(event: Any) -> None:
        if source.writable:
            source.lock()
            said.object = _words(source)
        elif typed := field.value_input or field.value:
            is_right = source.unlock(typed)
            said.object = _words(source) if is_right else _said("✖ wrong token: still read-only")
        field.value = field.value_input = ""
        field.visible = not source.writable
        button.label = "Lock" if source.writable else "Unlock"

    button.on_click(turn)
    field.param.watch(lambda event: turn(event) if event.new else None, "value")
    return pn.Row(said, field, button, align="center")


def _words(source: SessionSource) -> str:
    return _said("▶ writing is unlocked" if source.writable else "■ read-only")


def _said(text: str) -> str:
    return f'<span role="status" aria-live="polite">{text}</span>'
