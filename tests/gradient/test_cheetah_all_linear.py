"""All linear classes of element in one line, every number of it and the particles at once: all modes of derivative."""

from __future__ import annotations

from collections.abc import Callable

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, TorchParticleGroup

F64 = torch.float64
pytestmark = pytest.mark.gradient
Function = Callable[[torch.Tensor], torch.Tensor]
ENERGY = 25e6
SIZES = torch.tensor((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3), dtype=F64)
OUTPUTS = (
    *("sigma_x", "sigma_px", "sigma_y", "sigma_py", "sigma_t", "mean_x", "mean_y", "mean_px", "mean_py"),
    *("cov_x__y", "cov_x__t"),
)
#: Size of a typical change.
SCALES = {
    **{"length": 0.1, "tilt": 0.5, "misalignment_x": 2e-4, "misalignment_y": 2e-4, "k1": 2.0, "k2": 50.0, "k": 1.0},
    **{"angle": 0.1, "gap": 0.02, "gap_exit": 0.02, "fringe_integral": 0.3, "fringe_integral_exit": 0.3},
    **dict.fromkeys(("dipole_e1", "dipole_e2", "rbend_e1", "rbend_e2"), 0.2),
    **{"horizontal_angle": 2e-4, "vertical_angle": 2e-4, "period": 0.01, "kx": 0.5, "ky": 0.5},
}
#: Strengths of the line: the factor on those of a usual setting.
SETTINGS = {"usual": 1.0, "reversed": -1.0, "zero": 0.0}


