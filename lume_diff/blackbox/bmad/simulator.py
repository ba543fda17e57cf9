"""TaoSimulator: a deck, what is set on it and what is read from it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.blackbox.bmad.deck import deck_hash
from lume_diff.blackbox.bmad.derivatives import bunch_derivatives, start_derivatives
from lume_diff.blackbox.bmad.knobs import Knob
from lume_diff.blackbox.bmad.optics import column, read_optics
from lume_diff.blackbox.bmad.session import TaoSession, number
from lume_diff.blackbox.bmad.survey import BRANCH, START_ELEMENT, START_ORBIT, Survey, read_start
from lume_diff.blackbox.bmad.tracking import BunchTracker
from lume_diff.blackbox.codes.optics_names import INITIAL, Optics
from lume_diff.blackbox.codes.plain_bunches import INCOMING, momentum
from lume_diff.blackbox.codes.simulator import CodeSimulator
from lume_diff.errors import SimulatorError, ValidationError

#: Kinds of elements that may change the reference energy.
_ACCELERATING = ("Lcavity", "Patch", "E_Gun", "EGun", "Converter", "Foil", "Hybrid", "Custom")
#: Beta function that a line starts with in Tao where nobody has said which [m].
NO_BETA = 1.0
_OFF, _ON = "set global lattice_calc_on = F", "set global lattice_calc_on = T"


@dataclass(frozen=True)
class Recipe:
    """What a simulator is made of; it can be pickled.

    Attributes:
        deck: the file.
        survey: of the deck.
        knobs: what is set.
        starts: default by name of what the line starts with, as far as these are inputs, without ``"initial."``.
        optics: what is computed.
        periodic: whether that is of a ring.
        bunches: name -> place of the bunches that are returned.
        setup: commands given once the deck is loaded.
        seed: of Tao's random numbers, set before every run that tracks a bunch.
    """

    deck: Path
    survey: Survey
    knobs: Sequence[Knob]
    starts: Mapping[str, float | None]
    optics: Optics
    periodic: bool
    bunches: Mapping[str, int] = field(default_factory=dict)
    setup: Sequence[str] = ()
    seed: int = 1


class TaoFactory:
    """Make simulators.

    Args:
        recipe: what to make.
        session: Tao with the deck loaded, for the first simulator of this process, whose successors get what was
            commanded by hand so far; None where whoever runs the simulators sees to that.
    """

    def __init__(self, recipe: Recipe, session: TaoSession | None = None) -> None:
        self.recipe = recipe
        self.commands: list[str] = []
        self._session, self._keeps = session, session is not None

    def keep(self, commands: Sequence[str]) -> None:
        """Remember what was commanded by hand."""
        if self._keeps:
            self.commands = list(commands)

    def __call__(self) -> TaoSimulator:
        session, self._session = self._session, None
        if session is None:
            session = TaoSession(self.recipe.deck)
        try:
            session.command(_OFF, *self.recipe.setup, *self.commands)
            return TaoSimulator(session, self)
        except BaseException:
            session.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}


class TaoSimulator(CodeSimulator):
    """Run Tao; see ``BmadModel``, which builds it.

    Between runs all numbers stand at the baseline, and Tao computes nothing until it is looked at.

    Args:
        session: Tao with the deck loaded and set up, computing nothing.
        factory: keeps what was commanded by hand.
    """

    def __init__(self, session: TaoSession, factory: TaoFactory) -> None:
        self._session, self._factory, self._recipe = session, factory, factory.recipe
        self._replayed = list(factory.commands)
        self._lock = threading.RLock()
        self._computed = False
        self._known: tuple[int, dict[str, float]] | None = None
        self._loaded: tuple[bytes, int] | None = None
        self._tracks = factory.recipe.survey.tracks
        self._energy = factory.recipe.survey.energy

    # -- the native object -----------------------------------------------------------------------------------

    @property
    def native(self) -> Any:
        """The ``pytao.Tao``, with everything computed at the baseline."""
        self._compute("beam" if self._recipe.survey.tracks and not self._recipe.bunches else "single")
        return self._session.tao

    def _compute(self, track_type: str) -> None:
        """Let Tao compute, if it has not, and go on computing after every command."""
        if self._tracks != (track_type == "beam"):
            self._session.command(f"set global track_type = {track_type}")
            self._tracks = track_type == "beam"
        if not self._computed:
            self._session.command(_ON)
            self._computed = True

    def _stop(self) -> None:
        """Keep Tao from computing."""
        self._session.command(_OFF)
        self._computed = False

    @property
    def baseline(self) -> dict[str, float]:
        """What stands in Tao now."""
        by_hand = self._session.history
        self._factory.keep([*self._replayed, *by_hand])
        if self._known is None or self._known[0] != len(by_hand):
            self._energy = self.reference_energy
            found = {knob.name: knob.read(self._session) for knob in self._recipe.knobs}
            if self._recipe.bunches:
                found["reference_energy"] = self._energy
            found |= self._starts()
            self._known = (len(by_hand), found)
        return dict(self._known[1])

    def _starts(self) -> dict[str, float]:
        if not self._recipe.starts:
            return {}
        self._compute("single")
        p0 = float(momentum(self._energy, self._recipe.survey.mass))
        standing = read_start(self._session)
        standing |= {name: p0 * standing[name] for name in ("px", "py")}
        # What has no default stands in Tao with some value all the same, which is no baseline.
        return {f"{INITIAL}.{n}": standing[n] for n, default in self._recipe.starts.items() if default is not None}

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(self._recipe.survey.elements)

    @property
    def reference_energy(self) -> float:
        """Total energy that the lattice starts with [eV]."""
        return float(self._session.reals(f"pipe lat_list -array_out {BRANCH}0|model ele.e_tot", 1)[0])

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the elements behind the first one that may change the reference energy."""
        elements = self._recipe.survey.elements
        places = [e.entrance for e in elements.values() if e.key in _ACCELERATING and e.place is not None]
        if not places:
            return ()
        return tuple(n for n, e in elements.items() if e.place is not None and e.entrance > min(places))

    def energies(self, inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
        """Return the reference energy [eV] at the entrance of elements."""
        survey = self._recipe.survey
        with self._at_values(inputs) as session:
            self._compute("single")
            energy = column(session, "ele.e_tot", survey.count)
        return {name: float(energy[survey.elements[name].entrance]) for name in names}

    # -- runs ------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Compute optics and track the bunch.

        Raises:
            SimulatorError: with what Tao said.
            ValidationError: for numbers that are not finite.
        """
        recipe = self._recipe
        bunches = {name: place for name, place in recipe.bunches.items() if name in outputs}
        optics = recipe.optics and any(name not in recipe.bunches for name in outputs)
        with self._at_values(inputs) as session:
            tracker = None
            if bunches:
                mass = recipe.survey.mass
                tracker = BunchTracker(session, inputs[INCOMING], float(inputs["reference_time"]), mass)
                self._load(tracker)
                session.command(f"set global random_seed = {recipe.seed}")
            self._compute("beam" if bunches else "single")
            found = read_optics(session, recipe.optics) if optics else {}
            if tracker is not None:
                found |= tracker.bunches(bunches, recipe.survey.count)
            return found

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return what Tao's transfer matrices tell.

        These are optics of a line by where it starts (exact, where planes are not coupled), and bunches by the incoming
        one: the linear part about the trajectory of its centroid.
        """
        recipe = self._recipe
        places = {name: place for name, place in recipe.bunches.items() if name in outputs}
        group = inputs.get(INCOMING)
        found: dict[str, dict[str, np.ndarray]] = {}
        if recipe.periodic:
            return found
        with self._at_values(inputs) as session:
            self._compute("single")
            if recipe.optics and any(name.startswith(f"{INITIAL}.") for name in wrt):
                start = {n.partition(".")[2]: float(v) for n, v in inputs.items() if n.startswith(f"{INITIAL}.")}
                found |= start_derivatives(session, recipe.optics, start, outputs, wrt)
            if INCOMING in wrt and places and group is not None and np.ptp(group.z) == 0.0:
                mass, count = recipe.survey.mass, recipe.survey.count
                bunches = bunch_derivatives(session, group, float(inputs["reference_time"]), mass, places, count)
                found |= {name: {INCOMING: slope} for name, slope in bunches.items()}
        return found

    @contextlib.contextmanager
    def _at_values(self, inputs: Mapping[str, Any]) -> Iterator[TaoSession]:
        """Set the inputs for the time of a block, at whose start Tao computes nothing.

        Raises:
            ValidationError: for numbers that are not finite.
        """
        for name, value in inputs.items():
            if isinstance(value, (float, np.floating)) and not np.isfinite(value):
                raise ValidationError(f"{name!r} is {value!r}: Tao would answer with plausible numbers")
        with self._lock:
            baseline = self.baseline
            try:
                self._stop()
                self._set(inputs, baseline)
                yield self._session
            finally:
                self._put_back(inputs, baseline)

    def _load(self, tracker: BunchTracker) -> None:
        """Give Tao a bunch, unless it is the one that it was given last."""
        content = (tracker.content, len(self._session.history))
        if self._loaded != content:
            self._loaded = None
            self._session.command(*tracker.commands())
            self._loaded = content

    def _set(self, inputs: Mapping[str, Any], baseline: Mapping[str, float]) -> None:
        """Set what differs from the baseline."""
        self._set_knobs({name: float(inputs[name]) for name in self._moved(inputs, baseline)})
        self._session.command(*self._start_commands(inputs, baseline))

    def _moved(self, inputs: Mapping[str, Any], baseline: Mapping[str, float]) -> list[str]:
        return [knob.name for knob in self._recipe.knobs if float(inputs[knob.name]) != baseline[knob.name]]

    def _set_knobs(self, values: Mapping[str, float]) -> None:
        """Set numbers of elements, lengths first, because others such as a bending angle change with them.

        Raises:
            SimulatorError: if Tao has not taken one, or one has changed another.
        """
        knobs = [knob for knob in self._recipe.knobs if knob.name in values]
        for knob in sorted(knobs, key=lambda knob: knob.attribute != "l"):
            knob.set(self._session, values[knob.name])
        per_element = Counter(knob.element for knob in knobs)
        for knob in knobs:
            if per_element[knob.element] > 1:
                knob.check(self._session, values[knob.name])

    def _start_commands(self, wanted: Mapping[str, Any], standing: Mapping[str, float]) -> list[str]:
        """Return the commands that bring the start of the line from one state to another."""
        commands = []
        energy = float(wanted.get("reference_energy", self._energy))
        shifted = energy != standing.get("reference_energy", energy)
        if shifted:
            commands.append(f"set ele {BRANCH}0 e_tot = {number(energy)}")
        p0 = float(momentum(energy, self._recipe.survey.mass))
        for name in self._recipe.starts:
            value = float(wanted.get(f"{INITIAL}.{name}", NO_BETA))
            if value == standing.get(f"{INITIAL}.{name}") and not (shifted and name in ("px", "py")):
                continue
            commands.append(start_command(name, value, p0))
        return commands

    def _put_back(self, inputs: Mapping[str, Any], baseline: Mapping[str, float]) -> None:
        """Bring Tao back to the baseline, without computing anything; a Tao that refuses is given up."""
        session = self._session
        if not session.alive:
            return
        try:
            self._stop()
            self._set_knobs({name: baseline[name] for name in self._moved(inputs, baseline)})
            before = {name: float(value) for name, value in inputs.items() if name in baseline}
            session.command(*self._start_commands(baseline, before))
        except SimulatorError:
            self._known = None
            raise

    def close(self) -> None:
        """Give Tao up."""
        self._factory.keep([*self._replayed, *self._session.history])
        self._session.close()

    def identity(self) -> str:
        """Return Tao's version and a hash of the deck, of what was commanded by hand and of what is computed."""
        recipe = self._recipe
        by_hand = [*self._replayed, *self._session.history]
        parts = (deck_hash(recipe.deck), list(recipe.setup), by_hand, recipe.optics, dict(recipe.bunches), recipe.seed)
        return f"Bmad {recipe.survey.version}:{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def start_command(name: str, value: float, reference_momentum: float) -> str:
    """Return the command that sets what a line starts with; momenta are in eV/c."""
    if name in START_ORBIT:
        share = value / reference_momentum if name.startswith("p") else value
        return f"set particle_start {name} = {number(share)}"
    return f"set ele {BRANCH}0 {START_ELEMENT[name]} = {number(value)}"
