"""Loading: from a machine file to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lume_diff.errors import LumeDiffError
from lume_diff.machine.checking import check, unknown
from lume_diff.machine.description import Machine
from lume_diff.machine.mapping import located
from lume_diff.machine.nodes import Node, read_nodes
from lume_diff.machine.problems import Problem, raise_problems
from lume_diff.machine.reading import Reading
from lume_diff.models import FacilityModel
from lume_diff.models.facility.mistakes import MappingError

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


def load_model(
    path: str | os.PathLike[str], *, trust: bool | None = None, changes: Mapping[str, Any] | None = None
) -> LUMEModel:
    """Build the model that a machine file describes.

    Nothing is imported or evaluated from the file: it holds plain data, backends go by the names under which installed
    packages announce them, and a lattice that is a program (Tao, MAD-X, Ocelot) is opened only where it is trusted.

    Args:
        path: of the YAML file; paths in it start from its folder and stay inside, unless it says ``allow_outside``.
        trust: whether lattices that are programs may be run: True, False, or what each section says if None. Give
            False for files of others.
        changes: values for places in the file, ``{"stages.injector": "surrogate.yaml"}``.

    Returns:
        The model at the set-points of the file, which are those that ``reset`` goes back to; ``model.origin`` is the
        ``Machine`` that the file describes.

    Raises:
        ValidationError: with every mistake in the file and its line.
        LumeDiffError: of the backends, for files that are not what they should be.

    Gradient:
        That of the backends.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "bunch.yaml"
        >>> twiss = "mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 5, norm_emit_x: 1e-6, norm_emit_y: 1e-6"
        >>> _ = path.write_text(f"model: {{backend: bunch-from-moments, {twiss}}}\\nset: {{alpha_x: 0.5}}")
        >>> load_model(path).get("alpha_x")
        tensor(0.5000, dtype=torch.float64)
    """
    reading = Reading(Path(path), trust=trust, changes=changes)
    if reading.problems:
        raise_problems(os.fspath(path), check(path, trust=trust, changes=changes))
    return build(reading.read(), None, os.fspath(path))


def build(machine: Machine, upstream: LUMEModel | None = None, path: str = "") -> LUMEModel:
    """Return the model that a description describes.

    Args:
        machine: the description.
        upstream: the model that hands its beam over.
        path: of the file, for messages.

    Raises:
        LumeDiffError: see ``load_model``.
    """
    model = machine.model.model(machine.site.behind(upstream))
    model = _with_facility(machine, model, path)
    fresh, problems = [], []
    for name, section in machine.variables.items():
        known = model.supported_variables
        try:
            if name not in known:
                raise LumeDiffError(unknown(name, known))
            fresh.append(section.applied(known[name]))
        except LumeDiffError as error:
            problems.append(("variables", name, error))
    for name in machine.set:
        if name not in model.supported_variables:
            problems.append(("set", name, LumeDiffError(unknown(name, model.supported_variables))))
    if problems:
        raise_problems(path or "the machine", _located(path, problems))
    if fresh:
        model.describe(fresh)
    if machine.set:
        model.set(machine.set)
        model.make_baseline()
    model.origin = machine
    return model


def _with_facility(machine: Machine, model: LUMEModel, path: str) -> LUMEModel:
    """Return a model with its calibration and under the facility's names.

    A calibration that was made with the model's own names acts beneath the mapping, any other on top of it.
    """
    site = machine.site
    saved = None if machine.calibration is None else site.path(machine.calibration)
    if saved is not None:
        from lume_diff.calibration.fit.saved import acted_names, calibrated

        if machine.mapping is None or acted_names(saved) <= set(model.input_names):
            model, saved = calibrated(model, saved), None
    if machine.mapping is not None:
        mapping, folder = machine.facility()
        try:
            model = FacilityModel(model, mapping, folder=folder)
        except MappingError as error:
            reading = Reading(Path(path)) if path else None
            if reading is None or reading.mapping_node is None:
                raise
            file = reading.mapping_file
            raise_problems(path, located(error, reading.mapping_node, "" if file else "mapping", file))
    return model if saved is None else calibrated(model, saved)


def _located(path: str, problems: list[tuple[str, str, LumeDiffError]]) -> list[Problem]:
    """Return mistakes that were seen in the model, with their lines in the file."""
    root = read_nodes(Path(path), []) if path else None
    root = root if root is not None else Node({}, 0)
    found = []
    for section, name, error in problems:
        node = root.child(section)
        found.append(Problem(0 if node is None else node.line_of(name), f"{section}.{name}", str(error)))
    return found
