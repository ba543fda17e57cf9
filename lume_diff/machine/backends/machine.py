"""Backend ``machine``: what another machine file describes, as one stage or on its own."""

from __future__ import annotations

from lume_diff.machine.backend import Backend
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class MachineBackend(Backend):
    """``{backend: machine, file: surrogate.yaml}``, or just ``surrogate.yaml``.

    Attributes:
        file: a machine file; what it says about an IOC is left aside.
    """

    file: File

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.machine.loading import build
        from lume_diff.machine.reading import read_machine

        machine = read_machine(site.path(self.file), trust=site.trust, site=site)
        return build(machine, site.upstream)

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Return that of the other file."""
        from lume_diff.machine.checking import Inspection

        if site.wrong(self.file) or self._is_being_read(site):
            return None
        return Inspection(site.path(self.file), site).stand_in

    def mistakes(self, node: Node, where: str, site: Site) -> list[Problem]:
        """Return the mistakes of the other file."""
        from lume_diff.machine.checking import Inspection

        if site.wrong(self.file):
            return []
        if self._is_being_read(site):
            return [Problem(node.line, where, f"{self.file!r} is being read already: a machine cannot hold itself")]
        found = Inspection(site.path(self.file), site).problems
        return [problem._replace(file=problem.file or self.file) for problem in found]

    def _is_being_read(self, site: Site) -> bool:
        """Tell whether the other file is the one that names it, or holds that one."""
        return site.path(self.file).resolve() in site.within
