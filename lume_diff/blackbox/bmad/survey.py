"""What a deck has, as plain data: elements, what can be set on them, where the line starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.bmad.session import TaoSession, number
from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT
from lume_diff.blackbox.simulator import PlainValue, Simulator
from lume_diff.errors import LatticeError, LumeDiffError, SimulatorError, ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

#: The branch that is looked at: the first one of the first universe.
BRANCH = "1@0>>"
_LORDS = ("Super_Lord", "Multipass_Lord")
_SLAVES = ("Super_Slave", "Multipass_Slave")
#: How Tao calls the start of a line: our name -> attribute of the element BEGINNING, or of ``particle_start``.
START_ELEMENT = {
    "beta_x": "beta_a",
    "alpha_x": "alpha_a",
    "eta_x": "eta_x",
    "etap_x": "etap_x",
    "beta_y": "beta_b",
    "alpha_y": "alpha_b",
    "eta_y": "eta_y",
    "etap_y": "etap_y",
}
START_ORBIT = ("x", "px", "y", "py")
_LOCATION = re.compile(r"(\d+)>>(\d+)")


@dataclass(frozen=True)
class Element:
    """An element, or several of one name.

    Attributes:
        key: Tao's kind (``"Quadrupole"``).
        place: elements before its exit, of the last one of the name; None for what has no place, such as an overlay.
        entrance: elements before its entrance, likewise.
        attributes: Tao's attribute -> unit; the real ones.
        own: whether it can be set at all: a slave cannot.
    """

    key: str
    place: int | None
    entrance: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    own: bool = True


@dataclass(frozen=True)
class Survey:
    """What a deck has.

    Attributes:
        version: Tao's.
        elements: by name.
        count: number of elements that are tracked through.
        closed: whether the lattice is a ring.
        particle: Tao's name of the reference species.
        mass: of it [eV].
        energy: reference energy at the start [eV].
        momentum: reference momentum at the start [eV/c].
        beam: whether the deck has a beam of its own.
        tracks: whether the deck asks for beam tracking.
        seed: of random numbers, 1 if the deck has none.
        start: what a line starts with, by our names, momenta in units of the reference one; beta functions that the
            deck does not give are zero.
    """

    version: str
    elements: Mapping[str, Element]
    count: int
    closed: bool
    particle: str
    mass: float
    energy: float
    momentum: float
    beam: bool
    tracks: bool
    seed: int
    start: Mapping[str, float]


def survey(session: TaoSession) -> Survey:
    """Return what the deck that a session has loaded has."""
    names = session.text(f"pipe lat_list -index_order {BRANCH}*|model ele.name")
    keys = session.text(f"pipe lat_list -index_order {BRANCH}*|model ele.key")
    tracked = len(session.text(f"pipe lat_list -track_only -index_order {BRANCH}*|model ele.name"))
    branch = _fields(session.text("pipe branch1 1@0"))
    beam = _fields(session.text("pipe beam_init 1@0"))
    settings = _fields(session.text("pipe global"))
    particle, closed = branch["param.particle"], branch["param.geometry"].lower() == "closed"
    (energy,) = session.reals(f"pipe lat_list -array_out {BRANCH}0|model ele.e_tot", 1)
    (momentum,) = session.reals(f"pipe lat_list -array_out {BRANCH}0|model ele.p0c", 1)
    (mass,) = session.reals(f"pipe evaluate -array_out mass_of({particle})", 1)
    return Survey(
        version=" ".join(session.text("show version")).removeprefix("Version:").strip(),
        elements=_elements(session, names, keys, tracked),
        count=tracked - 1,
        closed=closed,
        particle=particle,
        mass=float(mass),
        energy=float(energy),
        momentum=float(momentum),
        beam=int(beam["n_particle"]) > 0 or bool(beam["position_file"]),
        tracks=settings["track_type"] == "beam",
        seed=max(int(settings["random_seed"]), 0) or 1,
        start={} if closed else read_start(session),
    )


def _fields(lines: Sequence[str]) -> dict[str, str]:
    """Return ``{name: value}`` of lines ``name;TYPE;variable;value``."""
    parts = [line.split(";", 3) for line in lines]
    return {part[0].split("^")[-1]: part[3].strip() for part in parts if len(part) == 4}


def _elements(session: TaoSession, names: Sequence[str], keys: Sequence[str], tracked: int) -> dict[str, Element]:
    found: dict[str, Element] = {}
    for index, (name, key) in enumerate(zip(names, keys, strict=True)):
        known = found.get(name)
        if known is not None and index < tracked:
            found[name] = Element(known.key, index, index - 1, known.attributes, known.own)
        if known is not None:
            continue
        lines = session.text(f"pipe ele:gen_attribs {BRANCH}{index}|model")
        status = _fields(lines)
        attributes = _attributes(lines)
        if key in ("Overlay", "Group", "Ramper", "Girder"):
            controls = session.text(f"pipe ele:control_var {BRANCH}{index}|model") if key != "Girder" else []
            attributes |= {line.split(";")[1].strip().lower(): "" for line in controls if line.count(";") > 1}
        parts = [index]
        if index >= tracked:
            parts = _parts(session, index, tracked) if status.get("lord_status") in _LORDS else []
        place, entrance = (max(parts), max(min(parts) - 1, 0)) if parts else (None, 0)
        found[name] = Element(key, place, entrance, attributes, status.get("slave_status") not in _SLAVES)
    return found


def _attributes(lines: Sequence[str]) -> dict[str, str]:
    parts = [line.split(";", 3) for line in lines]
    units = {part[0].removeprefix("units#").lower(): part[3].strip() for part in parts if part[0].startswith("units#")}
    return {part[0].lower(): units.get(part[0].lower(), "") for part in parts if part[1] == "REAL"}


def _parts(session: TaoSession, index: int, tracked: int) -> list[int]:
    """Return the elements that are tracked through of a lord: all slices of one, the last pass of another."""
    slaves: list[list[int]] = []
    status, mine = "", False
    for line in session.text(f"pipe ele:lord_slave {BRANCH}{index}|model"):
        kind, location, *rest = line.split(";")
        match = _LOCATION.search(location)
        if match is None:
            continue
        branch, place = map(int, match.groups())
        if kind == "Element":
            mine = (branch, place) == (0, index)
            status = rest[-1] if mine else status
        elif kind == "Slave" and mine and branch == 0:
            slaves.append([place] if place < tracked else _parts(session, place, tracked))
    passes = slaves[-1:] if status == _LORDS[1] else slaves
    return [place for parts in passes for place in parts]


def read_numbers(session: TaoSession, element: str, attribute: str) -> np.ndarray:
    """Return an attribute of all elements of a name, in Tao's units."""
    return session.reals(f"pipe lat_list -array_out -index_order {BRANCH}{element}|model ele.{attribute}")


