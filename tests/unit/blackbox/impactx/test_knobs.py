"""What can be set on an ImpactX lattice, and mistakes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.errors import LatticeError, SimulatorError, UnknownVariableError, ValidationError

pytest.importorskip("impactx")
import impactx
from impactx import elements as ix

from lume_diff.blackbox.impactx.knobs import attributes
from lume_diff.blackbox.impactx.lattice import element_data, element_from_data
from lume_diff.blackbox.impactx.model import ImpactXModel
from lume_diff.blackbox.impactx.simulator import ImpactXSimulator, Recipe

Make = Callable[..., Any]

ELEMENTS = [
    ix.Quad(name="E", ds=0.2, k=1.5, rotation=3.0, nslice=4, aperture_x=0.01, aperture_y=0.02),
    ix.ChrQuad(name="E", ds=0.1, k=2.0, unit=1),
    ix.ExactQuad(name="E", ds=0.1, k=2.0),
    ix.Sbend(name="E", ds=0.5, rc=2.0),
    ix.ExactSbend(name="E", ds=0.5, phi=10.0),
    ix.CFbend(name="E", ds=0.5, rc=1.0, k=0.1),
    ix.ThinDipole(name="E", theta=1.0, rc=1.0),
    ix.DipEdge(name="E", psi=0.1, rc=1.0, g=0.01),
    ix.Kicker(name="E", xkick=1e-3, ykick=0.0),
    ix.Kicker(name="E", xkick=1e-3, ykick=0.0, unit="T-m"),
    ix.Sol(name="E", ds=0.1, ks=0.3),
    ix.SoftSolenoid(name="E", ds=0.2, bscale=0.3, cos_coefficients=[0.1, 0.2], sin_coefficients=[0.0, 0.0]),
    ix.ShortRF(name="E", V=0.1, freq=1e9, phase=-80.0),
    ix.Buncher(name="E", V=0.1, k=10.0),
    ix.ConstF(name="E", ds=1.0, kx=1.0, ky=1.0, kt=1e-4),
    ix.ChrAcc(name="E", ds=1.0, ez=10.0, bz=0.0),
    ix.Multipole(name="E", multipole=3, K_normal=1.0, K_skew=0.0),
    ix.ExactMultipole(name="E", ds=0.1, k_normal=[0.0, 1.0, 2.0], k_skew=[0.0, 0.0, 0.5]),
    ix.PlaneXYRot(name="E", angle=3.0),
    ix.PRot(name="E", phi_in=1.0, phi_out=2.0),
    ix.TaperedPL(name="E", k=1.0, taper=1.0),
    ix.NonlinearLens(name="E", knll=1e-3, cnll=1e-2),
    ix.Aperture(name="E", aperture_x=1e-3, aperture_y=1e-3, shape="elliptical"),
    ix.LinearMap(name="E", R=impactx.Map6x6(np.diag([2.0, 0.5, 1, 1, 1, 1]) + np.eye(6, k=1)), ds=0.1),
    ix.Drift(name="E", ds=0.1),
    ix.Marker("E"),
]


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: type(element).__name__)
def test_every_element_survives_as_data_and_every_number_can_be_set(element: Any) -> None:
    data = element_data(element)
    again = element_data(element_from_data(pickle.loads(pickle.dumps(data))))
    assert repr(again) == repr(data)
    known, main = attributes(data)
    assert set(main) <= set(known)
    for name, attribute in known.items():
        value = attribute.read(data)
        changed = element_data(element_from_data({**data, **attribute.write(data, 1.25 * value + 0.125)}))
        assert attribute.read(changed) == pytest.approx(1.25 * value + 0.125, rel=1e-14), name
        unmoved = [n for n, a in known.items() if a.read(changed) == a.read(data)]
        assert len(unmoved) >= len(known) - 3  # nothing else moves but the same number under other names


@pytest.mark.parametrize(
    "element,control,unit",
    [
        (ELEMENTS[0], "E.k1", "1/m^2"),
        (ELEMENTS[0], "E.k", "1/m^2"),
        (ELEMENTS[0], "E.length", "m"),
        (ELEMENTS[0], "E.tilt", "rad"),
        (ELEMENTS[0], "E.rotation", "deg"),
        (ELEMENTS[1], "E.gradient", "T/m"),
        (ELEMENTS[3], "E.angle", "rad"),
        (ELEMENTS[4], "E.angle", "rad"),
        (ELEMENTS[4], "E.phi", "deg"),
        (ELEMENTS[8], "E.hkick", "rad"),
        (ELEMENTS[9], "E.vkick", "T*m"),
        (ELEMENTS[17], "E.k2s", "1/m^3"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_controls_have_the_fields_names_and_units(element: Any, control: str, unit: str, bunch: Make) -> None:
    model = ImpactXModel([element], [control], ["final.s"], beam=bunch(10))
    assert model.supported_variables[control].unit == unit


@pytest.mark.parametrize("element,control,kick,power", [
    (ix.ExactMultipole(name="E", ds=1e-3, k_normal=[0.0] * 4, k_skew=[0.0] * 4), "E.k2", 2.0, 2),
    (ix.ExactMultipole(name="E", ds=1e-3, k_normal=[0.0] * 4, k_skew=[0.0] * 4), "E.k3", 6.0, 3),
    (ix.Multipole(name="E", multipole=3, K_normal=0.0, K_skew=0.0), "E.k2l", 2e-3, 2),
])  # fmt: skip
def test_multipoles_are_those_of_mad(element: Any, control: str, kick: float, power: int, bunch: Make) -> None:
    start = bunch(10, norm_emit_y=1e-12, sigma_energy=0.0)
    model = ImpactXModel([element], [control], [], beam=start)
    before = model.get("final_particles")
    strength = 1e4
    after = model({control: strength})["final_particles"]
    expected = -strength * 1e-3 / kick * before.x**power if "l" not in control else -strength * before.x**power / 2.0
    p0 = np.sqrt(1e16 - 510998.95069**2)
    torch.testing.assert_close((after.px - before.px) / p0, expected, rtol=1e-2, atol=1e-12)


def test_elements_of_one_name_act_as_one(bunch: Make) -> None:
    halves = [ix.Quad(name="Q", ds=0.1, k=2.0), ix.Quad(name="Q", ds=0.1, k=2.0)]
    model = ImpactXModel(halves, ["Q.k1"], ["Q.sigma_x"], beam=bunch())
    whole = ImpactXModel([ix.Quad(name="Q", ds=0.2, k=3.0)], ["Q.k1"], ["Q.sigma_x"], beam=bunch())
    model.set({"Q.k1": 3.0})
    assert model.get("Q.sigma_x").item() == pytest.approx(whole.get("Q.sigma_x").item(), rel=1e-13)
    halves[1].k = 1.0
    with pytest.raises(ValidationError, match="different values"):
        ImpactXModel(halves, ["Q.k1"], beam=bunch())
    assert "Q.k1" not in ImpactXModel(halves, beam=bunch()).input_names


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"controls": ["Q1.k2"]}, UnknownVariableError, "nearest: 'k'"),
        ({"controls": ["QX.k1"]}, UnknownVariableError, "no element 'QX'"),
        ({"controls": "Q1.k1"}, ValidationError, r"write \['Q1.k1'\]"),
        ({"outputs": ["final.sigmax"]}, UnknownVariableError, "nearest: 'final.sigma_x'"),
        ({"outputs": ["Q9.sigma_x"]}, UnknownVariableError, "no element 'Q9'"),
        ({"outputs": ["final.x"]}, UnknownVariableError, "not known"),
        ({"beam": None}, ValidationError, "give beam="),
        ({"space_charge": "4D"}, ValidationError, "expected None or one of 2D"),
        ({"space_charge": "3D", "n_cell": (10, 16, 16)}, ValidationError, "multiples of 8"),
        ({"settings": {"speed": 1}}, ValidationError, "not an attribute of impactx.ImpactX"),
        ({"settings": {"poisson_solver": "magic"}}, ValidationError, "refuses the setting"),
        ({"lattice": []}, LatticeError, "no elements"),
        ({"lattice": [1.0]}, LatticeError, "expected impactx.elements"),
        ({"lattice": "missing.madx"}, LatticeError, "does not exist"),
    ],
)
def test_mistakes_are_refused_when_the_model_is_built(
    change: Any, error: type[Exception], words: str, bunch: Make, line: Make
) -> None:
    options = {"lattice": line(), "controls": ["Q1.k1"], "outputs": ["final.sigma_x"], "beam": bunch(10), **change}
    with pytest.raises(error, match=words):
        ImpactXModel(options.pop("lattice"), **options)


@pytest.mark.parametrize("names", [("k1", "k"), ("length", "ds")], ids="-".join)
def test_two_names_of_one_number_are_refused(names: tuple[str, str], bunch: Make, line: Make) -> None:
    with pytest.raises(ValidationError, match=f"'Q1.{names[0]}' and 'Q1.{names[1]}' set the same number"):
        ImpactXModel(line(), [f"Q1.{name}" for name in names], ["final.sigma_x"], beam=bunch(10))


@pytest.mark.parametrize("controls", [["B.angle", "B.length"], ["B.length", "B.angle"]], ids="-".join)
def test_an_angle_stays_where_the_length_moves_in_whatever_order(controls: list[str], bunch: Make) -> None:
    start = bunch(10)
    short, long = (ImpactXModel([ix.Sbend(name="B", ds=ds, rc=10.0)], controls, [], beam=start) for ds in (0.5, 1.0))
    short.set({"B.length": 1.0, "B.angle": 0.1})
    torch.testing.assert_close(short.get("final_particles").px, long.get("final_particles").px, rtol=1e-12, atol=1e-3)


def test_numbers_that_are_none_never_reach_impactx(bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch(10))
    with pytest.raises(ValidationError):
        model.set({"Q1.k1": float("nan")})
    simulator = ImpactXSimulator(Recipe([element_data(e) for e in line()], ["Q1.k1"], {"final_particles": 5}))
    inputs = {
        "Q1.k1": float("nan"),
        "initial_particles": bunch(10).to_particle_group(),
        "reference_energy": 1e8,
        "reference_time": 0.0,
    }
    with pytest.raises(ValidationError, match="plausible"):
        simulator.run(inputs, ["final_particles"])


def test_a_bunch_that_cannot_start_is_refused(bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch(10))
    start = bunch(10)
    with pytest.raises(SimulatorError, match="fly backwards"):
        model.set({"initial_particles": start.replace(pz=-start.pz)})
    with pytest.raises(SimulatorError, match="lives"):
        model.set({"initial_particles": start.replace(alive=torch.zeros_like(start.alive))})
    with pytest.raises(ld.LumeDiffError):
        model.set({"reference_energy": 1e3})
