"""The one ImpactX of a process, shared by all models in it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.errors import SimulatorError, ValidationError

Array = np.ndarray
Settings = Mapping[str, Any]

#: What ImpactX is told before its grids are made: silence, and no files.
_QUIET: Settings = {
    "verbose": 0,
    "diagnostics": False,
    "slice_step_diagnostics": False,
    "tiny_profiler": False,
    "mlmg_verbosity": 0,
}
_INITIAL = ["amrex.verbose=0", "amrex.signal_handling=0", "amrex.throw_exception=1"]
_COLUMNS = ("position_x", "momentum_x", "position_y", "momentum_y", "position_t", "momentum_t")
_ID_SHIFT, _ID_MASK = np.uint64(24), np.uint64((1 << 39) - 1)
#: Lost particles that ImpactX may pile up (some 0.1 kB each) before it is started anew.
_MOST_LOST = 100_000

_LOCK = threading.RLock()


@dataclass(frozen=True)
class Reference:
    """The reference particle at the start.

    Attributes:
        energy: total [eV].
        mass: [eV].
        charge: in units of the elementary charge, with its sign.
    """

    energy: float
    mass: float
    charge: float

    def particle(self) -> Any:
        """Return it as ImpactX has it."""
        return self.set_on(import_module("impactx").RefPart())

    def set_on(self, particle: Any) -> Any:
        """Make a reference particle of ImpactX this one."""
        particle.set_charge_qe(self.charge).set_mass_MeV(1e-6 * self.mass)
        return particle.set_kin_energy_MeV(1e-6 * (self.energy - self.mass))


@dataclass(frozen=True)
class Snapshot:
    """What is seen behind an element.

    Attributes:
        index: which of the particles that went in are there, ``(m,)``.
        rows: their x, px, y, py, t, pt in ImpactX's units, ``(m, 6)``.
        gamma, beta_gamma: of the reference particle.
        s: path length of the reference particle from the start [m].
        t: its time of flight from the start, times the speed of light [m].
    """

    index: Array
    rows: Array
    gamma: float
    beta_gamma: float
    s: float
    t: float


class Engine:
    """Own the ImpactX object of this process.

    AMReX, on which ImpactX is built, is one per process: finalising one ImpactX object while another lives ends the
    process. So there is one, and it is made anew where a model wants other settings, after an error, and before the
    particles that were lost, which ImpactX keeps, fill the memory.

    Args:
        settings: attributes of ``impactx.ImpactX`` by name.
    """

    current: Engine | None = None

    def __init__(self, settings: Settings) -> None:
        amrex, impactx = import_module("amrex.space3d"), import_module("impactx")
        if amrex.initialized():
            raise SimulatorError(
                "ImpactX or another AMReX code is at work in this process already, and there can be only one: finalise "
                "it, or build the model with workers=1, which gives it a process of its own"
            )
        self.settings = dict(settings)
        self._lost = 0
        amrex.ParmParse("amrex").add("signal_handling", 0)  # or Ctrl-C aborts the process
        sim = impactx.ImpactX()
        try:
            for name, value in {"space_charge": "off", **_QUIET, **settings}.items():
                if not hasattr(type(sim), name):
                    raise ValidationError(f"setting {name!r} is not an attribute of impactx.ImpactX")
                try:
                    setattr(sim, name, value)
                except (TypeError, RuntimeError) as error:
                    raise ValidationError(f"ImpactX refuses the setting {name}={value!r}: {error}") from error
            sim.init_grids()
        except BaseException:
            if not amrex.initialized():
                amrex.initialize(_INITIAL)  # what was set so far is forgotten only by a finalize
            sim.finalize()
            if amrex.initialized():
                amrex.finalize()
            raise
        self.sim = sim

    @classmethod
    @contextlib.contextmanager
    def at_work(cls, settings: Settings) -> Iterator[Engine]:
        """Lend the engine with these settings to one thread; after an error it is gone."""
        with _LOCK:
            engine = cls.current
            if engine is not None and (engine.settings != dict(settings) or not engine._is_alive()):
                cls.stop()
                engine = None
            if engine is None:
                engine = cls.current = cls(settings)
            try:
                yield engine
            except BaseException:
                cls.stop()
                raise
            if engine._lost > _MOST_LOST:
                cls.stop()

    @classmethod
    def stop(cls) -> None:
        """Finalise ImpactX, if it is at work; the next run starts it again."""
        with _LOCK:
            engine, cls.current = cls.current, None
            if engine is None:
                return
            if engine._is_alive():
                engine.sim.finalize()
            else:  # somebody has finalised AMReX under it: its destructor would crash, so it is never called
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine.sim))

    @staticmethod
    def _is_alive() -> bool:
        return bool(import_module("amrex.space3d").initialized())

    def track(
        self, elements: Sequence[Any], reference: Reference, rows: Array, weight: Array, places: Sequence[int]
    ) -> dict[int, Snapshot]:
        """Track particles through a lattice.

        Args:
            elements: of ImpactX.
            reference: the reference particle.
            rows: x, px, y, py, t, pt of the particles in ImpactX's units, ``(n, 6)``.
            weight: how many real particles each stands for, ``(n,)``.
            places: where to look, counted in elements before them.

        Returns:
            What is seen there, by place.
        """
        beam = self.sim.beam
        beam.clear()
        reference.set_on(beam.ref)
        columns = [np.ascontiguousarray(rows[:, column]) for column in (0, 2, 4, 1, 3, 5)]
        beam.add_n_particles(*columns, reference.charge / reference.mass, w=np.ascontiguousarray(weight))
        first = min(int(ids.min()) for ids in self._ids())
        self.sim.lattice = list(elements)
        found = {0: self._look(first)} if 0 in places else {}
        count = len(elements)
        watch = _Watch({place for place in places if 0 < place < count}, count, lambda: self._look(first))
        if watch.places:
            self.sim.hook["after_element"] = watch
        try:
            self.sim.track_particles()
        finally:
            if watch.places:
                del self.sim.hook["after_element"]
        if watch.error is not None:
            raise watch.error
        found |= watch.found
        if count in places:
            found[count] = self._look(first)
        self._lost += len(rows) - int(beam.total_number_of_particles())
        return found

    def energy_behind(self, elements: Sequence[Any], reference: Reference) -> float:
        """Return the total energy of the reference particle behind elements [eV]."""
        particle = reference.particle()
        if elements:
            self.sim.lattice = list(elements)
            self.sim.track_reference(particle)
        return reference.mass * particle.gamma

    def _ids(self) -> Iterator[Array]:
        for tile in self.sim.beam.const_iterator(level=0):
            if tile.size:
                yield _numbers(tile.soa().get_idcpu_data().to_numpy(copy=True))

    def _look(self, first: int) -> Snapshot:
        """Return what is in ImpactX now; ``first`` is the number of the first particle that went in."""
        index, rows = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 6))]
        for tile in self.sim.beam.const_iterator(level=0):
            if tile.size:
                data = tile.soa().to_numpy(copy=True)
                index.append(_numbers(data.idcpu) - first)
                rows.append(np.stack([data.real[name] for name in _COLUMNS], axis=-1))
        reference = self.sim.beam.ref
        return Snapshot(
            np.concatenate(index), np.concatenate(rows), reference.gamma, reference.beta_gamma, reference.s, reference.t
        )


atexit.register(Engine.stop)


class _Watch:
    """What ImpactX calls behind every element; an error there would be lost in C++."""

    def __init__(self, places: set[int], count: int, look: Callable[[], Snapshot]) -> None:
        self.places = places
        self.found: dict[int, Snapshot] = {}
        self.error: Exception | None = None
        self._count, self._look, self._calls = count, look, 0

    def __call__(self, sim: Any) -> None:
        place = self._calls % self._count + 1
        self._calls += 1
        if place in self.places and self.error is None:
            try:
                self.found[place] = self._look()
            except Exception as error:
                self.error = error


def _numbers(idcpu: Array) -> Array:
    """Return the serial numbers that AMReX gives to particles, which grow in the order in which they went in."""
    return ((idcpu >> _ID_SHIFT) & _ID_MASK).astype(np.int64)


def read_input_file(path: Path) -> list[Any]:
    """Return the elements of an ImpactX input file.

    Raises:
        Exception: whatever ImpactX raises for a file that it does not understand.
    """
    amrex, impactx = import_module("amrex.space3d"), import_module("impactx")
    with _LOCK:
        Engine.stop()
        if amrex.initialized():
            raise SimulatorError(
                "ImpactX or another AMReX code is at work in this process already, and reading an input file needs it: "
                "finalise it first"
            )
        with _silence():
            amrex.initialize(_INITIAL)
            sim = impactx.ImpactX()
            try:
                sim.load_inputs_file(str(path))
                for name, value in _QUIET.items():
                    setattr(sim, name, value)
                sim.init_grids()
                sim.init_lattice_elements_from_inputs()
                return [element.copy() for element in sim.lattice]
            finally:
                sim.finalize()
                if amrex.initialized():
                    amrex.finalize()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what C++ prints from the terminal, for as short as it takes to read a file."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 1)
            yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
