"""AlarmBanner: what is not well, how bad, why, and since when."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from lume_diff.control.readings import Severity
from lume_diff.view.alarms import COLOURS, SIGNS, Alarm, alarm_of, measured_alarm_of
from lume_diff.view.frame import Frame
from lume_diff.view.panels.panel import Panel

if TYPE_CHECKING:
    from panel.viewable import Viewable

_MOST = 6  # lines
_NAMED = 3  # names in a line

_STYLE = """
<style>
  .banner { font: 16px/1.4 system-ui, sans-serif; border-radius: 6px; padding: 8px 14px; }
  .banner strong { font-size: 18px; }
  .banner ul { margin: 6px 0 0; padding: 0; list-style: none; }
  .banner li { margin: 2px 0; overflow-wrap: anywhere; }
</style>
"""


@final
class AlarmBanner(Panel):
    """Say how many values hold, and of those that do not, the reason and the time since they were good."""

    title = "Alarms"
    place = 0
    wide = True

    def build(self) -> Viewable:
        """Make the banner."""
        import panel as pn

        self._pane = pn.pane.HTML("", sizing_mode="stretch_width", margin=0)
        return self._pane

    @property
    def names(self) -> Sequence[str]:
        """All variables."""
        return list(self.source.variables)

    def prepare(self, frame: Frame) -> None:
        """Put it in words."""
        self._text(frame)

    def _text(self, frame: Frame) -> str:
        now = time.time()
        return frame.once("banner", lambda: banner(frame, self.names, now), int(now))

    def update(self, frame: Frame) -> None:
        """Say how things are."""
        text = self._text(frame)
        if self._pane.object != text:
            self._pane.object = text


def banner(frame: Frame, names: Sequence[str], now: float) -> str:
    """Return HTML that says how the variables of a frame are.

    Args:
        frame: the newest.
        names: of the variables.
        now: [s since 1970].
    """
    alarms = [alarm_of(frame, name, now) for name in names]
    alarms += _measured([one for one in alarms if one.name in frame.measured], frame, now)
    counts = {severity: sum(one.severity is severity for one in alarms) for severity in reversed(Severity)}
    worst = next((severity for severity, count in counts.items() if count), Severity.INVALID)
    words = {Severity.NO_ALARM: "good"}
    summary = ", ".join(
        f"{SIGNS[severity]} {count} {words.get(severity, severity.name)}" for severity, count in counts.items() if count
    )
    stamp = time.strftime("%H:%M:%S", time.localtime(frame.time)) if frame.time else "never"
    lines = _lines([one for one in alarms if one.severity is not Severity.NO_ALARM])
    fill, ink = COLOURS[worst]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return (
        f'{_STYLE}<div class="banner" style="background:{fill};color:{ink}" data-severity="{worst.name}">'
        f'<strong role="status" aria-live="polite">{html.escape(summary or "nothing is shown")}</strong>'
        f" &nbsp; cycle {frame.cycle}, newest value of {stamp}" + (f"<ul>{items}</ul>" if items else "") + "</div>"
    )


def _measured(alarms: Sequence[Alarm], frame: Frame, now: float) -> list[Alarm]:
    """Return what is the matter with instruments, where it is worse than what the model says of the same variable."""
    both = [(one, measured_alarm_of(frame, one.name, now)) for one in alarms]
    worse = [found for one, found in both if found is not None and found.severity > one.severity]
    return [replace(one, name=f"measured {one.name}") for one in worse]


def _lines(alarms: Sequence[Alarm]) -> list[str]:
    """Return a line for every reason, the worst and newest first."""
    groups: dict[tuple[Severity, str, bool], list[Alarm]] = {}
    for alarm in alarms:
        groups.setdefault((alarm.severity, alarm.message, alarm.age is None), []).append(alarm)
    ordered = sorted(groups.values(), key=lambda group: (-group[0].severity, _youngest(group)))
    lines = [_line(group) for group in ordered[:_MOST]]
    left = sum(len(group) for group in ordered[_MOST:])
    return [*lines, f"and {left} more"] if left else lines


def _line(group: Sequence[Alarm]) -> str:
    names = ", ".join(alarm.name for alarm in group[:_NAMED])
    if len(group) > _NAMED:
        names += f" and {len(group) - _NAMED} more"
    oldest = max(group, key=lambda alarm: float("inf") if alarm.age is None else alarm.age)
    return f"{names} — {oldest.text}"


def _youngest(group: Sequence[Alarm]) -> float:
    return min(float("inf") if alarm.age is None else alarm.age for alarm in group)
