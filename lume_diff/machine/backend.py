"""Backend: what a machine file says about one model, and how that is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from lume_diff.errors import MissingExtraError, ValidationError, nearest_names
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.sections import Count, File, OutFile, Positive, Section, Setting
from lume_diff.machine.site import Site, beam_of
from lume_diff.registry import plugin, plugins

if TYPE_CHECKING:
    from lume_diff.blackbox import FiniteDifference
    from lume_diff.models import LUMEModel


class Files(Protocol):
    """Where the files of a machine are written.

    Attributes:
        fed: whether the model gets its beam from the one before it.
    """

    fed: bool

    def new(self, ending: str) -> tuple[Path, str]:
        """Return the path of a new file, and how the machine file names it."""

    def part(self, model: LUMEModel, name: str, fed: bool) -> Backend:
        """Return the section of a part of a model, whose files have its name."""


class Backend(Section, ABC):
    """The section of one model; a subclass that an entry point of the group ``lume_diff.models`` names is a backend.

    Its fields are pydantic's, paths are of the type ``File``. A section does nothing when it is read; ``build`` does.

    Attributes:
        backend: the name of the entry point.
        set: inputs that are not as the model's files have them; ``reset`` goes back to these.
        trust: whether files that are programs may be run.
    """

    backend: str
    set: dict[str, Setting] = Field(default_factory=dict, description="values of inputs, by name")
    trust: bool = Field(default=False, description="whether files that are programs may be run")

    @abstractmethod
    def build(self, site: Site) -> LUMEModel:
        """Return the model, without the values of ``set``."""

    def runs_code(self, site: Site) -> str | None:
        """Return what would be run when the model is built, None for nothing but data."""
        return None

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Return a model with the same variables that is never evaluated, None where that would run more than our code.

        Args:
            site: where its files are.

        Raises:
            LumeDiffError: for files that are wrong; the message is reported.
        """
        return None

    def mistakes(self, node: Node, where: str, site: Site) -> list[Problem]:
        """Return what is wrong beyond single fields and files.

        Args:
            node: the section as it was read, with its lines.
            where: its place in the file.
            site: where the file is, and what may be opened.
        """
        return []

    @classmethod
    def of(cls, model: LUMEModel, files: Files) -> Backend | None:
        """Return the section that makes such a model again, None if this backend does not.

        Args:
            model: any model.
            files: where what does not fit into the section is written.

        Raises:
            LumeDiffError: for a model of this backend that no file can describe.
        """
        return None

    def model(self, site: Site) -> LUMEModel:
        """Return the model at the values of ``set``.

        Raises:
            ValidationError: for a file that would be run and is not trusted.
        """
        code = self.runs_code(site)
        if code is not None and not site.allows(self.trust):
            raise ValidationError(untrusted(code, site))
        model = self.build(site)
        if self.set:
            model.set(self.set)
            model.make_baseline()
        return model


def untrusted(code: str, site: Site) -> str:
    """Return why a file is not opened."""
    fix = "say 'trust: true' in this section if you trust it" if site.trust is None else "the caller does not trust it"
    return f"{code}, and would be run: {fix}"


def backend_class(name: str) -> type[Backend]:
    """Return the section of a backend.

    Raises:
        ValidationError: if there is none of the name, or it is no ``Backend``.
        MissingExtraError: if it cannot be imported.
    """
    known = plugins("models")
    if name not in known:
        raise ValidationError(f"there is no backend {name!r}{nearest_names(name, known)}")
    found = plugin("models", name)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise MissingExtraError(f"backend {name!r} is announced by {found!r}, which is no lume_diff.machine.Backend")
    return found


# -- beams -------------------------------------------------------------------------------------------------------------


