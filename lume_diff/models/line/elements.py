"""What a beamline is made of: a flat list of element descriptions read from a Cheetah segment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lume_diff.errors import LatticeError, ValidationError

if TYPE_CHECKING:
    import cheetah


@dataclass(frozen=True)
class Attribute:
    """A number that can be set on an element.

    Attributes:
        name: as in ``"<element>.<name>"``.
        unit: its unit.
        description: what it is.
        feature: Cheetah's attribute that holds it.
        component: which entry of that attribute, where it is a vector.
        scale: size of a typical change, in the unit.
    """

    name: str
    unit: str
    description: str
    feature: str
    component: int | None = None
    scale: float | None = None


def _scalar(name: str, unit: str, description: str, scale: float | None = None) -> Attribute:
    return Attribute(name, unit, description, name, None, scale)


def _pair(name: str, unit: str, description: str) -> tuple[Attribute, Attribute]:
    return (
        Attribute(f"{name}_x", unit, f"horizontal {description}", name, 0, 1e-4),
        Attribute(f"{name}_y", unit, f"vertical {description}", name, 1, 1e-4),
    )


_LENGTH = _scalar("length", "m", "length")
_TILT = _scalar("tilt", "rad", "rotation about the beam axis", 1e-3)
_MISALIGNMENT = _pair("misalignment", "m", "displacement")
_BEND = (
    _LENGTH,
    _scalar("angle", "rad", "bending angle", 1e-3),
    _scalar("k1", "1/m^2", "normalised gradient", 0.1),
    _TILT,
    _scalar("gap", "m", "full gap"),
    _scalar("gap_exit", "m", "full gap at the exit"),
    _scalar("fringe_integral", "1", "field integral of the entrance fringe"),
    _scalar("fringe_integral_exit", "1", "field integral of the exit fringe"),
)
_CAVITY = (_LENGTH, _scalar("voltage", "V", "voltage"))

#: The adjustable numbers of every class of element that Cheetah 0.8.4 has.
ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "Drift": (_LENGTH,),
    "Marker": (),
    "Quadrupole": (_LENGTH, _scalar("k1", "1/m^2", "normalised gradient", 0.1), _TILT, *_MISALIGNMENT),
    "Dipole": (
        *_BEND,
        _scalar("dipole_e1", "rad", "angle of the entrance face"),
        _scalar("dipole_e2", "rad", "angle of the exit face"),
    ),
    "RBend": (
        *_BEND,
        _scalar("rbend_e1", "rad", "angle of the entrance face against a parallel one"),
        _scalar("rbend_e2", "rad", "angle of the exit face against a parallel one"),
    ),
    "Solenoid": (_LENGTH, _scalar("k", "1/m", "normalised strength"), *_MISALIGNMENT),
    "HorizontalCorrector": (_LENGTH, _scalar("angle", "rad", "horizontal kick", 1e-4)),
    "VerticalCorrector": (_LENGTH, _scalar("angle", "rad", "vertical kick", 1e-4)),
    "CombinedCorrector": (
        _LENGTH,
        _scalar("horizontal_angle", "rad", "horizontal kick", 1e-4),
        _scalar("vertical_angle", "rad", "vertical kick", 1e-4),
    ),
    "Cavity": (*_CAVITY, _scalar("phase", "deg", "phase, 0 on crest", 1.0), _scalar("frequency", "Hz", "frequency")),
    "TransverseDeflectingCavity": (
        *_CAVITY,
        _scalar("phase", "1", "phase in turns (2 pi rad)", 1e-3),
        _scalar("frequency", "Hz", "frequency"),
        _TILT,
        *_MISALIGNMENT,
    ),
    "Undulator": (
        _LENGTH,
        _scalar("period", "m", "period"),
        _scalar("kx", "1", "undulator parameter of the vertical field"),
        _scalar("ky", "1", "undulator parameter of the horizontal field"),
    ),
    "Sextupole": (_LENGTH, _scalar("k2", "1/m^3", "normalised strength"), _TILT, *_MISALIGNMENT),
    "Screen": (
        *_MISALIGNMENT,
        *_pair("pixel_size", "m", "size of a pixel"),
        _scalar("kde_bandwidth", "m", "width of the smoothing kernel"),
    ),
    "BPM": _MISALIGNMENT,
    "Aperture": (_scalar("x_max", "m", "half width"), _scalar("y_max", "m", "half height")),
    "CustomTransferMap": (_LENGTH,),
    "SpaceChargeKick": (
        _scalar("effect_length", "m", "length over which the kick acts"),
        _scalar("grid_extent_x", "1", "half width of the grid in sigmas"),
        _scalar("grid_extent_y", "1", "half height of the grid in sigmas"),
        _scalar("grid_extent_tau", "1", "half length of the grid in sigmas"),
    ),
}

#: Classes that can be switched on and off.
SWITCHED = ("Screen", "BPM", "Aperture")

_OPTIONS = (
    "tracking_method",
    "num_steps",
    "fringe_at",
    "cavity_type",
    "method",
    "resolution",
    "binning",
    "is_blocking",
    "shape",
)


@dataclass
class Element:
    """One element of a line.

    Attributes:
        name: the knob's name; pieces of a split element (``Q1#1``, ``Q1#2``) share it.
        kind: name of Cheetah's class, with the module for one that is not Cheetah's own.
        values: its numbers, by attribute name.
        trained: the ``nn.Parameter`` that holds a number, and which entry of it, by attribute name.
        attributes: the numbers that can be set on it.
        options: what else Cheetah knows of it, by Cheetah's names.
        is_active: whether it is switched on.
        native: a copy of the Cheetah element, for what only Cheetah can do.
    """

    name: str
    kind: str
    values: dict[str, Tensor]
    trained: dict[str, tuple[nn.Parameter, int | None]] = field(default_factory=dict)
    attributes: tuple[Attribute, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    is_active: bool = True
    native: Any = None

    @property
    def length(self) -> Tensor:
        """Its length [m]."""
        return self.values["length"]

    def number(self, name: str) -> Tensor:
        """Return one of its numbers as it is now: of a parameter, what its owner has trained it to."""
        if name not in self.trained:
            return self.values[name]
        parameter, component = self.trained[name]
        return parameter if component is None else parameter[..., component]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters that its owner has put in it, by Cheetah's names."""
        features = {attribute.name: attribute.feature for attribute in self.attributes}
        for name, (parameter, _) in self.trained.items():
            yield features.get(name, name), parameter
        if self.native is not None:
            yield from self.native.named_parameters()

    def option(self, name: str, default: Any = None) -> Any:
        """Return one of Cheetah's settings that is not a number."""
        return self.options.get(name, default)

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of a screen's image in pixels, after binning."""
        width, height = self.options["resolution"]
        binning = self.options["binning"]
        return int(width // binning), int(height // binning)

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Carry ``.to()`` to its numbers, after the parameters themselves have been converted."""
        for name, value in self.values.items():
            self.values[name] = self.number(name) if name in self.trained else fn(value)
        if self.native is not None:
            self.native._apply(fn)
            self.native.__dict__.pop("_cache", None)  # Cheetah's transfer maps are those of the numbers before.

    def __getstate__(self) -> dict[str, Any]:
        """Leave graphs behind: a tensor that hangs on one cannot be copied."""
        values = {
            name: value.detach() if value.requires_grad and not value.is_leaf else value
            for name, value in self.values.items()
        }
        return {**self.__dict__, "values": values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.values.update({name: self.number(name) for name in self.trained})


def read_segment(
    segment: cheetah.Segment, dtype: torch.dtype, device: torch.device, with_natives: bool = False
) -> list[Element]:
    """Return the elements of a segment, nested segments unrolled, in the order of the beam.

    Numbers are cast to one dtype, because Cheetah mixes what was given with torch's default. The segment itself is
    neither changed nor kept; trainable parameters are, since their owner goes on training them.
    Copies of Cheetah's elements come with those that only Cheetah can track, or with all.

    Raises:
        LatticeError: for an empty segment, NaN, or infinity in anything but an aperture.
        ValidationError: for a trainable parameter of another dtype.
    """
    import cheetah

    elements = [_read_element(native, dtype, device, cheetah, with_natives) for native in _flattened(segment)]
    if not elements:
        raise LatticeError(f"segment {segment.name!r} has no elements: a line needs at least one")
    return elements


def _flattened(segment: cheetah.Segment) -> Iterator[Any]:
    for element in segment.elements:
        if hasattr(element, "flattened"):
            yield from _flattened(element.flattened())
        else:
            yield element


def _read_element(native: Any, dtype: torch.dtype, device: torch.device, cheetah: Any, with_native: bool) -> Element:
    owner = next(kind for kind in type(native).__mro__ if getattr(cheetah.accelerator, kind.__name__, None) is kind)
    kind, is_known = type(native).__name__, type(native) is owner and owner.__name__ in ATTRIBUTES
    attributes = ATTRIBUTES.get(owner.__name__, ())
    needs_native = with_native or not is_known or kind == "SpaceChargeKick"
    element = Element(
        name=native.name.partition("#")[0],
        kind=kind if is_known else f"{type(native).__module__}.{kind}",
        values={},
        attributes=attributes,
        options={name: getattr(native, name) for name in _OPTIONS if hasattr(native, name)},
        is_active=bool(native.is_active) if is_known and kind in SWITCHED else True,
        native=_copy(native, dtype, device) if needs_native else None,
    )
    features = {"length": ("length", None), **{a.name: (a.feature, a.component) for a in attributes}}
    if is_known and kind == "CustomTransferMap":
        features["transfer_map"] = ("predefined_transfer_map", None)
    for name, (feature, component) in features.items():
        value = getattr(native, feature)
        if isinstance(value, nn.Parameter):
            _check_parameter(value, f"{native.name}.{feature}", dtype, device)
            element.trained[name] = (value, component)
            element.values[name] = element.number(name)
        else:
            element.values[name] = _cast(value if component is None else value[..., component], dtype, device)
        _check_number(element.values[name], f"{native.name}.{name}", may_be_infinite=owner.__name__ == "Aperture")
    return element


def _check_number(value: Tensor, name: str, may_be_infinite: bool) -> None:
    value = value.detach()
    if bool(value.isnan().any()) or (not may_be_infinite and bool(value.isinf().any())):
        raise LatticeError(f"{name} is {value.tolist()}: expected finite numbers in a segment")


def _copy(native: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a copy of a Cheetah element in one dtype that shares its trainable parameters."""
    clone = without_graphs(native)
    for part in clone.modules():
        for name, value in part._buffers.items():
            if value is not None:
                is_float = value.is_floating_point()
                part._buffers[name] = value.detach().to(device=device, dtype=dtype if is_float else value.dtype)
    return clone


def _check_parameter(value: nn.Parameter, name: str, dtype: torch.dtype, device: torch.device) -> None:
    place = torch.empty(0, device=device).device  # "cuda" is the device that torch takes for it, such as cuda:0
    if value.dtype != dtype or value.device != place:
        raise ValidationError(
            f"{name} is an nn.Parameter of {value.dtype} on {value.device}, the model is {dtype} on {device}: "
            f"convert the segment first, segment.to(dtype={dtype}), or build the model with dtype={value.dtype}"
        )


def _cast(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if value.numel() == 1:  # Some of Cheetah's readers write (1,) where they mean a number.
        value = value.reshape(())
    if value.requires_grad:
        return value.to(dtype=dtype, device=device)
    return value.detach().to(dtype=dtype, device=device).clone()


def without_graphs(segment: cheetah.Element) -> Any:
    """Return a copy of an element that can be copied and pickled: with its parameters, without what is on a graph."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in segment.parameters()}
    for native in segment.modules():
        memo[id(getattr(native, "_cache", memo))] = {}  # Cheetah's transfer maps
        memo[id(getattr(native, "_read_beam", memo))] = None  # what a screen has seen
        for tensor in native._buffers.values():
            if tensor is not None and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    memo.pop(id(memo), None)
    return copy.deepcopy(segment, memo)


def knobs(elements: Iterable[Element]) -> dict[str, tuple[Attribute, list[int]]]:
    """Return every settable number as ``{"Q1.k1": (attribute, positions in the line)}``.

    Elements of one name act as one. Where there are several, their length is fixed, because one number could not
    say how it is shared.
    """
    found: dict[str, tuple[Attribute, list[int]]] = {}
    elements = list(elements)
    for position, element in enumerate(elements):
        for attribute in element.attributes:
            found.setdefault(f"{element.name}.{attribute.name}", (attribute, []))[1].append(position)
    return {
        name: (attribute, positions)
        for name, (attribute, positions) in found.items()
        if not (attribute.name == "length" and len(positions) > 1)
    }


def is_number(value: Tensor) -> bool:
    """Tell whether a value is finite; an aperture that is open is not, and its knob has no value then."""
    return bool(value.detach().isfinite().all())


def structure(element: Element) -> tuple[Any, ...]:
    """Return what the names of inputs and outputs and the shapes of images depend on."""
    return element.name, element.kind, element.pixels if element.kind == "Screen" else None
