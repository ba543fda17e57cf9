"""Elements of the Particle Accelerator Lattice Standard as Cheetah has them.

Strengths of PALS refer to the reference momentum of PALS, which changes where the file says so (``dE_ref``); those of
Cheetah to the beam's, which follows the cavities. A field acts by its physics: with the sign of the charge.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import MissingExtraError, PhysicsWarning, nearest_names
from lume_diff.models.line.pals_parameters import PalsReference, Parameters

if TYPE_CHECKING:
    import cheetah

_MAY_BE_THIN = ("Instrument", "Mask")  # of these the length may be left out
_HALF_INTEGRAL = 0.5  # fint, of which Cheetah wants a value beside the gap; PALS has the product of both


def convert(elements: Iterable[tuple[str, dict[str, Any]]], reference: PalsReference, mistakes: list[str]) -> list[Any]:
    """Return Cheetah's elements for those of a line.

    Args:
        elements: names and parameters, in the order of the beam.
        reference: at the start of the line, unless a ``BeginningEle`` says another one.
        mistakes: takes what is wrong, or unknown.
    """
    pals = _pals()
    parts: list[Any] = []
    unequal: list[str] = []
    for name, fields in elements:
        kind = fields.get("kind")
        if kind not in _CONVERTERS:
            known = "" if kind is None else nearest_names(str(kind), _CONVERTERS)
            mistakes.append(f"element {name!r} is of the kind {kind!r}, which Cheetah has nothing for{known}")
            continue
        if kind == "BeginningEle" and parts:
            continue  # of a line within this one
        parameters = Parameters(name, fields, reference, mistakes)
        _check(pals, parameters)
        made = _CONVERTERS[kind](parameters)
        parameters.take("kind", "MetaP", "FloorP", "TrackingP", "TwissP", "ParticleP")
        if kind == "BeginningEle":
            reference = reference.started(parameters)
        change = parameters.group("ReferenceChangeP").number("dE_ref")
        before, after = _apertures(parameters)
        parts += [*before, *made, *after]
        parameters.refuse_rest()
        gains = parameters.reference_gain + float(change), parameters.beam_gain
        if not math.isclose(*gains, rel_tol=1e-6, abs_tol=1.0):
            unequal.append(f"{name!r} ({gains[1]:g} eV, dE_ref {gains[0]:g} eV)")
        reference = reference.passed(*gains)
    if unequal:
        warnings.warn(
            f"PALS lattice: {', '.join(unequal)} changes the energy of the beam and the reference energy differently; "
            "normalised strengths behind it, which refer to the latter, are converted to the former",
            PhysicsWarning,
            stacklevel=2,
        )
    return parts


def _pals() -> Any:
    try:
        import pals
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'PALS lattices need pals-schema, which is not installed: pip install "lume_diff[pals]"'
        ) from error
    return pals


def _check(pals: Any, parameters: Parameters) -> None:
    """Let pals-schema look at the values."""
    from pydantic import ValidationError as Refused

    given = {key: value for key, value in parameters.fields.items() if key != "kind"}
    if parameters.fields["kind"] in _MAY_BE_THIN:
        given = {"length": 0.0} | given
    kind = "SBend" if parameters.fields["kind"] == "Bend" else parameters.fields["kind"]  # 0.3.0 has no Bend
    reference = given.get("ReferenceP")
    if isinstance(reference, dict):  # 0.3.0 wants the location, which the standard no longer has
        given["ReferenceP"] = {"location": "UPSTREAM_END"} | reference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it has under construction
        try:
            getattr(pals, kind)(name=parameters.name, **given)
        except Refused as error:
            for detail in error.errors(include_url=False):
                where = ".".join(map(str, detail["loc"])) or "it"
                parameters.wrong(f"{where}: {detail['msg']}")
        except (TypeError, AttributeError) as error:
            parameters.wrong(f"pals-schema cannot read it: {error}")


# -- kinds of elements


def _drift(p: Parameters) -> list[Any]:
    import cheetah

    return [cheetah.Drift(p.number("length", required=True), **p.named())]


def _quadrupole(p: Parameters) -> list[Any]:
    import cheetah

    length = p.number("length", required=True)
    k1, tilt = p.multipole(1, length)
    return [cheetah.Quadrupole(length, k1, p.misalignment(), tilt + p.roll(), **p.named())]


def _sextupole(p: Parameters) -> list[Any]:
    import cheetah

    length = p.number("length", required=True)
    k2, tilt = p.multipole(2, length)
    return [cheetah.Sextupole(length, k2, p.misalignment(), tilt + p.roll(), **p.named())]


def _bend(p: Parameters) -> list[Any]:
    import cheetah

    length = p.number("length", required=True)
    bend = p.group("BendP")
    curvature = bend.curvature(length)
    angle = curvature * length
    k1, tilt = p.multipole(1, length)
    own, _ = p.multipole(0, length, default=curvature)
    if not torch.isclose(own, curvature, rtol=1e-9, atol=0.0) or tilt != 0.0:
        p.wrong("its own field differs from the reference field, or is skew, which Cheetah's bends do not have")
    faces = []
    for face in ("e1", "e2"):
        straight = angle / 2.0 if bend.has(f"{face}_rect") or p.fields["kind"] == "RBend" else 0.0
        if bend.has(face) and bend.has(f"{face}_rect"):
            p.wrong(f"BendP has both {face} and {face}_rect; give one")
        faces.append(bend.number(face) if bend.has(face) else bend.number(f"{face}_rect") + straight)
    gaps = [
        bend.number(*names) * 2.0 / _HALF_INTEGRAL for names in (("edge_int1", "edge1_int"), ("edge_int2", "edge2_int"))
    ]
    bend.expect("ref_geometry", "ARC")
    integral = torch.tensor(_HALF_INTEGRAL)
    return [
        cheetah.Dipole(
            length,
            angle,
            k1,
            *faces,
            tilt=bend.number("tilt_ref"),
            gap=gaps[0],
            gap_exit=gaps[1],
            fringe_integral=integral,
            fringe_integral_exit=integral,
            **p.named(),
        )
    ]


def _solenoid(p: Parameters) -> list[Any]:
    import cheetah

    length = p.number("length", required=True)
    strength = p.group("SolenoidP").strength("Ksol", "Bsol")
    return [cheetah.Solenoid(length, strength / 2.0, p.misalignment(), **p.named())]


def _cavity(p: Parameters) -> list[Any]:
    import cheetah

    length = p.number("length", required=True)
    rf = p.group("RFP")
    active = rf.number("L_active") if rf.has("L_active") else length
    if active != length:
        rf.wrong("L_active is not the length of the element, as it is in Cheetah's cavities")
    if rf.has("voltage") and rf.has("gradient"):
        rf.wrong("has both voltage and gradient; give one")
    voltage = rf.number("voltage") + rf.number("gradient") * active
    phase = rf.number("phase")
    frequency = rf.number("frequency", required=True)
    rf.expect("cavity_type", "STANDING_WAVE")
    rf.expect("zero_phase", "ACCELERATING")
    rf.take("n_cell", "num_cells")
    if p.reference.charge is not None and p.reference.charge >= 0.0:
        p.wrong("accelerates positive particles, which Cheetah's cavities do not: they take every beam for electrons")
    p.reference_gain = p.reference_gain + float(rf.number("dE_ref"))
    p.beam_gain = float(voltage * torch.cos(2.0 * math.pi * phase))
    # A particle that comes later sees a later phase in PALS, and an earlier one in Cheetah.
    return [cheetah.Cavity(length, voltage, -360.0 * phase, frequency, **p.named())]


def _kicker(p: Parameters) -> list[Any]:
    """Kick by a dipole field: a normal one deflects towards -x, a skew one towards +y."""
    import cheetah

    length = p.number("length", required=True)
    normal, skew = p.integrated_dipole(length)
    return [cheetah.CombinedCorrector(length, -normal, skew, **p.named())]


def _marker(p: Parameters) -> list[Any]:
    import cheetah

    p.take("length")
    return [cheetah.Marker(**p.named())]


def _instrument(p: Parameters) -> list[Any]:
    """Make a beam position monitor in the middle of the element's length."""
    import cheetah

    length = p.number("length")
    monitor = cheetah.BPM(is_active=True, misalignment=p.misalignment(), **p.named())
    if length == 0.0:
        return [monitor]
    half = {
        end: cheetah.Drift(length / 2.0, name=f"{p.name}_{end}", sanitize_name=False) for end in ("before", "after")
    }
    return [half["before"], monitor, half["after"]]


