"""MAD-X as a simulator, with no torch in it: workers load it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.derivatives import Table, gathered
from lume_diff.blackbox.codes.optics_names import INITIAL, MATRIX, Optics
from lume_diff.blackbox.codes.plain_bunches import INCOMING
from lume_diff.blackbox.codes.simulator import CodeSimulator
from lume_diff.blackbox.madx.derivatives import (
    bunch_derivatives,
    kick_derivatives,
    start_derivatives,
)
from lume_diff.blackbox.madx.knobs import Knob, changed, values
from lume_diff.blackbox.madx.session import MADXSession, deck_files
from lume_diff.blackbox.madx.tracking import PTCTracker
from lume_diff.blackbox.madx.twiss import maps_along, orbit, twiss_table

#: Our name -> MAD-X's column. Its dispersion is by the energy; beta makes it one by the momentum.
_COLUMNS = {
    **{f"beta_{plane}": f"bet{plane}" for plane in "xy"},
    **{f"alpha_{plane}": f"alf{plane}" for plane in "xy"},
    **{f"mu_{plane}": f"mu{plane}" for plane in "xy"},
    **{f"eta_{plane}": f"d{plane}" for plane in "xy"},
    **{f"etap_{plane}": f"dp{plane}" for plane in "xy"},
    **{name: name for name in ("x", "px", "y", "py", "s")},
}


class MADXFactory:
    """Make simulators, each with a MAD-X of its own that gets what was commanded by hand so far."""

    def __init__(
        self,
        files: Sequence[Path],
        sequence: str,
        knobs: Sequence[Knob],
        optics: Optics,
        bunches: Mapping[str, int],
        periodic: bool,
    ) -> None:
        self.files, self.sequence = list(files), sequence
        self.parts = (tuple(knobs), optics, dict(bunches), periodic)
        self.commands: list[str] = []
        self.session: MADXSession | None = None  # one that is there already, for the first simulator

    def __call__(self) -> MADXSimulator:
        session, self.session = self.session, None
        if session is None:
            session = MADXSession(self.files, self.sequence, self.commands)
        return MADXSimulator(session, self, *self.parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None, "commands": list(self.commands)}


class MADXSimulator(CodeSimulator):
    """Run MAD-X; see ``MADXModel``, which builds it.

    Args:
        session: MAD-X with the deck loaded.
        factory: keeps what was commanded by hand.
        knobs: what is set.
        optics: what is computed.
        bunches: name -> node of the bunches that are returned.
        periodic: whether optics is the periodic solution.
    """

    def __init__(
        self,
        session: MADXSession,
        factory: MADXFactory,
        knobs: Sequence[Knob],
        optics: Optics,
        bunches: Mapping[str, int],
        periodic: bool,
    ) -> None:
        self._session, self._factory = session, factory
        self._replayed = list(factory.commands)
        self._knobs, self._optics, self._bunches, self._periodic = tuple(knobs), optics, dict(bunches), periodic
        self._known: tuple[list[str], dict[str, float]] | None = None
        self._lock = threading.RLock()

    @property
    def native(self) -> Any:
        """The Madx object."""
        return self._living().madx

    def _living(self) -> MADXSession:
        """Return the session, a new one where MAD-X has died between runs."""
        with self._lock:
            if not self._session.madx:
                self.close()
                self._replayed = list(self._factory.commands)
                self._session = MADXSession(self._factory.files, self._session.sequence, self._replayed)
                self._known = None
            return self._session

    @property
    def baseline(self) -> dict[str, float]:
        """What stands in MAD-X now."""
        with self._lock:
            commands = self._living().commands
            self._factory.commands = [*self._replayed, *commands]
            if self._known is None or self._known[0] != commands:
                with self._session.own_work():
                    found = values(self._session, self._knobs)
                    if self._bunches:
                        found["reference_energy"] = self.reference_energy
                self._known = (commands, found)
            return dict(self._known[1])

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(self._living().element_names())

    @property
    def reference_energy(self) -> float:
        """Total energy of the BEAM [eV]."""
        return 1e9 * float(self._living().beam.energy)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Compute optics and track the bunch.

        Raises:
            SimulatorError: with what MAD-X said.
        """
        with self._at_values(inputs) as session:
            table = self._twiss(inputs)
            found = self._read(table)
            if self._bunches:
                tracker = PTCTracker(session, inputs[INCOMING], float(inputs["reference_time"]))
                found |= tracker.run(self._bunches, table["s"])
            return found

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return what MAD-X's R-matrix tells.

        These are optics of a line without coupling by where it starts (exact), the orbit by the kicks of correctors
        (exact), and bunches by the incoming one, up to the first cavity: the linear part about the trajectory of its
        centroid.
        """
        correctors = [knob for knob in self._knobs if knob.name in wrt and knob.attribute.name in ("hkick", "vkick")]
        by_initial = not self._periodic and any(name.startswith(f"{INITIAL}.") for name in wrt)
        found: dict[str, dict[str, np.ndarray]] = {}
        with self._at_values(inputs) as session:
            nodes = self._optics.count + 1
            p0 = self._beam_numbers()[1]
            if self._optics and (correctors or by_initial):
                start = orbit(twiss_table(session, [] if self._periodic else self._start(inputs), nodes))[0]
                rays, maps = maps_along(session, start, nodes)
                table: Table = start_derivatives(maps, self._start_values(inputs), p0) if by_initial else {}
                for knob in correctors:
                    slopes = kick_derivatives(session, knob, maps, rays, p0, self._periodic)
                    for quantity, along in slopes.items():
                        table.setdefault(quantity, {})[knob.name] = along
                found |= gathered(self._optics, table, outputs, wrt)
            places = {name: node for name, node in self._bunches.items() if name in outputs}
            group = inputs.get(INCOMING)
            if group is not None and INCOMING in wrt and places and np.ptp(group.z) == 0.0:
                bunches = bunch_derivatives(session, group, float(inputs["reference_time"]), places, nodes)
                found |= {name: {INCOMING: slope} for name, slope in bunches.items()}
        return found

    @contextlib.contextmanager
    def _at_values(self, inputs: Mapping[str, Any]) -> Iterator[MADXSession]:
        """Set the inputs for the time of a block."""
        with self._lock:
            baseline = self.baseline
            session = self._session
            with session.own_work():
                moving = changed(self._knobs, baseline, inputs)
                pairs = [knob.commands(session, float(inputs[knob.name])) for knob in moving]
                if self._bunches and float(inputs["reference_energy"]) != baseline["reference_energy"]:
                    pairs.append(self._energy_commands(float(inputs["reference_energy"])))
                expand = [f"use, sequence={session.sequence}"] if any(knob.moves for knob in moving) else []
                try:
                    session.command(*(there for there, _ in pairs), *expand)
                    for knob in moving:
                        knob.check(session, float(inputs[knob.name]))
                    yield session
                finally:
                    if session.madx:
                        session.command(*(back for _, back in pairs), *expand)

    def _energy_commands(self, energy: float) -> tuple[str, str]:
        beam = self._session.beam
        which = "" if beam["sequence"] == "default_beam" else f", sequence={self._session.sequence}"
        return f"beam{which}, energy={energy / 1e9!r}", f"beam{which}, energy={float(beam.energy)!r}"

    def _twiss(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the columns of the optics that are wanted, and always the path length."""
        session = self._session
        quantities = {*self._optics.quantities, "s"}
        options = ["chrom"] if self._optics.needs_chromaticity else []
        options += [] if self._periodic else self._start(inputs)
        table = twiss_table(session, options, self._optics.count + 1)
        beta, momentum = self._beam_numbers()
        columns = {_COLUMNS[name] for name in quantities if name in _COLUMNS} | {"mux", "muy"}
        native = {name: np.array(table[name], dtype=float) for name in columns}
        found = {name: native[column] for name, column in _COLUMNS.items() if column in native}
        factors = {"mu": 2.0 * np.pi, "eta": beta, "etap": beta, "px": momentum, "py": momentum}
        found = {name: values * factors.get(name.partition("_")[0], 1.0) for name, values in found.items()}
        for plane in "xy":
            found[f"tune_{plane}"] = native[f"mu{plane}"][-1]
            if self._optics.needs_chromaticity:
                found[f"chroma_{plane}"] = beta * np.array(table[f"dmu{plane}"], dtype=float)[-1]
        if MATRIX in quantities:
            start = orbit(table)[0]  # before there is another table
            found[MATRIX] = maps_along(session, start, self._optics.count + 1)[1]
        return found

    def _beam_numbers(self) -> tuple[float, float]:
        beam = self._session.beam
        return float(beam.beta), 1e9 * float(beam.pc)

    def _start(self, inputs: Mapping[str, Any]) -> list[str]:
        beta, momentum = self._beam_numbers()
        units = {"eta": beta, "etap": beta, "px": momentum, "py": momentum}
        start = self._start_values(inputs)
        return [f"{_COLUMNS[name]}={value / units.get(name.partition('_')[0], 1.0)!r}" for name, value in start.items()]

    @staticmethod
    def _start_values(inputs: Mapping[str, Any]) -> dict[str, float]:
        given = {n.partition(".")[2]: float(value) for n, value in inputs.items() if n.startswith(f"{INITIAL}.")}
        return {"beta_x": 1.0, "beta_y": 1.0, **given}

    def _read(self, table: Mapping[str, np.ndarray]) -> dict[str, Any]:
        ring = {name: float(table[name]) for name in self._optics.ring}
        return self._optics.gather(table, range(self._optics.count + 1), ring)

    def close(self) -> None:
        """End MAD-X."""
        with self._lock:
            self._factory.commands = [*self._replayed, *self._session.commands]
            self._session.close()

    def identity(self) -> str:
        """Return MAD-X's version and a hash of the deck, of what was commanded by hand and of what is computed."""
        digest = hashlib.sha256()
        for file in deck_files(self._factory.files):
            digest.update(file.read_bytes())
        commands = [*self._replayed, *self._session.commands]
        digest.update(repr((commands, self._session.sequence, self._optics, self._bunches, self._periodic)).encode())
        return f"MAD-X {self._living().madx.version.release}:{digest.hexdigest()[:16]}"
