"""A calibration from a YAML file: model, data, parameters with priors, likelihood and method."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lume_diff.calibration.data.files import UNREADABLE
from lume_diff.calibration.fit import parameters, priors, screens
from lume_diff.calibration.fit.yaml_files import Section
from lume_diff.errors import LumeDiffError, ValidationError, nearest_names
from lume_diff.registry import plugin

if TYPE_CHECKING:
    from lume_diff.calibration.fit.calibration import Calibration
    from lume_diff.models import LUMEModel


# -- priors ------------------------------------------------------------------------------------------------------------


class NormalSection(Section):
    """``{kind: normal, mean: 1.0, std: 0.02}``."""

    kind: Literal["normal"]
    mean: float
    std: float

    def build(self) -> priors.Prior:
        """Return the prior."""
        return priors.Normal(self.mean, self.std)


class LogNormalSection(Section):
    """``{kind: lognormal, median: 1.0e-6, factor: 2.0}``."""

    kind: Literal["lognormal"]
    median: float
    factor: float

    def build(self) -> priors.Prior:
        """Return the prior."""
        return priors.LogNormal(self.median, self.factor)


class UniformSection(Section):
    """``{kind: uniform, low: -1.0, high: 1.0}``."""

    kind: Literal["uniform"]
    low: float
    high: float

    def build(self) -> priors.Prior:
        """Return the prior."""
        return priors.Uniform(self.low, self.high)


class BoundedSection(Section):
    """``{kind: bounded, mean: 0.0, std: 1.0, low: -0.5, high: 3.0}``."""

    kind: Literal["bounded"]
    mean: float
    std: float
    low: float = float("-inf")
    high: float = float("inf")

    def build(self) -> priors.Prior:
        """Return the prior."""
        return priors.Bounded(self.mean, self.std, self.low, self.high)


PriorSection = Annotated[
    NormalSection | LogNormalSection | UniformSection | BoundedSection, Field(discriminator="kind")
]

# -- parameters --------------------------------------------------------------------------------------------------------


class InputSection(Section):
    """``{kind: scale, inputs: Q1.k1, prior: ...}``; ``offset`` and ``value`` likewise, with a ``unit`` if wanted."""

    kind: Literal["scale", "offset", "value"]
    inputs: str | list[str]
    prior: PriorSection
    unit: str | None = None
    name: str | None = None

    def build(self) -> parameters.Parameter:
        """Return the parameter."""
        if self.kind == "scale":
            if self.unit is not None:
                raise ValidationError("a scale has no unit: leave 'unit' out")
            return parameters.Scale(self.inputs, self.prior.build(), name=self.name)
        kind = parameters.Offset if self.kind == "offset" else parameters.Value
        return kind(self.inputs, self.prior.build(), unit=self.unit, name=self.name)


class MomentumSection(Section):
    """``{kind: momentum, strengths: [Q1.k1, C1.angle], energy: mean_energy, prior: ...}``."""

    kind: Literal["momentum"]
    strengths: str | list[str]
    prior: PriorSection
    energy: str | list[str] | None = None
    name: str = "beam momentum"

    def build(self) -> parameters.Parameter:
        """Return the parameter."""
        return parameters.BeamMomentum(self.strengths, self.prior.build(), energy=self.energy, name=self.name)


class CameraSection(Section):
    """``{kind: blur, prior: ...}``; ``magnification``, of one ``axis`` if wanted, and ``rotation`` likewise."""

    kind: Literal["blur", "magnification", "rotation"]
    prior: PriorSection
    axis: Literal["x", "y", "xy"] = "xy"
    name: str | None = None

    def build(self) -> parameters.Parameter:
        """Return the parameter."""
        named = {} if self.name is None else {"name": self.name}
        prior = self.prior.build()
        if self.kind == "magnification":
            return screens.Magnification(prior, axis=self.axis, **named)
        return (screens.Blur if self.kind == "blur" else screens.Rotation)(prior, **named)


ParameterSection = Annotated[InputSection | MomentumSection | CameraSection, Field(discriminator="kind")]

# -- model and data ----------------------------------------------------------------------------------------------------


class ModelSection(Section):
    """Files that make a line, a machine file, or a function of Python that returns a model.

    Attributes:
        machine: a machine file.
        lattice, beam: files as ``lume-diff gradient`` takes them.
        line, trust: which line of the lattice file; whether to run lattices that are programs.
        entry: ``module:function``, or ``file.py:function``; called without arguments.
        set: inputs that are not as the files have them.
    """

    machine: Path | None = None
    lattice: Path | None = None
    beam: Path | None = None
    line: str | None = None
    trust: bool = False
    entry: str | None = None
    set: dict[str, float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> ModelSection:
        ways = [self.lattice is not None or self.beam is not None, self.machine is not None, self.entry is not None]
        if sum(ways) != 1 or (self.lattice is None) != (self.beam is None):
            raise ValueError("give 'lattice' and 'beam', or 'machine' or 'entry' instead")
        if self.entry is not None and ":" not in self.entry:
            raise ValueError(f"entry is {self.entry!r}; expected 'module:function' or 'file.py:function'")
        return self

    def build(self, folder: Path) -> LUMEModel:
        """Return the model; relative paths start from ``folder``."""
        from lume_diff.models import CheetahModel

        model: LUMEModel
        if self.lattice is not None and self.beam is not None:
            named = {} if self.line is None else {"name": self.line}
            model = CheetahModel.from_file(folder / self.lattice, folder / self.beam, trust=self.trust, **named)
        elif self.machine is not None:
            model = plugin("loaders", "machine")(folder / self.machine, trust=self.trust or None)
        else:
            model = _called(str(self.entry), folder)
        if self.set:
            model.set(self.set)
        return model


class DataSection(Section):
    """A file of images or numbers and what its arrays are; a file that ``to_npz`` or ``to_hdf5`` wrote needs no more.

    Attributes:
        file: NPZ, HDF5 (written by ``to_hdf5``) or CSV (numbers).
        settings: variable of the model by array or column of the file, such as ``{k1: Q1.k1}``.
        screen: variable that predicts the images.
        images: array of the images.
        outputs: variable of the model by array or column, for numbers.
        sigma: standard error of one reading, by variable.
        pixel_size: [m], or with a unit, in place of the file's.
        noise: standard deviation of a pixel [intensity] in place of an estimate.
        orientation: ``upper`` for images whose row 0 is on top.
        background: whether to subtract the background that dark corners show.
    """

    file: Path
    settings: dict[str, str] | None = None
    screen: str | None = None
    images: str | None = None
    outputs: dict[str, str] | None = None
    sigma: dict[str, float | str] | None = None
    pixel_size: float | str | None = None
    noise: float | None = None
    orientation: Literal["lower", "upper"] | None = None
    background: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> DataSection:
        if self.screen is not None and self.outputs is not None:
            raise ValueError("give 'screen' for images or 'outputs' for numbers, not both")
        is_csv = self.file.suffix.lower() == ".csv"
        if self.screen is not None and is_csv:
            raise ValueError("a CSV file holds numbers: give 'outputs' instead of 'screen'")
        if is_csv and self.settings is None:
            raise ValueError("a CSV file needs 'settings': variables of the model by column, such as {k1: Q1.k1}")
        numbers = self.outputs is not None or is_csv
        foreign = ("images", "pixel_size", "noise", "orientation", "background") if numbers else ()
        wrong = [name for name in foreign if getattr(self, name)]
        if wrong:
            why = "'outputs' makes these numbers" if self.outputs is not None else "a CSV file holds numbers"
            raise ValueError(f"{wrong[0]!r} is for images, but {why}: leave it out")
        if self.screen is not None and self.sigma is not None:
            raise ValueError("'sigma' is for numbers, but 'screen' makes these images: give 'noise' instead")
        return self

    def build(self, folder: Path) -> Any:
        """Return the data set; a relative path starts from ``folder``."""
        from lume_diff.calibration.data.scalars import Dataset
        from lume_diff.calibration.data.screens import ScreenDataset

        path = folder / self.file
        if not path.is_file():
            raise ValidationError(f"data file {str(path)!r} does not exist")
        options = {
            name: value
            for name in ("settings", "screen", "images", "outputs", "sigma", "pixel_size", "noise", "orientation")
            if (value := getattr(self, name)) is not None
        }
        suffix = path.suffix.lower()
        if suffix == ".csv":
            return Dataset.from_csv(path, **options)
        if suffix not in (".npz", ".h5", ".hdf5"):
            raise ValidationError(f"data file {str(path)!r}: expected .npz, .h5 or .csv")
        kind: Any = Dataset if self.outputs is not None or _holds_numbers(path) else ScreenDataset
        if suffix == ".npz":
            data = kind.from_npz(path, **options)
        elif options:
            raise ValidationError(f"data file {str(path)!r} holds everything: leave {', '.join(options)} out")
        else:
            data = kind.from_hdf5(path)
        if self.background and kind is Dataset:
            raise ValidationError(f"data file {str(path)!r} holds numbers, which have no background: leave it out")
        return data.subtract_background() if self.background else data


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]


#: One data set, or a list of them.
DataSections = Annotated[list[DataSection], BeforeValidator(_listed), Field(min_length=1)]


def _holds_numbers(path: Path) -> bool:
    """Tell whether a file was written by a ``Dataset``."""
    import h5py
    import numpy as np

    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as stream:
                arrays = np.load(stream, allow_pickle=False)
                header = str(arrays["header"]) if "header" in getattr(arrays, "files", ()) else ""
        else:
            with h5py.File(path) as file:
                header = str(file.attrs.get("format", ""))
    except UNREADABLE:
        return False  # who reads the file says what is wrong with it
    return "lume_diff.Dataset" in header


# -- the whole ---------------------------------------------------------------------------------------------------------


class LikelihoodSection(Section):
    """``{name: moments, options: {robust: 3.0}}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class CalibrationConfig(Section):
    """What ``lume-diff calibrate`` is told.

    Attributes:
        model, data, parameters: see there; a data set or a list of them.
        likelihood: a name, a section with options, or one of these for each data set.
        method, steps, starts, seed: see ``Calibration.run``.
    """

    model: ModelSection
    data: DataSections
    parameters: list[ParameterSection] = Field(min_length=1)
    likelihood: str | LikelihoodSection | list[str | LikelihoodSection] | None = None
    method: Literal["auto", "levenberg-marquardt", "lbfgs", "adam"] = "auto"
    steps: int | None = Field(default=None, ge=1)
    starts: int = Field(default=1, ge=1)
    seed: int = 0

    def build(self, folder: Path) -> Calibration:
        """Return the calibration; relative paths start from ``folder``."""
        from lume_diff.calibration.fit.calibration import Calibration

        found: list[Any] = [section.build(folder) for section in self.data]
        given = None if self.likelihood is None else [_likelihood(one) for one in _listed(self.likelihood)]
        if given is not None and len(given) == 1:
            given = given * len(found)
        return Calibration(self.model.build(folder), found, [p.build() for p in self.parameters], given)


def _likelihood(given: str | LikelihoodSection) -> Any:
    if isinstance(given, str):
        return given
    made = plugin("likelihoods", given.name)
    try:
        return made(**given.options)
    except TypeError as error:
        raise ValidationError(f"options of the likelihood {given.name!r}: {error}") from None


def _called(entry: str, folder: Path) -> LUMEModel:
    """Return what a function of a module or a file makes."""
    from lume_diff.models import LUMEModel

    place, _, name = entry.rpartition(":")
    if place.endswith(".py"):
        if not (folder / place).is_file():
            raise ValidationError(f"entry {entry!r}: {str(folder / place)!r} does not exist")
        known = runpy.run_path(str(folder / place))
    else:
        try:
            known = vars(importlib.import_module(place))
        except ImportError as error:
            raise ValidationError(f"entry {entry!r} cannot be imported: {error}") from error
    if name not in known:
        raise ValidationError(f"entry {entry!r}: {place!r} has no {name!r}{nearest_names(name, list(known))}")
    model = known[name]()
    if not isinstance(model, LUMEModel):
        raise LumeDiffError(f"entry {entry!r} returned {type(model).__name__}; expected a model")
    return model
