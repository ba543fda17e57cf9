"""The small machine that tests of the facility share, and its mapping."""

from __future__ import annotations

from typing import Any

import cheetah
import torch

from lume_diff.models import BunchFromMoments, CheetahModel, FacilityModel

F64 = torch.float64
TWISS = {"norm_emit_x": 1e-6, "norm_emit_y": 2e-6, "beta_x": 6.0, "alpha_x": 0.5, "beta_y": 3.0, "alpha_y": -0.3}
FIELD = {"kind": "quadrupole_field"}


def t(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def line(n: int = 500, **options: Any) -> CheetahModel:
    """A cavity, two quadrupoles, a corrector, a BPM and two screens."""
    bunch = BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_t=1e-12, sigma_energy=1e5, **TWISS)
    pixels = {"resolution": (40, 30), "pixel_size": t([1e-4, 1e-4])}
    elements = [
        cheetah.Cavity(t(1.0), voltage=t(2e7), phase=t(0.0), frequency=t(2.856e9), name="CAV"),
        cheetah.Quadrupole(t(0.1), t(3.0), name="Q0"),
        cheetah.HorizontalCorrector(t(0.1), t(0.0), name="C0"),
        cheetah.Drift(t(0.7), name="D0"),
        cheetah.Screen(**pixels, is_active=True, name="S0"),
        cheetah.Quadrupole(t(0.1), t(-2.0), name="Q1"),
        cheetah.Drift(t(0.7), name="D1"),
        cheetah.BPM(is_active=True, name="B1"),
        cheetah.Screen(**pixels, is_active=False, name="S1"),
    ]
    return CheetahModel(cheetah.Segment(elements, name="line"), bunch.get("final_particles"), **options)


def quadrupole(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "setpoint", "native": f"{name}.k1", "unit": "kG", "conversion": FIELD, **more}


def screen(name: str, default: str) -> dict[str, Any]:
    settings = {"OUT": {f"{name}.is_active": False}, "IN": {f"{name}.is_active": True}}
    state = {"kind": "state", "options": ["OUT", "IN"], "default": default, "settings": settings}
    return {**state, "blocks": ["IN"], "element": name}


VARIABLES: dict[str, Any] = {
    "CAV:ADES": {"kind": "setpoint", "native": "CAV.voltage", "unit": "MV", "value_range": [0, 50]},
    "CAV:STATE": {
        "kind": "state",
        "options": ["OFF", "ON"],
        "default": "ON",
        "settings": {"OFF": {"CAV.voltage": 0.0}},
    },
    "Q0:BCTRL": quadrupole("Q0", value_range=[-5, 5]),
    "Q0:TRIM": quadrupole("Q0", adds=True),
    "Q0:BACT": {"kind": "readback", "of": "Q0:BCTRL", "noise": 1e-4, "offset": 0.5, "offset_spread": 1e-3},
    "Q0:BMAX": {"kind": "limit", "of": "Q0:BCTRL", "end": "high"},
    "Q0:CTRL": {
        "kind": "state",
        "options": ["OFF", "ON"],
        "default": "ON",
        "settings": {"OFF": {"Q0.k1": 0.0}},
    },
    "Q1:BCTRL": quadrupole("Q1"),
    "Q1:BACT": {"kind": "readback", "of": "Q1:BCTRL"},
    "C0:BCTRL": {
        "kind": "setpoint",
        "native": "C0.angle",
        "unit": "kG*m",
        "conversion": {"kind": "corrector_field"},
    },
    "B1:X": {"kind": "reading", "native": "B1.x", "unit": "mm"},
    "B1:TMIT": {"kind": "reading", "native": "B1.charge", "unit": "pC", "without_beam": 0.0},
    "S0:POS": screen("S0", "OUT"),
    "S0:IMAGE": {"kind": "reading", "native": "S0.image"},
    "S0:XRMS": {"kind": "reading", "native": "S0.sigma_x", "unit": "um"},
    "S1:POS": screen("S1", "IN"),
    "S1:IMAGE": {"kind": "reading", "native": "S1.image"},
    "S1:XRMS": {"kind": "reading", "native": "S1.sigma_x", "unit": "um"},
    "S1:YRMS": {"kind": "reading", "native": "S1.sigma_y", "unit": "um"},
    "S1:MINX": {"kind": "roi", "of": "S1:IMAGE", "side": "min_x"},
    "S1:SIZEX": {"kind": "roi", "of": "S1:IMAGE", "side": "size_x"},
    "S1:NX": {"kind": "array_size", "of": "S1:IMAGE", "axis": "x"},
    "S1:NY": {"kind": "array_size", "of": "S1:IMAGE", "axis": "y"},
    "S1:RESOLUTION": {"kind": "reading", "native": "S1.pixel_size_x", "unit": "um"},
    "S1:AREA": {
        "kind": "derived",
        "function": {"kind": "product", "powers": {"S1:XRMS": 1, "S1:YRMS": 1}},
        "unit": "um^2",
    },
    "MODE": {"kind": "constant", "value": "simulation"},
}
MAPPING: dict[str, Any] = {
    "keep": ["final_particles", "initial_particles", "final.*", "D1.beta_y"],
    "variables": VARIABLES,
}


def facility(**changes: Any) -> FacilityModel:
    """The machine under its facility's names; ``changes`` are further or other entries."""
    return FacilityModel(line(), {**MAPPING, "variables": {**VARIABLES, **changes}})
