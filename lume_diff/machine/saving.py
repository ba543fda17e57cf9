"""Saving: from a model to a machine file, with the files that it needs beside it."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel

from lume_diff.errors import ValidationError
from lume_diff.machine.backend import Backend, backend_class
from lume_diff.machine.description import Machine
from lume_diff.machine.loading import build
from lume_diff.machine.sections import Section, file_fields
from lume_diff.machine.site import Site
from lume_diff.machine.variables import VariableSection
from lume_diff.models.facility import FacilityMapping
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.registry import plugins
from lume_diff.variables.text import dump_yaml

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel

_BEAMS = (TorchParticleGroup, TorchMoments)
#: Files that need no others, and can be copied; the rest is referred to where it is.
_ALONE = (".json", ".csv", ".h5", ".hdf5", ".mat", ".npz", ".pt")


def save_model(model: LUMEModel | Machine, path: str | os.PathLike[str]) -> None:
    """Write a machine file that ``load_model`` makes the same model of.

    A model that was loaded is written as its file described it, with the set-points that it has now. Files that stand
    on their own are copied where the new file is in another folder; decks, which name further files, are referred to.
    Any other model is described anew: lattice, bunch and weights are written beside the file.

    Args:
        model: a model, or a description.
        path: of the YAML file; an existing one is replaced.

    Raises:
        ValidationError: for a model that no file can describe: one that is wrapped around Python objects, or whose
            bunch was changed after it was loaded; and for a copy that would overwrite another file.

    Example:
        >>> import tempfile
        >>> from lume_diff.models import BunchFromMoments
        >>> from lume_diff.machine import load_model
        >>> twiss = dict(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6)
        >>> bunch = BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss)
        >>> path = Path(tempfile.mkdtemp()) / "bunch.yaml"
        >>> save_model(bunch, path)
        >>> bool(load_model(path).get("final.sigma_x") == bunch.get("final.sigma_x"))
        True
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValidationError(f"there is no folder {str(path.parent)!r} to write {path.name!r} in: make it first")
    if isinstance(model, Machine):
        machine = _moved(model, path)
    elif isinstance(model.origin, Machine):
        machine = _moved(_with_settings(model.origin, model), path)
    else:
        machine = Machine(model=_NewFiles(path, path.stem).section(model)).placed(Site(path.parent))
        machine = machine.model_copy(update=_differences(model, build(machine)))
    path.write_text(dump_yaml(machine.plain()), encoding="utf-8")


def _differences(model: LUMEModel, fresh: LUMEModel) -> dict[str, Any]:
    """Return what a file must say so that a model that was built from it is like another.

    Raises:
        ValidationError: for a bunch that was changed.
    """
    values = fresh.get(fresh.input_names)
    settings = {
        name: _plain(name, value)
        for name, value in model.get(model.input_names).items()
        if not isinstance(value, _BEAMS) and not _equal(value, values[name])
    }
    variables = {}
    for name, variable in model.supported_variables.items():
        known = fresh.supported_variables[name]
        given = {field: getattr(variable, field, None) for field in VariableSection.model_fields}
        changed = {field: value for field, value in given.items() if value != getattr(known, field, None)}
        if changed:
            ends = {field: list(value) for field, value in changed.items() if isinstance(value, tuple)}
            variables[name] = VariableSection.model_validate({**changed, **ends})
    found = {"set": settings, "variables": variables}
    return {name: value for name, value in found.items() if value}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, _BEAMS):
        raise ValidationError(f"{name!r} was changed, and a file holds numbers and words only: load it from a file")
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


def _equal(value: Any, before: Any) -> bool:
    """Tell whether two values of an input are the same."""
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor):
        return value.shape == before.shape and bool((value.detach() == before.detach()).all())
    return value is before or (isinstance(value, str) and value == before)


def _with_settings(machine: Machine, model: LUMEModel) -> Machine:
    changes = {
        name: _plain(name, value)
        for name, value in model.get(model.input_names).items()
        if value is not None and not _equal(value, model.baseline(name))
    }
    if not changes:
        return machine
    return machine.model_copy(update={"set": {**machine.set, **changes}}).placed(machine.site)


class _NewFiles:
    """Names of new files beside a machine file."""

    def __init__(self, path: Path, prefix: str, fed: bool = False) -> None:
        self.path = path
        self.prefix = prefix
        self.fed = fed

    def new(self, ending: str) -> tuple[Path, str]:
        """Return the path of a new file, and how the machine file names it."""
        name = f"{self.prefix}.{ending}"
        return self.path.parent / name, name

    def part(self, model: LUMEModel, name: str, fed: bool) -> Backend:
        """Return the section of a part of a model, whose files have its name."""
        return _NewFiles(self.path, f"{self.prefix}.{name}", fed).section(model)

    def section(self, model: LUMEModel) -> Backend:
        """Return the section of a model.

        Raises:
            ValidationError: if no backend describes it.
        """
        for backend in plugins("models"):
            found = backend_class(backend).of(model, self)
            if found is not None:
                return found
        raise ValidationError(
            f"a {type(model).__name__} cannot be written to a file: no backend describes it; write a machine file that "
            "names its backend and files by hand, and load the model from there"
        )


def _moved(machine: Machine, path: Path) -> Machine:
    """Return a description whose files are found from the folder of ``path``."""
    site = machine.site
    if path.parent.resolve() == site.folder.resolve():
        return machine
    leaving: list[str] = []

    def move(file: str, exists: bool) -> str:
        source = (site.folder / file).resolve()
        if source.is_relative_to(path.parent.resolve()):
            return source.relative_to(path.parent.resolve()).as_posix()
        if not exists:
            return Path(file).name if site.leaves(file) else file
        if source.suffix.lower() in _ALONE:
            return _copied(source, path.parent, Path(file).name if site.leaves(file) else file)
        leaving.append(file)
        return Path(os.path.relpath(source, path.parent.resolve())).as_posix()

    found = rebased(machine, move)
    if leaving:
        found = found.model_copy(update={"allow_outside": True})
    return found.placed(Site(path.parent, found.allow_outside, site.trust))


def _copied(source: Path, folder: Path, name: str) -> str:
    target = folder / name
    if target.exists() and not filecmp.cmp(source, target, shallow=False):
        raise ValidationError(
            f"{str(target)!r} is there already, and another file than {str(source)!r}: remove it first"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(source, target)
    return Path(name).as_posix()


def rebased(section: Any, move: Callable[[str, bool], str]) -> Any:
    """Return a section with every path in it replaced; ``move`` is told whether the file is read."""
    if isinstance(section, dict):
        return {key: rebased(value, move) for key, value in section.items()}
    if isinstance(section, FacilityMapping) and section.elements is not None and section.elements.file is not None:
        table = section.elements.model_copy(update={"file": move(section.elements.file, True)})
        return section.model_copy(update={"elements": table})
    if not isinstance(section, Section):
        return section
    paths = dict(file_fields(section))
    changes = {}
    for name in section.model_fields_set:
        value = getattr(section, name)
        if name in paths and isinstance(value, str):
            changes[name] = move(value, paths[name].exists)
        elif isinstance(value, (BaseModel, dict)):
            changes[name] = rebased(value, move)
    return section.model_copy(update=changes)
