"""Gradients of a Cheetah line where formulas are 0/0: at zero strength, of the elements asked for and of all others."""

from __future__ import annotations

from collections.abc import Iterator

import cheetah
import pytest
import torch

from lume_diff import CheetahModel

F64 = torch.float64
pytestmark = pytest.mark.gradient
METHODS = ("linear", "second_order", "drift_kick_drift")


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(11)
    scale = t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    particles = (torch.randn(60, 6, generator=generator, dtype=F64) + 0.3) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(60, 1, dtype=F64)), dim=-1),
        energy=t(25e6),
        particle_charges=torch.full((60,), 1e-12, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def element(kind: str, **numbers: object) -> cheetah.accelerator.Element:
    tensors = {name: t(value) if isinstance(value, float) else value for name, value in numbers.items()}
    return getattr(cheetah, kind)(**tensors, name="E", dtype=F64).to(F64)


def with_methods(kind: str, attributes: str, methods: tuple[str, ...], **numbers: object) -> Iterator[tuple]:
    for method in methods:
        for attribute in attributes.split():
            yield kind, attribute, {**numbers, "tracking_method": method}


BEND = "angle k1 tilt gap gap_exit fringe_integral fringe_integral_exit"
#: (class, attribute, numbers of the element); what is not given is zero.
CASES = [
    *with_methods("Drift", "length", METHODS, length=0.0),
    *with_methods("Quadrupole", "length k1 tilt misalignment_x misalignment_y", METHODS, length=0.3),
    *with_methods("Quadrupole", "tilt misalignment_x misalignment_y", METHODS, length=0.3, k1=3.0),
    *with_methods("Dipole", BEND + " dipole_e1 dipole_e2", METHODS, length=0.3),
    *with_methods("Dipole", BEND + " dipole_e1 dipole_e2", METHODS[:2], length=0.3, angle=0.3, k1=-1.0),  # kx = 0
    *with_methods("Dipole", "angle dipole_e1", METHODS, length=0.3, gap=0.02, fringe_integral=0.5),
    *with_methods("RBend", BEND + " rbend_e1 rbend_e2", METHODS, length=0.3),
    *with_methods("Sextupole", "length k2 tilt misalignment_x misalignment_y", METHODS[:2], length=0.3),
    *((("Solenoid", name, {"length": 0.4})) for name in ("length", "k", "misalignment_x", "misalignment_y")),
    *((kind, "angle", {"length": 0.1}) for kind in ("HorizontalCorrector", "VerticalCorrector")),
    *(("CombinedCorrector", f"{plane}_angle", {"length": 0.1}) for plane in ("horizontal", "vertical")),
    *(("Undulator", name, {"length": 1.0, "period": 0.03}) for name in ("kx", "ky", "length", "period")),
    *(
        ("Cavity", name, {"length": 1.0, "voltage": voltage, "phase": phase, "frequency": 1.3e9, "cavity_type": kind})
        for kind in ("standing_wave", "traveling_wave")
        for name, voltage, phase in (
            *(("voltage", 0.0, 20.0), ("phase", 0.0, 20.0), ("phase", 5e6, 0.0), ("length", 5e6, 20.0)),
            *(("phase", 5e6, 90.0), ("voltage", 5e6, -90.0), ("frequency", 5e6, 20.0)),
        )
    ),
    *(
        ("TransverseDeflectingCavity", name, {"length": 0.4, "voltage": voltage, "frequency": 3e9})
        for voltage in (0.0, 1e5)
        for name in ("length", "voltage", "phase", "frequency", "tilt", "misalignment_x", "misalignment_y")
    ),
]


def case_name(case: tuple) -> str:
    kind, attribute, numbers = case
    rest = [str(value) for value in numbers.values() if isinstance(value, str)]
    strength = [f"{name}={value:g}" for name, value in numbers.items() if isinstance(value, float) and name != "length"]
    return "-".join([kind, attribute, *rest, *strength])


def line_of(native: cheetah.accelerator.Element) -> cheetah.Segment:
    quadrupole = cheetah.Quadrupole(t(0.2), t(2.0), name="Q", dtype=F64)
    return cheetah.Segment([quadrupole, native, cheetah.Drift(t(0.5), name="D", dtype=F64)])


def summary(model: CheetahModel, values: dict[str, torch.Tensor], time: torch.Tensor | None) -> torch.Tensor:
    """Return the first and second moments of the final bunch, times counted from one given, in units near its size."""
    bunch = model(values, outputs=["final_particles"])["final_particles"]
    columns = [bunch.x / 1e-4, bunch.px / 1e3, bunch.y / 1e-4, bunch.py / 1e3, bunch.pz / 1e5 - 250.0]
    if time is not None:
        columns.append((bunch.t - time) / 1e-12)
    table = torch.stack(columns)
    return torch.cat((table.mean(-1), (table @ table.mT).flatten() / table.shape[-1]))


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_gradient_equals_the_two_sided_difference(case: tuple, beam: cheetah.ParticleBeam) -> None:
    kind, attribute, numbers = case
    knob = f"E.{attribute}"
    model = CheetahModel(line_of(element(kind, **numbers)), beam, controls=[knob], outputs=["final_particles"])
    here = model.get(knob).clone()
    # The second-order longitudinal terms of Cheetah's cavity begin with a jump at the first volt and the first gain.
    jumps = kind == "Cavity" and (numbers["voltage"] == 0.0 or abs(numbers["phase"]) == 90.0)
    time = None if jumps else model.get("final_particles").t.mean().detach()

    def moments(value: torch.Tensor) -> torch.Tensor:
        return summary(model, {knob: value}, time)

    found = torch.func.jacfwd(moments)(here)
    assert bool(found.isfinite().all())
    steps = {"voltage": 1e3, "frequency": 1e6, "phase": 0.1 if kind == "Cavity" else 1e-3, "period": 1e-4}
    step = steps.get(attribute, 1e-4)
    round_off = 1e-15 * moments(here).abs().max().item()
    reverse = torch.func.jacrev(moments)(here)
    scale = found.abs().max().item()
    torch.testing.assert_close(reverse, found, rtol=1e-9, atol=1e-9 * scale + 1e3 * round_off)
    wide, narrow = ((moments(here + h) - moments(here - h)) / (2.0 * h) for h in (step, step / 2.0))
    torch.testing.assert_close(
        found, (4.0 * narrow - wide) / 3.0, rtol=1e-6, atol=1e-6 * scale + 30.0 * round_off / step
    )


def test_nothing_that_stands_at_zero_poisons_the_others(beam: cheetah.ParticleBeam) -> None:
    """One knob of a line in which every class stands at zero in every method; then all knobs of that line at once."""
    line = []
    for kind, _, numbers in CASES:
        native = element(kind, **{name: 0.0 if name in ("k1", "angle") else v for name, v in numbers.items()})
        native.name = f"{kind}{len(line)}"
        line.append(native)
    line.append(cheetah.Quadrupole(t(0.2), t(0.0), name="Q", dtype=F64))
    few = CheetahModel(cheetah.Segment(line), beam, controls=["Quadrupole3.k1", "Q.k1"])
    for knob in ("Quadrupole3.k1", "Q.k1"):
        found = torch.func.jacfwd(lambda value, knob=knob: summary(few, {knob: value}, t(0.0)))(t(0.0))
        assert bool(found.isfinite().all())
    every = CheetahModel(cheetah.Segment(line), beam, outputs=["final_particles"])
    knobs = {n: every.get(n).clone().requires_grad_() for n in every.input_names if "." in n}
    gradients = torch.autograd.grad(summary(every, knobs, t(0.0)).sum(), list(knobs.values()), allow_unused=True)
    broken = [n for n, g in zip(knobs, gradients, strict=True) if g is not None and not bool(g.isfinite().all())]
    assert not broken
    assert sum(g is not None for g in gradients) > 0.8 * len(gradients)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_at_zero(method: str, beam: cheetah.ParticleBeam) -> None:
    """First and second derivatives, backward, forward and batched."""
    line = line_of(element("Quadrupole", length=0.3, tracking_method=method))
    model = CheetahModel(
        line, beam, controls=["E.k1", "E.tilt"], outputs=["final.sigma_x", "final.sigma_y", "final.mean_x"]
    )
    function = model.tensor_function(["E.k1", "E.tilt"], ["final.sigma_x", "final.sigma_y", "final.mean_x"])

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return function(x) / 1e-4

    for point in (t((0.0, 0.0)), t(((0.0, 0.0), (1.0, 0.2), (-2.0, -0.1)))):
        x = point.requires_grad_()
        assert torch.autograd.gradcheck(scaled, x, eps=1e-4, atol=1e-6, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(scaled, x, eps=1e-4, atol=1e-6)
