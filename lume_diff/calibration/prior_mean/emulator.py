"""A mean's stand-in for a slow model: a local differentiable emulator that makes a bounded number of runs."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from lume_diff.calibration.prior_mean.checks import raise_all
from lume_diff.calibration.prior_mean.surface import Surface
from lume_diff.calibration.prior_mean.warps import Itself, Warp
from lume_diff.errors import SimulatorError, ValidationError

logger = logging.getLogger(__name__)

#: How many of the points asked last a refinement chooses from: the ends of all of an optimiser's searches.
_REMEMBERED = 128
#: More points at once without a gradient are an optimiser's first look around: not where it goes.
_LOOK_AROUND = 64
#: Fewer runs make no surface.
_FEWEST = 3

#: From inputs ``(n, n_in)`` to the objective ``(n,)``, by the model itself.
Truth = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Emulator:
    """Say how a mean emulates its model.

    Args:
        max_runs: how many runs the emulator rests on at most. Those that the model's archive has already are taken
            first, the newest: they cost nothing.
        initial: how many of them are spread over the ranges before anything is known (Sobol); None for twice the number
            of coefficients of a quadratic, and half the budget at most. Runs in the archive take their place.
        refine: how many are spent at every build of a Gaussian process, where the optimiser looked last and the
            emulator knows least.
        ranges: of the inputs ``{name: (low, high)}`` [their units], where neither VOCS nor model say.
        seed: of the spread.

    Raises:
        ValidationError: for numbers that make no emulator.

    Example:
        >>> Emulator(max_runs=60).max_runs
        60
    """

    max_runs: int = 200
    initial: int | None = None
    refine: int = 4
    ranges: Mapping[str, tuple[float, float]] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_runs < _FEWEST:
            problems.append(f"max_runs is {self.max_runs!r}; expected {_FEWEST} or more")
        if self.initial is not None and not _FEWEST <= self.initial <= self.max_runs:
            problems.append(f"initial is {self.initial!r}; expected from {_FEWEST} to max_runs, {self.max_runs}")
        if self.refine < 0:
            problems.append(f"refine is {self.refine!r}; expected 0 or more runs at every build")
        raise_all(problems)

    def first_runs(self, dimensions: int) -> int:
        """Return the size of the initial spread."""
        if self.initial is not None:
            return self.initial
        coefficients = (dimensions + 1) * (dimensions + 2) // 2
        return max(_FEWEST, min(2 * coefficients, self.max_runs // 2))


@dataclass(frozen=True)
class EmulatorReport:
    """What an emulator has cost and how good it is.

    Attributes:
        runs: that were made.
        archived: runs taken from the model's archive.
        max_runs: the bound on both together.
        left_out_error: root mean square error if each run is predicted from all others [unit of the objective].
        refined_error: the same at the runs of the last refinements, predicted before they were made: where the
            optimiser looked; nan before the first.
    """

    runs: int
    max_runs: int
    archived: int
    left_out_error: float
    refined_error: float

    @property
    def is_spent(self) -> bool:
        """Whether no more runs will be made."""
        return self.runs + self.archived >= self.max_runs

    @property
    def error(self) -> float:
        """What is known best of the error where the optimiser looks."""
        return self.left_out_error if math.isnan(self.refined_error) else self.refined_error

    def __str__(self) -> str:
        if math.isnan(self.left_out_error):
            return "emulator: not asked yet"
        looked = "" if math.isnan(self.refined_error) else f", {self.refined_error:.2g} where the optimiser looked"
        return (
            f"emulator: {self.runs} runs made, {self.archived} from the archive, {self.max_runs} at most; "
            f"error {self.left_out_error:.2g} (each left out in turn){looked}"
        )


@runtime_checkable
class HasArchive(Protocol):
    """A model that remembers runs."""

    def archived_points(self, names: Sequence[str]) -> Tensor:
        """Return where it has runs with all other inputs at their set-points, ``(n, len(names))``."""


class EmulatedObjective:
    """Answer for a model's objective from a surface through the runs that were made; shared by all copies of a mean.

    Args:
        settings: the bound on the runs, and how they are spent.
        model: what is emulated; asked for its archive only.
        names: of the inputs, the columns of what it is asked at.
        limits: of the model, ``{name: (low, high)}``.

    Raises:
        ValidationError: for ranges of what is no input or that are empty, and inputs without a range.
    """

    def __init__(
        self, settings: Emulator, model: Any, names: Sequence[str], limits: Mapping[str, tuple[float, float]]
    ) -> None:
        self.settings = settings
        self._model = model
        self._names = list(names)
        given = settings.ranges or {}
        problems = [f"emulate: ranges has {n!r}; the inputs are {self._names}" for n in given if n not in self._names]
        problems += [
            f"emulate: range of {name!r} is ({low!r}, {high!r}); expected finite ends, the lower first"
            for name, (low, high) in given.items()
            if not (math.isfinite(low) and math.isfinite(high) and low < high)
        ]
        self._box = {name: (float(low), float(high)) for name, (low, high) in {**limits, **given}.items()}
        self._unbounded = [n for n, edges in self._box.items() if not all(map(math.isfinite, edges))]
        raise_all(problems)
        d = len(self._names)
        self._x = torch.zeros(0, d, dtype=torch.float64)
        self._y = torch.zeros(0, dtype=torch.float64)
        self._asked: deque[Tensor] = deque()
        self._surprises: deque[float] = deque(maxlen=2 * max(settings.refine, 1))
        self._runs = self._archived = 0
        self._chosen_at = 0
        self.surface: Surface | None = None
        self._lock = threading.RLock()

    def narrow(self, bounds: Mapping[str, Sequence[float]]) -> None:
        """Take the ranges that an optimiser uses, while no run has been made."""
        with self._lock:
            if self.surface is None:
                given = self.settings.ranges or {}
                for name, (low, high) in ((n, b) for n, b in bounds.items() if n in self._box and n not in given):
                    self._box[name] = (float(low), float(high))
                self._unbounded = [n for n, edges in self._box.items() if not all(map(math.isfinite, edges))]

    def __call__(self, x: Tensor, truth: Truth, surface: Surface | None = None) -> Tensor:
        """Return the objective, ``(*batch,)``, at inputs ``(*batch, n_in)``.

        Args:
            x: inputs [the model's units].
            truth: the model, if nothing is known of it yet.
            surface: to answer from; the newest if None.

        Gradient:
            Exact: the emulator's.
        """
        with self._lock:
            if self.surface is None:
                self.surface = self._first_surface(truth)
            self._note(x)
            answering = surface or self.surface
        return answering(self._unit(x.to(torch.float64))).to(x)

    def refined(self, truth: Truth) -> Surface | None:
        """Spend some runs where the optimiser looked last, and return the surface from now on."""
        with self._lock:
            if self.surface is None or not self._asked:
                return self.surface
            count = min(self.settings.refine, self._left)
            pool = torch.cat(list(self._asked))
            self._asked.clear()
            if count > 0:
                chosen = pool[self.surface.most_uncertain(self._unit(pool), count)]
                if len(chosen):
                    found = self._spend(chosen, truth)
                    surprises = found - self.surface(self._unit(chosen))
                    self._surprises.extend(surprises[surprises.isfinite()].tolist())
                    self._keep(chosen, found)
                    self.surface = self._fitted(self.surface.warp)
            return self.surface

    def report(self) -> EmulatorReport:
        """Return what it has cost and how good it is."""
        with self._lock:
            left_out = math.nan if self.surface is None else self.surface.leave_one_out_error()
            errors = list(self._surprises)
            refined = math.sqrt(sum(e**2 for e in errors) / len(errors)) if errors else math.nan
            return EmulatorReport(self._runs, self.settings.max_runs, self._archived, left_out, refined)

    @property
    def _left(self) -> int:
        return max(self.settings.max_runs - self._runs - self._archived, 0)

    # -- runs ------------------------------------------------------------------------------------------------

    def _first_surface(self, truth: Truth) -> Surface:
        """Take what the archive has, spread the initial runs that are lacking, and return a surface through both."""
        if self._unbounded:
            raise ValidationError(
                f"emulate: inputs {self._unbounded} have no range, neither in the VOCS nor in the model; give "
                f"Emulator(ranges={{{self._unbounded[0]!r}: (low, high), ...}})"
            )
        settings = self.settings
        if isinstance(self._model, HasArchive):
            known = self._inside(self._model.archived_points(self._names).to(self._x))
            known = known[-settings.max_runs :]
            self._archived = len(known)
            if len(known):
                self._keep(known, _asked_of(truth, known))
        lacking = min(settings.first_runs(len(self._names)) - len(self._y), self._left)
        if lacking > 0:
            spread = torch.quasirandom.SobolEngine(len(self._names), scramble=True, seed=settings.seed)
            points = self._physical(spread.draw(lacking, dtype=torch.float64))
            self._keep(points, self._spend(points, truth))
        if len(self._y) < _FEWEST:
            raise ValidationError(
                f"emulate: the objective is a number at {len(self._y)} of {self._runs + self._archived} runs; expected "
                f"{_FEWEST} at least: check transform and ranges"
            )
        return self._fitted(None)

    def _fitted(self, warp: Warp | None) -> Surface:
        """Return a surface through all runs; the warp is chosen anew when they have doubled."""
        points, n = self._unit(self._x), len(self._y)
        if warp is None or n >= 2 * self._chosen_at:
            self._chosen_at = n
            return Surface.smoothest(points, self._y)
        return Surface(points, self._y, warp if warp.fits(self._y) else Itself())

    def _keep(self, x: Tensor, y: Tensor) -> None:
        good = y.isfinite()
        self._x, self._y = torch.cat([self._x, x[good]]), torch.cat([self._y, y[good]])

    def _spend(self, x: Tensor, truth: Truth) -> Tensor:
        """Return the objective at some points, nan where the simulator fails; every try counts."""
        self._runs += len(x)
        try:
            return _asked_of(truth, x)
        except SimulatorError as error:
            logger.warning("a run of the emulator failed, trying its points one by one: %s", error)
        found = torch.full((len(x),), math.nan, dtype=torch.float64)
        for i in range(min(len(x), self._left)):
            self._runs += 1
            with contextlib.suppress(SimulatorError):
                found[i] = _asked_of(truth, x[i : i + 1]).squeeze()
        return found

    # -- points ----------------------------------------------------------------------------------------------

    def _note(self, x: Tensor) -> None:
        """Remember where it was asked."""
        flat = x.detach().reshape(-1, x.shape[-1]).to(torch.float64)
        if not x.requires_grad and len(flat) > _LOOK_AROUND:
            return
        self._asked.append(flat[-_REMEMBERED:])
        while sum(map(len, self._asked)) - len(self._asked[0]) >= _REMEMBERED:
            self._asked.popleft()

    def _edges(self) -> tuple[Tensor, Tensor]:
        low, high = torch.tensor([self._box[name] for name in self._names], dtype=torch.float64).unbind(-1)
        return low, high

    def _unit(self, x: Tensor) -> Tensor:
        low, high = self._edges()
        return (x.cpu() - low) / (high - low)

    def _physical(self, unit: Tensor) -> Tensor:
        low, high = self._edges()
        return low + unit * (high - low)

    def _inside(self, x: Tensor) -> Tensor:
        """Return the points that are near enough to the ranges to tell something there, ``(m, d)``."""
        unit = self._unit(x)
        return x[((unit > -0.1) & (unit < 1.1)).all(-1)]

    def __deepcopy__(self, memo: dict[int, Any]) -> EmulatedObjective:
        """Return itself: copies of a mean share the runs."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())


def _asked_of(truth: Truth, x: Tensor) -> Tensor:
    with torch.no_grad():
        return truth(x).to(torch.float64).cpu()


def emulated(
    emulate: bool | Emulator, model: Any, names: Sequence[str], limits: Mapping[str, tuple[float, float]]
) -> EmulatedObjective | None:
    """Return what a mean shall answer from, or None for the model itself.

    Raises:
        ValidationError: for what is neither a switch nor an ``Emulator``, and for ranges of no input.
    """
    if isinstance(emulate, bool):
        return EmulatedObjective(Emulator(), model, names, limits) if emulate else None
    if not isinstance(emulate, Emulator):
        raise ValidationError(f"emulate is {emulate!r}; expected True, False or Emulator(max_runs=...)")
    return EmulatedObjective(emulate, model, names, limits)
