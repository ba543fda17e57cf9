"""Backend ``lume-torch``: a surrogate that lume-torch or lume-model has dumped."""

from __future__ import annotations

from lume_diff.errors import LumeDiffError
from lume_diff.machine.backend import Backend
from lume_diff.machine.backends.torch import stand_in_of
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.sections import File
from lume_diff.machine.site import OUTSIDE, Site
from lume_diff.models import EnsembleModel, LUMEModel, TorchModel
from lume_diff.models.surrogates.description import Description, read_description
from lume_diff.models.surrogates.spread import with_spread


class LumeTorchBackend(Backend):
    """``{backend: lume-torch, file: surrogate.yaml}``, or just ``surrogate.yaml``.

    Attributes:
        file: the YAML file of a ``TorchModel``, ``TorchModule`` or ``NNEnsemble``. Of weights only tensors and layers
            are read; TorchScript, which is a program, with ``trust: true``.
    """

    file: File

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        path = site.path(self.file)
        kind = EnsembleModel if read_description(path).kind == "NNEnsemble" else TorchModel
        return kind.from_file(path, allow_torchscript=site.allows(self.trust))

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Return a model with the variables of the file and without weights."""
        if site.wrong(self.file):
            return None
        found = read_description(site.path(self.file))
        outputs = with_spread(found.outputs) if found.kind == "NNEnsemble" else found.outputs
        return stand_in_of(found.inputs, outputs)

    def mistakes(self, node: Node, where: str, site: Site) -> list[Problem]:
        """Tell files of the surrogate that are not there, or outside."""
        if site.wrong(self.file):
            return []
        try:
            found = read_description(site.path(self.file))
        except LumeDiffError:
            return []  # its stand-in tells
        return [
            Problem(node.line_of("file"), where, problem, self.file)
            for name in named_files(found)
            if (problem := _wrong(found, name, site))
        ]


def named_files(found: Description) -> list[str]:
    """Return the files that a surrogate names."""
    module = found.module["weights"] if isinstance(found.module, dict) else found.module
    parts = [module, *found.members, *found.input_transformers, *found.output_transformers]
    return [part for part in parts if isinstance(part, str)]


def _wrong(found: Description, name: str, site: Site) -> str | None:
    path = found.beside(name)
    if not site.outside and not path.resolve().is_relative_to(site.folder.resolve()):
        return f"{name!r} {OUTSIDE}"
    return None if path.is_file() else f"there is no file {name!r} beside {found.path.name!r}"
