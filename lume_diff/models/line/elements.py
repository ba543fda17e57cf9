"""What a beamline is made of: a flat list of element descriptions read from a Cheetah segment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        kind: name of Cheetah's class.
        values: its numbers, by attribute name.
        options: what else Cheetah knows of it, by Cheetah's names.
        is_active: whether it is switched on.
        native: a copy of the Cheetah element, for what only Cheetah can do.
    """

    name: str
    kind: str
    values: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    is_active: bool = True
    native: Any = None

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The numbers that can be set on it."""
        return ATTRIBUTES.get(self.kind, ())

    @property
    def length(self) -> Tensor:
        """Its length [m]."""
        return self.values["length"]

    def option(self, name: str, default: Any = None) -> Any:
        """Return one of Cheetah's settings that is not a number."""
        return self.options.get(name, default)

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of a screen's image in pixels, after binning."""
        width, height = self.options["resolution"]
        binning = self.options["binning"]
        return int(width // binning), int(height // binning)


def read_segment(segment: cheetah.Segment, dtype: torch.dtype, device: torch.device) -> list[Element]:
    """Return the elements of a segment, nested segments unrolled, in the order of the beam.

    Numbers are cast to one dtype, because Cheetah mixes what was given with torch's default. The segment itself is
    neither changed nor kept; trainable parameters are, since their owner goes on training them.

    Raises:
        LatticeError: for an empty segment, or an element whose class is not known and not a Cheetah element.
        ValidationError: for a trainable parameter of another dtype.
    """
    elements = [_read_element(native, dtype, device) for native in _flattened(segment)]
    if not elements:
        raise LatticeError(f"segment {segment.name!r} has no elements: a line needs at least one")
    return elements


def _flattened(segment: cheetah.Segment) -> Iterator[Any]:
    for element in segment.elements:
        if hasattr(element, "flattened"):
            yield from _flattened(element.flattened())
        else:
            yield element


def _read_element(native: Any, dtype: torch.dtype, device: torch.device) -> Element:
    kind = type(native).__name__
    attributes = ATTRIBUTES.get(kind, ())
    values = {"length": _cast(native.length, f"{native.name}.length", dtype, device)}
    for attribute in attributes:
        value = getattr(native, attribute.feature)
        if attribute.component is not None:
            if isinstance(value, nn.Parameter):
                raise ValidationError(
                    f"{native.name}.{attribute.feature} is a vector nn.Parameter, which cannot be split into "
                    f"{attribute.name} and its partner; make it a plain tensor and set {native.name}.{attribute.name}"
                )
            value = value[..., attribute.component]
        values[attribute.name] = _cast(value, f"{native.name}.{attribute.name}", dtype, device)
    if kind == "CustomTransferMap":
        values["transfer_map"] = _cast(native.predefined_transfer_map, f"{native.name}.transfer_map", dtype, device)
    options = {name: getattr(native, name) for name in _OPTIONS if hasattr(native, name)}
    switched = bool(native.is_active) if kind in SWITCHED else True
    copy = native.clone() if kind not in ATTRIBUTES or kind == "SpaceChargeKick" else None
    return Element(native.name.partition("#")[0], kind, values, options, switched, copy)


def _cast(value: Tensor, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, nn.Parameter):
        if value.dtype != dtype or value.device != device:
            raise ValidationError(
                f"{name} is an nn.Parameter of {value.dtype} on {value.device}, the model is {dtype} on {device}: "
                f"convert the segment first, segment.to(dtype={dtype}), or build the model with dtype={value.dtype}"
            )
        return value
    if value.numel() == 1:  # Some of Cheetah's readers write (1,) where they mean a number.
        value = value.reshape(())
    if value.requires_grad:
        return value.to(dtype=dtype, device=device)
    return value.detach().to(dtype=dtype, device=device).clone()


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