class BunchSection(Section):
    """A bunch by its moments: ``{mean_energy: 1.0e+8, charge: 1.0e-10, beta_x: 10, norm_emit_x: 1.0e-6, ...}``.

    Attributes:
        n_particles, seed, species: see ``BunchFromMoments``, as all others.
    """

    n_particles: Annotated[int, Field(ge=7)] = 10_000
    seed: Count = 0
    species: str = "electron"
    mean_energy: Positive
    charge: Positive
    beta_x: Positive
    beta_y: Positive
    norm_emit_x: Positive
    norm_emit_y: Positive
    alpha_x: float = 0.0
    alpha_y: float = 0.0
    mean_x: float = 0.0
    mean_px: float = 0.0
    mean_y: float = 0.0
    mean_py: float = 0.0
    sigma_t: Annotated[float, Field(ge=0.0)] = 0.0
    sigma_energy: Annotated[float, Field(ge=0.0)] = 0.0
    cov_t__energy: float = 0.0

    def values(self) -> dict[str, Any]:
        """Return the moments that were given."""
        return {name: value for name, value in self.dumped().items() if name not in ("n_particles", "seed", "species")}

    def bunch(self) -> Any:
        """Return the bunch."""
        from lume_diff.models import BunchFromMoments

        made = BunchFromMoments(self.n_particles, self.seed, species=self.species, **self.values())
        return made.get("final_particles")


def _form(value: Any) -> str:
    return "file" if isinstance(value, str) else "bunch"


Beam = Annotated[Annotated[File, Tag("file")] | Annotated[BunchSection, Tag("bunch")], Discriminator(_form)]


class BeamBackend(Backend):
    """A model that tracks a beam.

    Attributes:
        beam: the incoming bunch: an openPMD or Astra file, or its moments; left out where the stage before has it.
    """

    beam: Beam | None = None
    #: Whether it can do without a beam.
    needs_beam: ClassVar[bool] = True

    def incoming(self, site: Site) -> Any:
        """Return the beam, or the path of its file.

        Raises:
            ValidationError: if there is none.
        """
        if isinstance(self.beam, str):
            return site.path(self.beam)
        if self.beam is not None:
            return self.beam.bunch()
        found = beam_of(site.upstream)
        if found is None and self.needs_beam:
            raise ValidationError("has no 'beam', and no stage before it that hands one over: add it")
        return found


# -- black boxes -------------------------------------------------------------------------------------------------------


class DifferenceSection(Section):
    """How derivatives are taken; see ``FiniteDifference``."""

    scheme: Literal["central", "forward", "fourth"] = "central"
    step: Literal["auto"] | Positive | dict[str, Positive] = "auto"
    particles: Literal["per_particle", "collective", "stop"] = "per_particle"
    check: bool = True
    native: bool = False

    def build(self) -> FiniteDifference:
        """Return it."""
        from lume_diff.blackbox import FiniteDifference

        return FiniteDifference(**self.dumped())


def _gradient_form(value: Any) -> str:
    return "name" if isinstance(value, str) else "differences"


Gradient = Annotated[
    Annotated[Literal["native", "none"], Tag("name")] | Annotated[DifferenceSection, Tag("differences")],
    Discriminator(_gradient_form),
]


class BoxBackend(Backend):
    """A code without derivatives of its own.

    Attributes:
        controls, outputs: names of inputs and outputs; left out for those that the code suggests.
        gradient: how derivatives are taken; ``native`` for the code's own, ``none`` for no gradient.
        workers: processes of its own that it runs in.
        timeout: how long a run may take [s].
        archive: a file that keeps every run.
    """

    controls: list[str] | None = None
    outputs: list[str] | None = None
    gradient: Gradient = Field(default_factory=DifferenceSection)
    workers: Count | None = None
    timeout: Positive | None = None
    archive: OutFile | None = None

    def options(self, site: Site) -> dict[str, Any]:
        """Return the arguments that all codes share."""
        found: dict[str, Any] = {"controls": self.controls, "outputs": self.outputs}
        if isinstance(self.gradient, DifferenceSection):
            found["gradient"] = self.gradient.build()
        else:
            found["gradient"] = None if self.gradient == "none" else self.gradient
        found |= {name: value for name in ("workers", "timeout") if (value := getattr(self, name)) is not None}
        if self.archive is not None:
            found["archive"] = site.path(self.archive)
        return found


class LatticeBoxBackend(BoxBackend, BeamBackend):
    """A code with a lattice, whose optics or bunch it computes.

    Attributes:
        periodic: whether optics is the periodic solution.
        initial: what a line starts with, such as ``{beta_x: 10, beta_y: 5}``.
    """

    needs_beam: ClassVar[bool] = False
    periodic: bool | None = None
    initial: Mapping[str, float] | None = None

    def optics_options(self, site: Site) -> dict[str, Any]:
        """Return the arguments of codes that compute optics too."""
        return {
            **self.options(site),
            "beam": self.incoming(site),
            "periodic": self.periodic,
            "initial": None if self.initial is None else dict(self.initial),
        }
