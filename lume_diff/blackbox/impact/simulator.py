"""ImpactTSimulator: a deck, a bunch, and one run of IMPACT-T after the other."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import INCOMING, SPEED_OF_LIGHT
from lume_diff.blackbox.codes.simulator import CodeSimulator
from lume_diff.blackbox.impact.bunch import Dump, Incoming, on_deck_plane, read_dump
from lume_diff.blackbox.impact.deck import (
    FINAL_FILE,
    FIRST_BUNCH_FILE,
    Deck,
    check_deck,
    deck_from_state,
    deck_state,
    used_elements,
)
from lume_diff.blackbox.impact.knobs import Knob, Knobs, write_all
from lume_diff.blackbox.impact.process import Steps, TimedOutError, failed, run_folder, run_program, sweep_folders
from lume_diff.blackbox.impact.program import lume_impact, program_hash
from lume_diff.errors import ValidationError

#: Room before the bunch where space charge is computed, which IMPACT-T does for positive z only [m].
_ROOM = 1e-3


@dataclass(frozen=True)
class Recipe:
    """What a simulator is made of besides the deck.

    Attributes:
        program: the executable.
        controls: names of the numbers that are set.
        bunches: bunch output -> element behind which it is wanted, None for the end.
        timeout: of a run [s], None for none.
        has_bunch: whether a bunch comes in; otherwise the deck has its own.
        offset: from the bunch's z to the deck's [m].
        start_time: when a run begins, the same for all bunches that come at about that time [s].
        patience: how far from it [s].
        reference_energy: mean of the first bunch [eV].
    """

    program: Path
    controls: Sequence[str] = ()
    bunches: Mapping[str, str | None] = field(default_factory=dict)
    timeout: float | None = None
    has_bunch: bool = True
    offset: float = 0.0
    start_time: float = 0.0
    patience: float = 0.0
    reference_energy: float = 0.0


class Factory:
    """Make simulators that share one deck, so that what was changed on it outlives a failed run.

    Args:
        native: an ``impact.Impact``.
        recipe: the rest.
    """

    def __init__(self, native: Any, recipe: Recipe) -> None:
        self.native, self.recipe = native, recipe
        self.timed_out: tuple[bytes, TimedOutError] | None = None  # the last point that did, which is not tried again

    def __call__(self) -> ImpactTSimulator:
        return ImpactTSimulator(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"deck": deck_state(self.native), "recipe": self.recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(deck_from_state(state["deck"]), state["recipe"])  # type: ignore[misc]


class ImpactTSimulator(CodeSimulator):
    """Run IMPACT-T on copies of a deck; see ``ImpactTModel``, which builds it.

    Args:
        factory: with the deck, which stands as the user left it.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory, self._recipe = factory, factory.recipe
        self._knobs: list[Knob] = Knobs(factory.native, factory.recipe.has_bunch).choose(factory.recipe.controls)
        sweep_folders()

    @property
    def native(self) -> Any:
        """The ``impact.Impact``."""
        return self._factory.native

    @property
    def baseline(self) -> dict[str, float]:
        """The controls as they stand in the deck now."""
        check_deck(self.native)
        return {knob.name: knob.read(self.native) for knob in self._knobs}

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(element["name"] for element in used_elements(self.native))

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the elements that begin inside or behind an RF field."""
        elements = used_elements(self.native)
        fields = [float(element["zedge"]) for element in elements if element.get("rf_field_scale")]
        first = min(fields, default=math.inf)
        return tuple(e["name"] for e in elements if float(e["zedge"] if "zedge" in e else e.get("s", first)) > first)

    @property
    def reference_energy(self) -> float:
        """Mean total energy of the bunch that the model was built with [eV].

        Raises:
            ValidationError: if the deck makes its own bunch.
        """
        if not self._recipe.has_bunch:
            raise ValidationError("the deck makes its own bunch, of which nothing is known before a run: give beam=")
        return self._recipe.reference_energy

    # -- runs ------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Track the bunch through the deck.

        Raises:
            ValidationError: for numbers that are not finite, and for a bunch that cannot start.
            SimulatorError: if IMPACT-T fails, does not end in time, or leaves something else than a bunch.
        """
        point = hashlib.sha256(pickle.dumps(sorted((name, _plain(value)) for name, value in inputs.items()))).digest()
        known, self._factory.timed_out = self._factory.timed_out, None
        if known is not None and known[0] == point:
            raise known[1]
        deck = Deck.of(self.native)
        write_all(self._knobs, deck, inputs, self.native)
        deck.check_finite()
        bunches = {name: self._recipe.bunches[name] for name in outputs if name in self._recipe.bunches}
        incoming = self._incoming(deck, inputs) if self._recipe.has_bunch else None
        places = {name: deck.place(element) for name, element in bunches.items() if element is not None}
        deck.check_places(places, -math.inf if incoming is None else incoming.plane)
        stop, steps = deck.stop, deck.time_steps()
        files = deck.watch(places)
        with run_folder() as folder:
            if incoming is None:
                deck.write_own_bunch(folder)
            else:
                incoming.write(folder, deck.header)
            deck.write(folder)
            try:
                made = run_program(self._recipe.program, folder, self._recipe.timeout)
            except TimedOutError as error:
                self._factory.timed_out = (point, error)
                raise
            read = _Results(folder, made, deck.header, stop, steps)
            found = {}
            for name in bunches:
                dump = read.dump(files[name], places[name]) if name in files else read.final
                plane = places.get(name, stop)
                found[name] = read.own(dump, plane) if incoming is None else incoming.behind(dump, plane)
        return found

    def _incoming(self, deck: Deck, inputs: Mapping[str, Any]) -> Incoming:
        """Return the bunch, with the deck made ready for it."""
        recipe, header = self._recipe, deck.header
        group = inputs[INCOMING]
        earliest = float(np.min(group.t)) if len(group.t) else 0.0
        start = recipe.start_time if abs(earliest - recipe.start_time) <= recipe.patience else None
        incoming = Incoming(group, header, recipe.offset, start)
        acts = float(header["Bcurr"]) != 0.0
        if acts and not any(knob.attribute in ("total_charge", "Bcurr") for knob in self._knobs):
            header["Bcurr"] = incoming.charge * float(header["Bfreq"])
        deck.check_entry(incoming.plane)
        deck.enter_at(incoming.plane)
        least = float(incoming.rows[:, 4].min())
        if acts and int(header["Flagimg"]) != 1 and least <= _ROOM:
            deck.shift(_ROOM - least)
            incoming.shift(_ROOM - least)
        return incoming

    def reset(self) -> None:
        """Do nothing: every run starts anew."""

    def identity(self) -> str:
        """Return a hash of the executable, lume-impact's version, and a hash of the deck and all of its files."""
        recipe = self._recipe
        what = repr((sorted(recipe.bunches.items()), recipe.has_bunch, recipe.offset, recipe.start_time)).encode()
        digest = hashlib.sha256(Deck.of(self.native).content() + what).hexdigest()[:16]
        return f"IMPACT-T {program_hash(recipe.program)} by lume-impact {lume_impact().__version__}:{digest}"