def probe(session: TaoSession, element: str, attribute: str) -> tuple[np.ndarray, str]:
    """Return an attribute of all elements of a name, and why it cannot be set, empty if it can.

    What Tao lists as free to vary is not the whole truth, so the value is set to what it is. Tao computes nothing
    afterwards, until it is told to.
    """
    values = read_numbers(session, element, attribute)
    if not values.size or np.ptp(values) != 0.0:
        shown = ", ".join(f"{value:g}" for value in np.unique(values))
        return values, (
            f"elements called {element!r} have different values ({shown}), so they cannot act as one: give them names "
            "of their own"
        )
    session.command("set global lattice_calc_on = F")
    try:
        session.command(f"set ele {BRANCH}{element} {attribute} = {number(values[0])}")
    except SimulatorError as error:
        return values, f"Tao does not set it, as where an overlay decides it, or another attribute: {error}"
    return values, ""


def read_start(session: TaoSession) -> dict[str, float]:
    """Return what a line starts with as it stands: our names, momenta in units of the reference one."""
    whos = {"beta_x": "ele.a.beta", "alpha_x": "ele.a.alpha", "beta_y": "ele.b.beta", "alpha_y": "ele.b.alpha"}
    whos |= {f"{name}_{plane}": f"ele.{plane}.{name}" for name in ("eta", "etap") for plane in "xy"}
    whos |= {name: f"orbit.vec.{index}" for index, name in enumerate(START_ORBIT, start=1)}
    return {
        name: float(session.reals(f"pipe lat_list -array_out {BRANCH}0|model {who}", 1)[0])
        for name, who in whos.items()
    }


def own_beam(session: TaoSession, seed: int, particle: str, mass: float) -> ParticleGroup:
    """Return the beam that the deck itself starts with, always the same one.

    Args:
        session: with the deck loaded.
        seed: of the random numbers.
        particle: Tao's name of the species.
        mass: of it [eV].
    """
    from beamphysics import ParticleGroup

    session.command("set global lattice_calc_on = F", "set global track_type = beam", "reinit beam")
    session.command(f"set global random_seed = {seed}", "set global lattice_calc_on = T")
    bunch = f"pipe bunch1 {BRANCH}0|model 1 "
    x, px, y, py, z, pz, p0c, charge = (
        session.reals(bunch + name) for name in ("x", "px", "y", "py", "z", "pz", "p0c", "charge")
    )
    state = session.integers(bunch + "state", x.size)
    p = p0c * (1.0 + pz)
    slowness = np.sqrt(p**2 + mass**2) / p
    data = {"x": x, "y": y, "z": np.zeros_like(x), "px": p0c * px, "py": p0c * py}
    data |= {"pz": np.sqrt(p**2 - data["px"] ** 2 - data["py"] ** 2), "t": -z * slowness / SPEED_OF_LIGHT}
    data |= {"weight": np.abs(charge), "status": np.where(state == 1, 1, 0)}
    return ParticleGroup(data={**data, "species": particle.lower()})


class Surveyor(Simulator):
    """Look at a deck, here or in another process; what goes wrong comes back as a value, so that its type is kept.

    Args:
        deck: the file.
    """

    def __init__(self, deck: Path) -> None:
        self._deck = deck
        self._session: TaoSession | None = None

    @property
    def session(self) -> TaoSession:
        """Tao with the deck loaded."""
        if self._session is None:
            self._session = TaoSession(self._deck)
        return self._session

    def run(self, inputs: Mapping[str, PlainValue], outputs: Sequence[str]) -> dict[str, PlainValue]:
        """Do nothing: a surveyor is asked, not run."""
        raise NotImplementedError

    def ask(self, what: str, *args: Any) -> Any:
        """Return what a function of this module returns, or the error that it raises."""
        functions: dict[str, Callable[..., Any]] = {
            "survey": survey,
            "probe": probe,
            "beam": own_beam,
        }
        try:
            return functions[what](self.session, *args)
        except (LatticeError, ValidationError, SimulatorError, ImportError) as error:
            return type(error)(str(error)) if isinstance(error, LumeDiffError) else SimulatorError(str(error))

    def close(self) -> None:
        """Give Tao up."""
        if self._session is not None:
            self._session.close()
            self._session = None
