"""A line that is given moments instead of particles: what Cheetah's parameter beams give, and no more."""

from __future__ import annotations

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, PhysicsWarning, SimulatorError, TorchMoments, UnknownVariableError

F64 = torch.float64


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def moments_of() -> cheetah.ParameterBeam:
    generator = torch.Generator().manual_seed(8)
    scale = t((4e-4, 2e-5, 3e-4, 1e-5, 2e-4, 2e-3))
    particles = (torch.randn(300, 6, generator=generator, dtype=F64) + 0.1) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(300, 1, dtype=F64)), dim=-1),
        energy=t(1e8),
        particle_charges=torch.full((300,), 1e-13, dtype=F64),
        s=t(0.5),
        species=cheetah.Species("electron", dtype=F64),
    ).as_parameter_beam()


def line() -> list[cheetah.accelerator.Element]:
    return [
        cheetah.Quadrupole(t(0.2), t(0.0), name="Q1", dtype=F64),
        cheetah.Drift(t(0.6), name="D1", dtype=F64),
        cheetah.BPM(is_active=True, name="BPM1", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(-3.0), name="Q2", dtype=F64),
        cheetah.Screen(resolution=(12, 8), pixel_size=t((4e-4, 4e-4)), name="SCR1", dtype=F64),
        cheetah.Cavity(t(1.0), t(5e6), t(10.0), t(1.3e9), name="C1", dtype=F64),
        cheetah.Dipole(t(0.3), t(0.2), dipole_e1=t(0.1), name="B1", dtype=F64),
        cheetah.Solenoid(t(0.2), t(1.0), name="S1", dtype=F64),
    ]


def test_moments_equal_raw_cheetah() -> None:
    incoming = moments_of()
    segment = cheetah.Segment(line()).to(F64)
    raw = segment.track(incoming)
    for beam in (incoming, TorchMoments.from_cheetah(incoming)):
        model = CheetahModel(segment, beam, outputs=["final_moments", "BPM1.x"])
        mine = model.get("final_moments").to_cheetah()
        torch.testing.assert_close(mine.mu, raw.mu, rtol=1e-10, atol=1e-16)
        size = raw.cov.diagonal()[:6].sqrt()
        assert ((mine.cov - raw.cov)[:6, :6] / size / size[:, None]).abs().max() < 1e-10
        torch.testing.assert_close(mine.energy, raw.energy, rtol=1e-13, atol=0.0)
        torch.testing.assert_close(model.get("BPM1.x"), segment.BPM1.reading[0], rtol=1e-10, atol=1e-16)


def test_moments_have_no_images_and_no_particles() -> None:
    model = CheetahModel(cheetah.Segment(line()), moments_of())
    assert not [name for name in model.supported_variables if "image" in name or "particles" in name]
    for quantity in ("image", "min_x", "percentile_90_x"):
        with pytest.raises(
            UnknownVariableError, match=f"'{quantity}' is not something to read at 'SCR1'.*TorchMoments"
        ):
            CheetahModel(cheetah.Segment(line()), moments_of(), outputs=[f"SCR1.{quantity}"])
    k1 = t(0.0).requires_grad_()
    model({"Q1.k1": k1}, outputs=["final.sigma_x"])["final.sigma_x"].backward()
    assert bool(k1.grad.isfinite())


def test_moments_and_elements_that_need_particles() -> None:
    incoming = moments_of()
    sextupole = cheetah.Sextupole(t(0.2), t(10.0), name="S1", dtype=F64)
    with pytest.raises(SimulatorError, match=r"'S1' \(Sextupole, tracking_method 'second_order'\) needs particles"):
        CheetahModel(cheetah.Segment([sextupole]), incoming).get("final.sigma_x")
    aperture = cheetah.Aperture(t(1e-3), t(1e-3), name="A1", dtype=F64)
    with pytest.warns(PhysicsWarning, match="aperture 'A1' does nothing to moments"):
        CheetahModel(cheetah.Segment([aperture]), incoming).get("final.sigma_x")
    screen = cheetah.Screen(is_active=True, is_blocking=True, name="SCR", dtype=F64)
    assert CheetahModel(cheetah.Segment([screen]), incoming).get("final.survival") == 0.0