class _Results:
    """What a run left in its folder.

    Args:
        folder: of the run.
        made: its steps.
        header: of the deck that was run.
        stop: where the bunch's centre should stop [m].
        steps: that the deck may take [s].

    Raises:
        SimulatorError: if the particles at the end are not those that went in, or not at the end.
    """

    def __init__(
        self, folder: Path, made: Steps, header: Mapping[str, Any], stop: float, steps: Sequence[float]
    ) -> None:
        self._folder, self._made, self._header = folder, made, header
        self._count = int(header["Np"])
        index, rows = self._read(FINAL_FILE)
        self._all_lost = len(index) == 0
        time = float(made.start[-1])
        if not self._all_lost:
            centre = float(rows[:, 4].mean())
            if not centre >= stop or len(made.start) >= int(header["Ntstep"]):
                raise failed(
                    f"IMPACT-T left the bunch at {centre:g} m, before the stop at {stop:g} m: the deck's Ntstep steps "
                    "are too few",
                    folder,
                )
            time += 0.5 * self._last_step(rows, centre, steps)
        self.final = Dump(index, rows, time)

    def _last_step(self, rows: np.ndarray, centre: float, steps: Sequence[float]) -> float:
        """Return the last time step, of which half was made: the one that fits the way of the bunch's centre."""
        start, before = self._made.start, self._made.mean_z
        if len(start) < 2:
            return float(steps[0])
        gamma = np.sqrt(1.0 + np.square(rows[:, [1, 3, 5]]).sum(axis=1))
        speed = SPEED_OF_LIGHT * float((rows[:, 5] / gamma).mean())
        seen = 2.0 * (centre - before[-1]) / speed - (start[-1] - start[-2])
        return float(min(steps, key=lambda step: abs(step - seen)))

    def dump(self, file: str, place: float) -> Dump:
        """Return the bunch that was written at a place.

        Raises:
            SimulatorError: if there is none although particles went on.
        """
        if not (self._folder / file).exists():
            if self._all_lost:
                return Dump(np.zeros(0, dtype=int), np.zeros((0, 6)), self.final.time)
            raise failed(
                f"IMPACT-T wrote no bunch at {place:g} m, as it does for a place that the bunch's centre passes "
                "between two steps, or in one step with another place: move it, or take smaller steps",
                self._folder,
            )
        index, rows = self._read(file)
        # A bunch is written at the end of a step, half a step behind the centre that is printed.
        step = np.searchsorted(self._made.mean_z[1:], rows[:, 4].mean()) if len(rows) else 0
        return Dump(index, rows, float(self._made.start[min(int(step), len(self._made.start) - 1)]))

    def _read(self, file: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            index, rows = read_dump(self._folder / file)
        except (OSError, ValueError) as error:
            raise failed(f"IMPACT-T left no bunch ({error})", self._folder) from error
        if len(np.unique(index)) != len(index) or (len(index) and not 0 <= index.min() <= index.max() < self._count):
            raise failed(
                f"IMPACT-T left {len(index)} particles that are not the {self._count} that went in", self._folder
            )
        return index, rows

    def own(self, dump: Dump, plane: float) -> Any:
        """Return the bunch that the deck itself makes, on a plane; lost particles are dead."""
        from beamphysics import ParticleGroup
        from impact.particles import identify_species

        header, count = self._header, self._count
        mass = float(header["Bmass"])
        _, first = self._read(FIRST_BUNCH_FILE)
        order, values = on_deck_plane(dump, plane, mass)
        charge = float(header["Bcurr"]) / float(header["Bfreq"])
        data = {name: np.zeros(count) for name in values}
        data["pz"] += mass * float(first[:, 5].mean())
        for name, value in values.items():
            data[name][dump.index[order]] = value
        status = np.zeros(count, dtype=int)
        status[dump.index[order]] = 1
        return ParticleGroup(
            data={
                **data,
                "z": np.full(count, plane),
                "status": status,
                "weight": np.full(count, (charge or 1.0) / count),
                "id": np.arange(1, count + 1),
                "species": identify_species(mass, float(header["Bcharge"])),
            }
        )


def _plain(value: Any) -> Any:
    """Return a value as what tells it from others."""
    if hasattr(value, "data") and isinstance(value.data, Mapping):
        return [(name, np.asarray(item).tobytes()) for name, item in sorted(value.data.items())]
    return repr(value)
