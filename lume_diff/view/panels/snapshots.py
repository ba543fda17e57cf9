"""Snapshots: keep set-points, compare them with the present ones, and write them back."""

from __future__ import annotations

import html
import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from lume_diff.errors import LumeDiffError
from lume_diff.models import LUMEModel
from lume_diff.view.frame import Frame
from lume_diff.view.panels.figures import INK, TEXT_SIZE
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import readable
from lume_diff.view.shelf import Shelf
from lume_diff.view.source import Source
from lume_diff.view.turns import Turns

if TYPE_CHECKING:
    from panel.viewable import Viewable

_STYLE = f"""
<style>
  table.compared {{ border-collapse: collapse; font: {TEXT_SIZE}/1.3 system-ui, sans-serif; color: {INK};
    width: 100%; }}
  table.compared th, table.compared td {{ padding: 2px 8px; border-bottom: 1px solid #d9d9d9; text-align: right; }}
  table.compared th:first-child {{ text-align: left; }}
  div.said {{ font: {TEXT_SIZE} system-ui, sans-serif; color: {INK}; }}
</style>
"""


@final
class Snapshots(Panel):
    """Save set-points, compare a snapshot with what holds now, restore it, and get it as a YAML file.

    All viewers of a page see the same snapshots; they last as long as its server, and as a file for longer.

    Args:
        source: what to take snapshots of, or a model.
        writable: of a model: whether snapshots can be restored.
    """

    title = "Snapshots"
    place = 52

    def __init__(self, source: Source | LUMEModel, writable: bool = False) -> None:
        super().__init__(source, writable)
        self._shelf: Shelf = self.source.shelf

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there are inputs."""
        return bool(source.inputs)

    @property
    def names(self) -> Sequence[str]:
        """The inputs."""
        return self.source.inputs

    def build(self) -> Viewable:
        """Make the fields, the buttons and the comparison."""
        import panel as pn

        self._label = pn.widgets.TextInput(label="Name of a new snapshot", placeholder="such as: before the scan")
        self._save = pn.widgets.Button(label="Save", color="primary", align="end")
        self._choice = pn.widgets.Select(label="Snapshot", options=[], sizing_mode="stretch_width")
        self._restore = pn.widgets.Button(label="Restore", color="warning", align="end", disabled=True)
        self._file = pn.widgets.FileDownload(
            callback=self._as_file, filename="snapshot.yaml", label="Download YAML", align="end", disabled=True
        )
        self._compared = pn.pane.HTML(_STYLE, sizing_mode="stretch_width", max_height=260, styles={"overflow": "auto"})
        self._said = pn.pane.HTML("", sizing_mode="stretch_width")
        self._save.on_click(self._on_save)
        self._restore.on_click(self._on_restore)
        self._choice.param.watch(lambda event: self.update(self.source.latest()), "value")
        return pn.Column(
            pn.Row(self._label, self._save),
            pn.Row(self._choice, self._restore, self._file, sizing_mode="stretch_width"),
            self._said,
            self._compared,
            sizing_mode="stretch_width",
        )

    def update(self, frame: Frame) -> None:
        """Compare the chosen snapshot with the frame."""
        labels = self._shelf.labels
        if self._choice.options != labels:
            self._choice.options = labels
        kept = self._shelf.get(self._choice.value)
        self._restore.disabled = kept is None or not self.source.writable
        self._file.disabled = kept is None
        text = _STYLE if kept is None else _STYLE + compared(kept, self.source.setpoints(frame), self._units())
        if self._compared.object != text:
            self._compared.object = text

    def _units(self) -> dict[str, str]:
        return {name: readable(one.unit) if one.unit else "" for name, one in self.source.variables.items()}

    def _on_save(self, event: Any) -> None:
        label = self._shelf.add(self._label.value or "", self.source.snapshot(), time.time())
        self._label.value = ""
        self.update(self.source.latest())
        self._choice.value = label
        self._say(f"saved {label}")

    def _on_restore(self, event: Any) -> None:
        import panel as pn

        label = self._choice.value
        turns = None if pn.state.curdoc is None else Turns(pn.state.curdoc)
        kept = self._shelf.get(label)

        def told(error: Exception | None) -> None:
            text = f"restored {label}" if error is None else f"✖ {label} was not restored: {error}"
            if turns is None:
                self._say(text)
            else:
                turns.ask(lambda: self._say(text))

        if kept is None:
            return
        self._say(f"restoring {label} …")
        try:
            self.source.restore(kept, "view", told)
        except LumeDiffError as error:
            told(error)

    def _say(self, text: str) -> None:
        self._said.object = f'<div role="status" style="font-size:{TEXT_SIZE}">{html.escape(text)}</div>'

    def _as_file(self) -> io.StringIO:
        import yaml

        return io.StringIO(yaml.safe_dump(dict(self._shelf.get(self._choice.value) or {}), sort_keys=False))


def compared(kept: Mapping[str, Any], now: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """Return a table, in HTML, of what differs between a snapshot and the present.

    Args:
        kept: set-points of the snapshot by name.
        now: those of the present.
        units: by name.
    """
    rows = [
        (name, _text(saved), _text(now.get(name)), _difference(saved, now.get(name)), units.get(name, ""))
        for name, saved in kept.items()
        if not _equal(saved, now.get(name))
    ]
    if not rows:
        return f'<div class="said">All {len(kept)} set-points are as in this snapshot.</div>'
    head = "".join(f'<th scope="col">{word}</th>' for word in ("Set-point", "Saved", "Now", "Now - saved", "Unit"))
    body = "".join(
        "<tr>"
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(x)}</td>" for x in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="said">{len(rows)} of {len(kept)} set-points differ:</div>'
        f'<table class="compared"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def _equal(saved: Any, now: Any) -> bool:
    now = now.tolist() if hasattr(now, "tolist") else now
    if isinstance(saved, float) and isinstance(now, int | float):
        return math.isclose(saved, now, rel_tol=1e-12, abs_tol=0.0)
    return bool(saved == now)


def _difference(saved: Any, now: Any) -> str:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (saved, now))
    return f"{now - saved:+.6g}" if numbers else ""


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, int | str) else "array"
