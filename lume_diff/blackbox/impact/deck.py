"""An IMPACT-T deck: read by lume-impact, kept as plain data, changed for a run and written for the executable."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_diff.blackbox.impact.program import lume_impact
from lume_diff.errors import LatticeError, ValidationError

Element = dict[str, Any]

#: Elements that are done in the order in which they stand, each when the bunch's centre comes by.
_IN_TURN = ("change_timestep", "spacecharge", "offset_beam")
#: First of the numbers of the files that bunches are written to, above those that IMPACT-T uses itself.
_FIRST_FILE = 2001
FINAL_FILE, FIRST_BUNCH_FILE = "fort.50", "fort.40"


def read_deck(file: str | os.PathLike[str]) -> Any:
    """Return the ``impact.Impact`` of an ``ImpactT.in`` or a lume-impact YAML file.

    Raises:
        MissingExtraError: if lume-impact is not installed.
        LatticeError: for a file that is missing, or that lume-impact does not take.
    """
    path = Path(os.path.expanduser(file)).absolute()
    package = lume_impact()
    if not path.is_file():
        raise LatticeError(f"deck {str(path)!r} does not exist; expected an ImpactT.in, or a lume-impact YAML file")
    read = package.Impact.from_yaml if path.suffix.lower() in (".yaml", ".yml") else package.Impact
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # lume-impact leaves closing files to Python
            native = read(str(path))
    except FileNotFoundError as error:
        raise LatticeError(f"deck {str(path)!r} names a file that is missing: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise LatticeError(f"deck {str(path)!r} is not one that lume-impact takes ({what})") from error
    _tidy(native)
    check_deck(native)
    return native


def _tidy(native: Any) -> Any:
    """Remove the folder that lume-impact made; it makes it again when somebody runs the object by hand."""
    if native._tempdir is not None:
        native._tempdir.cleanup()
        weakref.finalize(native, shutil.rmtree, native.path, ignore_errors=True)
    return native


def check_deck(native: Any) -> None:
    """Raise for what cannot be run here.

    Raises:
        LatticeError: with what to change.
    """
    from impact.lattice import ele_v_function

    for element in native.lattice:
        kind = element["type"]
        if kind != "comment" and kind not in ele_v_function:
            raise LatticeError(f"element {element.get('name')!r} is of type {kind!r}, which lume-impact cannot write")
    for name, wanted in (("Nbunch", 1), ("Rstartflg", 0)):
        if int(native.header[name]) != wanted:
            raise LatticeError(f"the deck's {name} is {native.header[name]}; only {wanted} can be run here: change it")
    if native._autophase_settings or native.always_autophase:
        raise LatticeError("the deck asks for autophasing: call autophase() on the Impact object and keep the phases")


def used_elements(native: Any) -> list[Element]:
    """Return the elements that IMPACT-T reads: those up to the first stop, without comments."""
    found = []
    for element in native.lattice:
        if element["type"] != "comment":
            found.append(element)
        if element["type"] == "stop":
            break
    return found


def deck_state(native: Any) -> dict[str, Any]:
    """Return what a deck consists of, as plain data that can be pickled."""
    groups = {
        name: {key: value for key, value in vars(group).items() if key != "ele_dict"}
        for name, group in native.group.items()
    }
    return {"input": copy.deepcopy(native.input), "groups": groups}


def deck_from_state(state: Mapping[str, Any]) -> Any:
    """Return the ``impact.Impact`` of plain data."""
    package = lume_impact()
    native = _tidy(package.Impact(verbose=False))
    native.input = copy.deepcopy(state["input"])
    native.ele_bookkeeper()
    for name, values in state["groups"].items():
        group = package.ControlGroup(ele_names=values["ele_names"], var_name=values["var_name"], name=name)
        vars(group).update(copy.deepcopy(values))
        group.ele_dict = native.ele
        native.group[name] = group
    return native


@dataclass
class Deck:
    """A copy of a deck, for one run.

    Attributes:
        header: by lume-impact's names.
        lattice: elements in a row.
        fieldmaps: by file name.
        particle_file: of the deck's own bunch, or None.
    """

    header: dict[str, Any]
    lattice: list[Element]
    fieldmaps: Mapping[str, Any]
    particle_file: str | None

    @classmethod
    def of(cls, native: Any) -> Deck:
        """Copy a deck."""
        header = {**native.header, "Npcol": 1, "Nprow": 1, "Flagdiag": 4}  # one processor, and no statistics
        lattice = [dict(element) for element in used_elements(native)]
        return cls(header, lattice, native.input["fieldmaps"], native.input.get("input_particle_file"))

    @property
    def elements(self) -> dict[str, Element]:
        """Elements by name."""
        return {element["name"]: element for element in self.lattice}

    @property
    def stop(self) -> float:
        """Where the bunch's centre stops [m].

        Raises:
            LatticeError: if no element says so.
        """
        for element in self.lattice:
            if element["type"] == "stop":
                return float(element["s"])
        ends = [float(element["zedge"]) + float(element["L"]) for element in self.lattice if "zedge" in element]
        if not ends:
            raise LatticeError("the deck has neither a stop nor an element with a length: add a line of type -99")
        return ends[-1]

    def place(self, name: str) -> float:
        """Return where an element ends, or acts [m]."""
        element = self.elements[name]
        return float(element["zedge"]) + float(element["L"]) if "zedge" in element else float(element["s"])

    def check_entry(self, z: float) -> None:
        """Raise for a bunch that comes in behind the stop.

        Raises:
            ValidationError: with what to do.
        """
        if not z < self.stop:
            raise ValidationError(
                f"the bunch comes in at {z:g} m of the deck, which stops at {self.stop:g} m: build the model with "
                "start=, the place in the deck [m] where it shall come in"
            )

    def check_places(self, places: Mapping[str, float], begin: float) -> None:
        """Raise for outputs at places [m] that the bunch does not pass.

        Args:
            places: of outputs, by name.
            begin: where the bunch comes in [m].

        Raises:
            LatticeError: with the first of them.
        """
        for name, place in places.items():
            if not begin <= place <= self.stop:
                raise LatticeError(
                    f"output {name!r} is at {place:g} m of the deck, where the bunch goes from {begin:g} m to "
                    f"{self.stop:g} m"
                )

    def time_steps(self) -> list[float]:
        """Return the steps that the deck may take [s]."""
        header = self.header
        steps = [float(header["Dt"]), *(float(e["dt"]) for e in self.lattice if e["type"] == "change_timestep")]
        if int(header["Nemission"]) > 0:
            steps.append(float(header["Temission"]) / int(header["Nemission"]))
        return steps

    def check_finite(self) -> None:
        """Raise for numbers that IMPACT-T would hang on.

        Raises:
            ValidationError: with the name of the first.
        """
        owners = [("header", self.header), *((element["name"], element) for element in self.lattice)]
        for owner, values in owners:
            for name, value in values.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValidationError(f"'{owner}.{name}' is {value!r}, on which IMPACT-T would hang")

    def enter_at(self, z: float) -> None:
        """Let the bunch start further down: what it would have passed is done already, or left out."""
        passed = [e for e in self.lattice if e["type"] in _IN_TURN and float(e["s"]) < z]
        self.lattice = [e for e in self.lattice if all(e is not other for other in passed)]
        for element in passed:
            if element["type"] == "change_timestep":
                self.header["Dt"] = float(element["dt"])
        for element in [e for e in passed if e["type"] == "spacecharge"][-1:]:
            self.lattice.insert(0, {**element, "s": 0.0})  # the centre counts as 0 before the first step

    def shift(self, distance: float) -> None:
        """Move everything down the line [m]."""
        for element in self.lattice:
            for name in ("zedge", "s", "s_begin"):
                if name in element and not (name == "s" and element["s"] <= 0.0):
                    element[name] = float(element[name]) + distance
        self.header["Perdlen"] = float(self.header["Perdlen"]) + distance

    def watch(self, places: Mapping[str, float]) -> dict[str, str]:
        """Have bunches written at these places [m] and nowhere else; returns the file of each."""
        stop = self.stop
        files = {z: f"fort.{_FIRST_FILE + index}" for index, z in enumerate(sorted(set(places.values())))}
        screens = [
            {"name": f"screen_{file}", "type": "write_beam", "s": z, "filename": file, "sample_frequency": 1}
            for z, file in files.items()
        ]
        lattice = [e for e in self.lattice if e["type"] not in ("write_beam", "write_beam_for_restart", "stop")]
        self.lattice = [*lattice, *screens, {"name": "stop", "type": "stop", "s": stop}]
        return {name: files[z] for name, z in places.items()}

    def write(self, folder: Path) -> None:
        """Write everything but the bunch."""
        from impact import fieldmaps, writers

        for name, fieldmap in self.fieldmaps.items():
            fieldmaps.write_fieldmap(str(folder / name), fieldmap)
        writers.write_impact_input(str(folder / "ImpactT.in"), self.header, self.lattice)

    def write_own_bunch(self, folder: Path) -> None:
        """Write the deck's own bunch, if it reads one from a file.

        Raises:
            LatticeError: if the file is missing.
        """
        from impact import writers

        if int(self.header["Flagdist"]) != 16:
            return
        if self.particle_file is None or not os.path.isfile(self.particle_file):
            raise LatticeError(f"the deck reads its bunch from {self.particle_file!r}, which is missing: give beam=")
        writers.write_input_particles_from_file(self.particle_file, str(folder / "partcl.data"), self.header["Np"])

    def content(self) -> bytes:
        """Return all that a run depends on, as bytes."""
        parts = [repr(sorted(self.header.items())).encode()]
        for element in self.lattice:
            kept = {name: value for name, value in element.items() if name not in ("original", "description")}
            parts.append(repr(sorted(kept.items())).encode())
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.write(Path(folder))
            for name in sorted(self.fieldmaps):
                parts += [name.encode(), (Path(folder) / name).read_bytes()]
        if self.particle_file is not None:
            with contextlib.suppress(OSError):
                parts.append(Path(self.particle_file).read_bytes())
        return b"\0".join(parts)
