"""How good the gradients of a model are, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many or one + 's'}"


@dataclass(frozen=True)
class GradientEntry:
    """One derivative: where it comes from, how far off it may be, and what it took.

    Attributes:
        output, input: names of the variables.
        kind: ``"exact"`` (autograd), ``"estimated"`` (differences) or ``"native"`` (the code's own).
        derivative: value in output unit per input unit.
        step: step of the difference, in the input's unit.
        noise: noise level of the output, in its unit.
        error: estimated error of the derivative.
        runs: simulator runs it took.
    """

    output: str
    input: str
    kind: str = "exact"
    derivative: float | None = None
    step: float | None = None
    noise: float | None = None
    error: float | None = None
    runs: int = 0


@dataclass(frozen=True)
class JacobianCost:
    """How the last Jacobian was computed.

    Attributes:
        mode: ``"forward"`` or ``"reverse"``.
        passes: jvp or backward passes it took.
        runs: simulator runs it took.
        other_mode: the mode that was not taken.
        other_passes: the passes that mode would have taken.
        reason: why this mode.
    """

    mode: str
    passes: int
    runs: int
    other_mode: str
    other_passes: int
    reason: str

    def __str__(self) -> str:
        return (
            f"Jacobian in {self.mode} mode: {counted(self.passes, 'pass', 'passes')}, {counted(self.runs, 'run')} "
            f"({self.other_mode} mode would take {counted(self.other_passes, 'pass', 'passes')}); {self.reason}"
        )


@dataclass
class GradientReport:
    """Derivatives known so far with their errors, and the cost of the last Jacobian."""

    entries: list[GradientEntry] = field(default_factory=list)
    jacobian: JacobianCost | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = list(self.notes)
        if self.entries:
            header = ("output", "input", "kind", "derivative", "step", "noise", "error", "runs")
            rows = [header, *(self._row(entry) for entry in self.entries)]
            widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        else:
            lines.append("gradients are exact (autograd)" + (", but for the notes above" if self.notes else ""))
        if self.jacobian is not None:
            lines.append(str(self.jacobian))
        return "\n".join(lines)

    @staticmethod
    def _row(entry: GradientEntry) -> tuple[str, ...]:
        numbers = (entry.derivative, entry.step, entry.noise, entry.error)
        cells = ("-" if number is None else f"{number:.6g}" for number in numbers)
        return entry.output, entry.input, entry.kind, *cells, str(entry.runs)