def t(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def line_of(strength: float) -> cheetah.Segment:
    """Return every linear class; gaps, periods and lengths do not follow the strength."""

    def s(value: float) -> torch.Tensor:
        return t(strength * value)

    def pair(x: float, y: float) -> torch.Tensor:
        return torch.stack((s(x), s(y)))

    species = cheetah.Species("electron", dtype=F64)
    matrix = cheetah.Quadrupole(t(0.1), t(1.0), tilt=t(0.2), dtype=F64).first_order_transfer_map(t(ENERGY), species)
    faces = {"tilt": s(0.2), "gap": t(0.02), "gap_exit": t(0.03), "fringe_integral": t(0.5), "dtype": F64}
    line = [
        cheetah.Drift(t(0.3), name="D", dtype=F64),
        cheetah.Quadrupole(t(0.2), s(3.0), pair(1e-4, -2e-4), s(0.3), name="Q", dtype=F64),
        cheetah.Dipole(t(0.4), s(0.2), s(0.5), s(0.1), s(-0.05), **faces, name="B"),
        cheetah.Marker(name="M", dtype=F64),
        cheetah.RBend(t(0.3), s(-0.15), s(-0.4), s(0.05), s(0.1), **faces, name="R"),
        cheetah.Solenoid(t(0.2), s(1.5), pair(2e-4, 1e-4), name="S", dtype=F64),
        cheetah.HorizontalCorrector(t(0.1), s(2e-4), name="H", dtype=F64),
        cheetah.VerticalCorrector(t(0.1), s(-3e-4), name="V", dtype=F64),
        cheetah.CombinedCorrector(t(0.1), s(1e-4), s(2e-4), name="C", dtype=F64),
        cheetah.Undulator(t(0.5), t(0.04), s(1.0), s(0.6), name="U", dtype=F64),
        cheetah.Sextupole(t(0.2), s(30.0), tracking_method="linear", name="X", dtype=F64),
        cheetah.CustomTransferMap(matrix, length=t(0.1), name="T", dtype=F64),
        cheetah.Cavity(t(0.3), name="O", dtype=F64),
        cheetah.BPM(is_active=True, name="P", dtype=F64),
        cheetah.Screen(name="I", dtype=F64),
        cheetah.Aperture(name="A", dtype=F64),
        cheetah.Quadrupole(t(0.2), s(-2.0), name="Q2", dtype=F64),
    ]
    return cheetah.Segment(line)


def particles(n: int = 5) -> torch.Tensor:
    return (torch.randn(n, 6, generator=torch.Generator().manual_seed(11), dtype=F64) + 0.2) * SIZES


def beam_of(coordinates: torch.Tensor) -> cheetah.ParticleBeam:
    dtype = coordinates.dtype
    rows = torch.cat((coordinates, torch.ones_like(coordinates[..., :1])), dim=-1)
    charges = torch.full((rows.shape[-2],), 1e-12, dtype=dtype)
    energy = torch.tensor(ENERGY, dtype=dtype)
    return cheetah.ParticleBeam(
        rows, energy, particle_charges=charges, species=cheetah.Species("electron", dtype=dtype)
    )


def function_of(strength: float, dtype: torch.dtype = F64, to_particles: bool = True) -> tuple[Function, torch.Tensor]:
    """Return the outputs as a function of every knob and, after them, of the particles; and where it is zero.

    Inputs and outputs are in units of their size, counted from the setting.
    """
    model = CheetahModel(
        line_of(strength), beam_of(particles()), outputs=[f"final.{name}" for name in OUTPUTS], dtype=dtype
    )
    knobs = [
        n for n in model.input_names if n.partition(".")[0] in ("D", "Q", "B", "R", "S", *"HVCUXT", "Q2") and "." in n
    ]
    here = torch.stack([model.get(name) for name in knobs])
    scales = torch.tensor([SCALES[name.rpartition(".")[2]] for name in knobs], dtype=dtype)
    is_kick = torch.tensor([name in ("H.angle", "V.angle") for name in knobs])
    scales = torch.where(is_kick, 2e-4, scales)
    start, count = particles().to(dtype), len(knobs)
    units = {name: abs(model.get(f"final.{name}").item()) + 1e-30 for name in OUTPUTS if name.startswith("sigma_")}

    def unit(name: str) -> float:
        kind, _, rest = name.partition("_")
        if kind == "cov":
            return units[f"sigma_{rest.split('__')[0]}"] * units[f"sigma_{rest.split('__')[1]}"]
        return units[f"sigma_{rest}"]

    def function(u: torch.Tensor) -> torch.Tensor:
        values = (here + scales * u[:count]).unbind()
        inputs = dict(zip(knobs, values, strict=True))
        if to_particles:
            moved = start + SIZES.to(dtype) * u[count:].reshape(start.shape)
            inputs["initial_particles"] = TorchParticleGroup.from_cheetah(beam_of(moved))
        found = model(inputs, outputs=[f"final.{name}" for name in OUTPUTS])
        return torch.stack([found[f"final.{name}"] / unit(name) for name in OUTPUTS])

    assert count > 45
    return function, torch.zeros(count + start.numel() * to_particles, dtype=dtype)


@pytest.mark.parametrize("strength", SETTINGS.values(), ids=SETTINGS)
def test_gradcheck(strength: float) -> None:
    """First derivatives backward, forward and batched, against differences."""
    function, zero = function_of(strength)
    options = {"eps": 1e-5, "atol": 1e-7, "rtol": 1e-7, "check_forward_ad": True, "check_batched_grad": True}
    for _ in range(2):  # fast mode takes one random combination of inputs and outputs at a time
        assert torch.autograd.gradcheck(function, zero.requires_grad_(), fast_mode=True, **options)


@pytest.mark.parametrize("strength", SETTINGS.values(), ids=SETTINGS)
def test_gradgradcheck(strength: float) -> None:
    """Second derivatives, backward over backward and forward over backward, against differences of first ones."""
    function, zero = function_of(strength)
    weights = torch.randn(len(OUTPUTS), 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    options = {"eps": 1e-5, "atol": 1e-6, "rtol": 1e-6, "check_fwd_over_rev": True}
    for _ in range(2):
        assert torch.autograd.gradgradcheck(
            lambda u: function(u) @ weights, zero.requires_grad_(), fast_mode=True, **options
        )


@pytest.mark.parametrize("strength", SETTINGS.values(), ids=SETTINGS)
def test_modes_agree(strength: float) -> None:
    """Forward mode, reverse mode, their nestings, and vmap of a gradient against a loop."""
    function, zero = function_of(strength)
    forward, reverse = torch.func.jacfwd(function)(zero), torch.func.jacrev(function)(zero)
    size = reverse.abs().max()
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12 * size.item())
    direction = torch.randn(zero.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    _, along = torch.func.jvp(function, (zero,), (direction,))
    torch.testing.assert_close(along, reverse @ direction, rtol=1e-10, atol=1e-11 * size.item())

    def total(u: torch.Tensor) -> torch.Tensor:
        return function(u).square().sum()

    points = 0.1 * torch.randn(3, *zero.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    points[0] = 0.0
    mapped = torch.func.vmap(torch.func.grad(total))(points)
    loop = []
    for point in points:
        leaf = point.clone().requires_grad_()
        loop.append(torch.autograd.grad(total(leaf), leaf)[0])
    torch.testing.assert_close(mapped, torch.stack(loop), rtol=1e-9, atol=1e-11 * mapped.abs().max().item())

    def slope(u: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(total, (u,), (direction,))[1]

    over_reverse = torch.func.jvp(torch.func.grad(total), (zero,), (direction,))[1]
    over_forward = torch.func.grad(slope)(zero)
    assert (over_forward - over_reverse).abs().max() <= 1e-10 * over_reverse.abs().max()


@pytest.mark.parametrize("strength", SETTINGS.values(), ids=SETTINGS)
def test_single_precision(strength: float) -> None:
    """Values and derivatives in single precision are those in double, to single precision."""
    results = []
    for dtype in (torch.float32, F64):
        function, zero = function_of(strength, dtype, to_particles=False)
        value, jacobian = function(zero), torch.func.jacrev(function)(zero)
        assert value.dtype == jacobian.dtype == dtype
        results.append((value.double(), jacobian.double()))
    (value, jacobian), (exact, slopes) = results
    # An arrival time counts from the start of the line, which leaves single precision three digits of its spread.
    is_time = torch.tensor([name.endswith("_t") for name in OUTPUTS])
    worst = torch.where(is_time, 2e-2, 1e-4)
    assert ((value - exact).abs() <= worst).all()
    assert ((jacobian - slopes).abs() <= worst[:, None] * slopes.abs().amax(-1, keepdim=True).clamp_min(1.0)).all()
