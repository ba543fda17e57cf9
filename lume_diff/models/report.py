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
class ModeCost:
    """What a Jacobian takes in one mode.

    Attributes:
        mode: ``"reverse"``, ``"forward"`` or ``"collective"``.
        passes: backward or jvp passes.
        runs: simulator runs at a point not met before, once noise and curvature are known; None where the mode does
            not work. Runs of differentiable models do not count.
        flaw: why the result would be wrong; empty if it would not.
    """

    mode: str
    passes: int
    runs: int | None
    flaw: str = ""

    def __str__(self) -> str:
        if self.runs is None:
            return f"{self.mode} mode does not work"
        runs = f" and {counted(self.runs, 'run')}" if self.runs else ""
        return f"{self.mode} mode {counted(self.passes, 'pass', 'passes')}{runs}{', and be wrong' if self.flaw else ''}"


@dataclass(frozen=True)
class JacobianCost:
    """How the last Jacobian was computed, and what else it could have taken.

    Attributes:
        mode: ``"reverse"``, ``"forward"`` or ``"collective"``.
        passes: jvp or backward passes it took.
        runs: simulator runs it took; none at a point where the derivatives are known already, or in the archive.
        learning_runs: further runs that are made once, for noise, curvature and checks.
        predicted: what was foretold for this mode.
        alternatives: the same for the other modes.
        reason: why this mode.
    """

    mode: str
    passes: int
    runs: int
    learning_runs: int
    predicted: ModeCost
    alternatives: tuple[ModeCost, ...]
    reason: str

    def __str__(self) -> str:
        parts = [counted(self.passes, "pass", "passes")]
        if self.runs or self.predicted.runs:
            known = self.predicted.runs is not None and self.runs < self.predicted.runs
            parts.append(
                counted(self.runs, "simulator run") + (f" ({self.predicted.runs} at a new point)" if known else "")
            )
        if self.learning_runs:
            parts.append(f"{counted(self.learning_runs, 'run')} once for noise and checks")
        possible = [str(other) for other in self.alternatives if other.runs is not None]
        other = f" (would take: {', '.join(possible)})" if possible else ""
        return f"Jacobian in {self.mode} mode: {', '.join(parts)}{other}; {self.reason}"


@dataclass
class GradientReport:
    """Derivatives known so far with their errors, and the cost of the last Jacobian.

    Attributes:
        entries: of derivatives of black boxes; empty where autograd gives them all.
        jacobian: what the last one took; None before the first.
        notes: what else there is to know of the gradients, in words.
    """

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