def _mask(p: Parameters) -> list[Any]:
    """Make the drift of a mask; its aperture comes from ApertureP, as that of any element."""
    import cheetah

    if "ApertureP" not in p.fields:
        p.wrong("is a mask without ApertureP; expected its limits")
    length = p.number("length")
    return [] if length == 0.0 else [cheetah.Drift(length, **p.named())]


_CONVERTERS: dict[str, Callable[[Parameters], list[Any]]] = {
    "BeginningEle": _marker,
    "Drift": _drift,
    "Quadrupole": _quadrupole,
    "Sextupole": _sextupole,
    "SBend": _bend,
    "RBend": _bend,
    "Bend": _bend,
    "Solenoid": _solenoid,
    "RFCavity": _cavity,
    "Kicker": _kicker,
    "Marker": _marker,
    "Instrument": _instrument,
    "Mask": _mask,
}


# -- apertures


def _apertures(p: Parameters) -> tuple[list[Any], list[Any]]:
    """Return the apertures before and behind an element."""
    import cheetah

    if "ApertureP" not in p.fields:
        return [], []
    group = p.group("ApertureP")
    x_max, y_max = (_half_width(group, f"{plane}_limits") for plane in "xy")
    shape, location = group.text("shape"), group.text("location", "ENTRANCE_END")
    group.take("material", "thickness", "aperture_shifts_with_body")
    if shape not in ("RECTANGULAR", "ELLIPTICAL"):
        group.wrong(f"shape is {shape!r}; expected it as 'RECTANGULAR' or 'ELLIPTICAL', for its default has changed")
    ends = {"ENTRANCE_END": (1, 0), "EXIT_END": (0, 1), "BOTH_ENDS": (1, 1), "NOWHERE": (0, 0)}
    if location not in ends:
        group.wrong(f"location is {location!r}; expected {', '.join(ends)}")
    is_active = group.flag("aperture_active", True)

    def aperture(end: str) -> cheetah.Aperture:
        name = p.name if p.fields["kind"] == "Mask" and not p.fields.get("length") else f"{p.name}_{end}"
        form = "elliptical" if shape == "ELLIPTICAL" else "rectangular"
        return cheetah.Aperture(x_max, y_max, form, is_active, name=name, sanitize_name=False)

    at_entrance, at_exit = ends.get(location, (0, 0))
    return [aperture("aperture")] * at_entrance, [aperture("aperture_exit")] * at_exit


def _half_width(group: Parameters, key: str) -> Tensor:
    """Return the half width [m] of limits that are as far on either side; infinity where there are none."""
    low, high = group.limits(key)
    if low is None and high is None:
        return torch.tensor(math.inf)
    if low is None or high is None or not math.isclose(-low, high, rel_tol=1e-12):
        group.wrong(f"{key} is {[low, high]}; expected limits as far on either side, as Cheetah has them")
        return torch.tensor(math.inf)
    return torch.tensor(high)
