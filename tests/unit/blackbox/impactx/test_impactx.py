"""ImpactXModel against ImpactX itself, exact formulas, and the laws of every model."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.blackbox import FiniteDifference
from lume_diff.errors import LatticeError, PhysicsWarning, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.particles import TorchParticleGroup
from lume_diff.testing import check_model

impactx = pytest.importorskip("impactx")
from impactx import elements as ix  # noqa: E402

from lume_diff.blackbox.impactx.knobs import attributes  # noqa: E402
from lume_diff.blackbox.impactx.lattice import element_data, element_from_data  # noqa: E402
from lume_diff.blackbox.impactx.model import ImpactXModel  # noqa: E402
from lume_diff.blackbox.impactx.simulator import ImpactXSimulator, Recipe  # noqa: E402

C = 299792458.0
EXAMPLES = Path(impactx.__file__).parent / "examples"


def bunch(count: int = 500, energy: float = 1e8, charge: float = 1e-10, **changes: Any) -> TorchParticleGroup:
    twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
    values = {**twiss, "sigma_t": 1e-12, "sigma_energy": 1e-3 * energy, **changes}
    return ld.BunchFromMoments(count, mean_energy=energy, charge=charge, **values).get("final_particles")


def line() -> list[Any]:
    return [
        ix.Quad(name="Q1", ds=0.2, k=2.0),
        ix.Drift(name="D1", ds=1.0),
        ix.Quad(name="Q2", ds=0.2, k=-2.0),
        ix.Marker("M"),
        ix.Drift(name="D2", ds=0.5),
    ]


def slit(half_width: float) -> list[Any]:
    return [
        ix.Drift(name="D1", ds=0.5),
        ix.Aperture(name="A", aperture_x=half_width, aperture_y=1.0),
        ix.Quad(name="Q", ds=0.1, k=1.0),
        ix.Drift(name="D2", ds=0.5),
    ]


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def richardson(model: Any, output: str, name: str, step: float) -> float:
    here = number(model.get(name))

    def difference(h: float) -> float:
        up, down = (number(model({name: here + sign * h}, outputs=[output])[output]) for sign in (1, -1))
        return (up - down) / (2 * h)

    table = [difference(step / 2**i) for i in range(5)]
    for order in range(1, 5):
        table = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(table)]
    return table[0]


# -- coordinates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("species", ["electron", "positron", "proton"])
def test_an_exact_drift_is_exact_in_every_coordinate(species: str) -> None:
    energy = 3e9 if species == "proton" else 6e6
    start = bunch(200, energy, norm_emit_x=1e-4, norm_emit_y=1e-4, sigma_energy=0.02 * energy)
    mass = {"proton": 938272089.43}.get(species, 510998.95069)
    # From 5 m, at 2 us: far from the origin, as a stage in a chain is.
    start = TorchParticleGroup(
        start.x, start.y, start.z + 5.0, start.px, start.py, start.pz, start.t + 2e-6, start.weight, species=species
    )
    model = ImpactXModel([ix.ExactDrift(name="D", ds=2.0)], ["D.length"], ["final.s"], beam=start)
    found = model.get("final_particles")
    p = (start.px**2 + start.py**2 + start.pz**2).sqrt()
    for name, expected, size in (
        ("x", start.x + 2.0 * start.px / start.pz, 1e-3),
        ("y", start.y + 2.0 * start.py / start.pz, 1e-3),
        ("px", start.px, energy),
        ("py", start.py, energy),
        ("pz", start.pz, energy),
        ("t", start.t + 2.0 * (p**2 + mass**2).sqrt() / (start.pz * C), 2e-6),
        ("z", torch.full_like(start.z, 7.0), 7.0),
    ):
        difference = (getattr(found, name) - expected).abs().max()
        assert number(difference) <= 1e-14 * size, name
    assert torch.equal(found.id, start.id)
    assert torch.equal(found.weight, start.weight)
    assert found.species == species
    assert number(model.get("final.s")) == 2.0


def test_a_quadrupole_focuses_as_cheetah_says() -> None:
    import cheetah

    start = bunch(sigma_energy=0.0)
    quad = cheetah.Quadrupole(torch.tensor(0.3), torch.tensor(1.7), name="Q")
    expected = ld.CheetahModel(cheetah.Segment([quad], name="line"), start, outputs=["final.sigma_x", "final.sigma_y"])
    model = ImpactXModel([ix.Quad(name="Q", ds=0.3, k=1.7)], None, ["final.sigma_x", "final.sigma_y"], beam=start)
    for name in ("final.sigma_x", "final.sigma_y"):
        assert number(model.get(name)) == pytest.approx(number(expected.get(name)), rel=1e-6)


def test_an_energy_error_acts_because_the_reference_stays() -> None:
    start = bunch()
    model = ImpactXModel(
        [ix.ExactSbend(name="B", ds=1.0, phi=10.0)], ["B.angle"], ["final.mean_x", "final.reference_energy"], beam=start
    )
    assert number(model.get("B.angle")) == pytest.approx(np.radians(10.0), rel=1e-15)
    factor = 1.01
    faster = start.replace(px=start.px * factor, py=start.py * factor, pz=start.pz * factor)
    before = number(model.get("final.mean_x"))
    model.set({"initial_particles": faster})
    dispersion = 1.0 / np.radians(10.0) * (1.0 - np.cos(np.radians(10.0)))
    assert number(model.get("final.mean_x")) - before == pytest.approx(0.01 * dispersion, rel=0.02)
    assert number(model.get("final.reference_energy")) == pytest.approx(1e8, rel=1e-12)
    model.set({"reference_energy": factor * 1e8})
    assert number(model.get("final.mean_x")) == pytest.approx(before, abs=2e-6)


def test_a_cavity_raises_the_reference_energy() -> None:
    model = ImpactXModel(
        [ix.Drift(name="D", ds=0.1), ix.ShortRF(name="C", V=2.0, freq=1.3e9, phase=0.0), ix.Drift(name="E", ds=0.1)],
        ["C.V"],
        ["C.reference_energy", "D.reference_energy", "final.mean_energy"],
        beam=bunch(sigma_t=1e-14),
    )
    gain = 2.0 * 510998.95069
    assert number(model.get("D.reference_energy")) == pytest.approx(1e8, rel=1e-12)
    assert number(model.get("C.reference_energy")) == pytest.approx(1e8 + gain, rel=1e-12)
    assert number(model.get("final.mean_energy")) == pytest.approx(1e8 + gain, rel=1e-6)
    assert number(model.reference_energy(None, ["C"])["C"]) == pytest.approx(1e8, rel=1e-12)
    with pytest.raises(UnknownVariableError):
        model.reference_energy(None, ["E"])
    slope = model.jacobian(["C.reference_energy"], ["C.V"])["C.reference_energy"]["C.V"]
    assert number(slope) == pytest.approx(510998.95069, rel=1e-8)


def test_a_bunch_at_one_time_is_brought_to_a_plane() -> None:
    from beamphysics import ParticleGroup

    start = bunch(50)
    snapshot = start.to_particle_group()
    snapshot.drift_to_t(float(snapshot.t.mean()))
    model = ImpactXModel(line(), [], ["final.sigma_x"], beam=start)
    expected = number(model.get("final.sigma_x"))
    assert isinstance(snapshot, ParticleGroup)
    model.set({"initial_particles": snapshot})
    assert number(model.get("final.sigma_x")) == pytest.approx(expected, rel=1e-6)


def test_the_transfer_matrix_is_that_of_the_particles() -> None:
    start = bunch()
    model = ImpactXModel(line(), [], ["M.r_matrix", "M.particles"], beam=start)
    found, matrix = model.get("M.particles"), model.get("M.r_matrix")
    p0 = np.sqrt(1e16 - 510998.95069**2)
    x = matrix[0, 0] * start.x + matrix[0, 1] * start.px / p0
    torch.testing.assert_close(found.x, x, rtol=1e-12, atol=1e-18)


# -- losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space_charge", [None, "3D"])
def test_lost_particles_are_dead_and_the_others_keep_their_places(space_charge: str | None) -> None:
    start = bunch()
    free = ImpactXModel(slit(1.0), [], ["A.particles"], beam=start)
    width = 0.5 * number(start["sigma_x"])
    model = ImpactXModel(
        slit(width), ["A.aperture_x"], ["A.particles"], beam=start, space_charge=space_charge, n_cell=(16, 16, 16)
    )
    found, whole = model.get("A.particles"), free.get("A.particles")
    alive = found.alive > 0.5
    assert 0 < int(alive.sum()) < len(alive)
    assert torch.equal(found.id, start.id)
    if space_charge is None:
        assert torch.equal(alive, whole.x.abs() <= width)
        assert torch.equal(found.x[alive], whole.x[alive])
    assert bool((found.x.abs()[alive] <= width).all())
    assert torch.equal(found.pz[~alive], found.pz[~alive][:1].expand(int((~alive).sum())))
    assert torch.isfinite(model.get("final_particles").pz).all()


@pytest.mark.parametrize("space_charge", [None, "3D"])
def test_a_bunch_that_is_lost_whole_is_dead_and_no_error(space_charge: str | None) -> None:
    model = ImpactXModel(
        slit(1e-12), ["A.aperture_x"], ["final.charge"], beam=bunch(), space_charge=space_charge, n_cell=(16, 16, 16)
    )
    assert number(model.get("final_particles").alive.sum()) == 0.0
    assert number(model.get("final.charge")) == 0.0
    model.set({"A.aperture_x": 1.0})
    assert number(model.get("final_particles").alive.sum()) == 500.0


# -- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("output", ["final.sigma_x", "final.sigma_y", "M.sigma_x"])
@pytest.mark.parametrize("name", ["Q1.k1", "Q2.k1", "D1.length"])
def test_sigma_against_a_knob(output: str, name: str) -> None:
    model = ImpactXModel(line(), ["Q1.k1", "Q2.k1", "D1.length"], [output], beam=bunch())
    found = number(model.jacobian([output], [name])[output][name])
    assert found == pytest.approx(richardson(model, output, name, 0.1), rel=1e-7)
    entries = [entry for entry in model.gradient_report().entries if entry.input == name]
    assert entries
    assert all(entry.error is not None for entry in entries)


def test_it_keeps_every_law() -> None:
    model = ImpactXModel(line(), beam=bunch())
    results = check_model(model)
    assert all(text.startswith("passed") for text in results.values()), results


def test_it_keeps_every_law_with_space_charge() -> None:
    model = ImpactXModel(
        [ix.Quad(name="Q1", ds=0.2, k=2.0, nslice=2), ix.Drift(name="D1", ds=0.5, nslice=2)],
        ["Q1.k1"],
        ["final.sigma_x", "final.sigma_y"],
        beam=bunch(200, charge=1e-9),
        space_charge="3D",
        n_cell=(16, 16, 16),
        gradient=FiniteDifference(particles="collective"),
    )
    # Reverse mode is not there with collective forces, which is what the laws left out are about.
    reverse = ("gradient", "graphs", "separate_graphs", "jacobian", "transforms", "batches", "inference")
    results = check_model(model, outputs=["final.sigma_x"], skip=reverse)
    assert all(text.startswith(("passed", "skipped")) for text in results.values()), results


# -- one ImpactX for all ---------------------------------------------------------------------------------------


def test_models_of_one_process_share_impactx_and_stay_apart() -> None:
    start = bunch(charge=1e-9)
    plain = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=start)
    dense = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=start, space_charge="3D", n_cell=(16, 16, 16))
    other = copy.deepcopy(plain)
    again = pickle.loads(pickle.dumps(dense))
    first = number(plain.get("final.sigma_x")), number(dense.get("final.sigma_x"))
    assert first[1] > 1.001 * first[0]
    for value in (1.5, 2.5, 2.0):
        plain.set({"Q1.k1": value})
        dense.set({"Q1.k1": value})
    assert (number(plain.get("final.sigma_x")), number(dense.get("final.sigma_x"))) == first
    assert (number(other.get("final.sigma_x")), number(again.get("final.sigma_x"))) == first
    dense.close()
    plain.set({"Q1.k1": 2.0})
    assert number(plain.get("final.sigma_x")) == first[0]


def test_nothing_is_printed_and_no_file_is_left(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    elements = [*line(), ix.BeamMonitor("MON", backend="h5"), *slit(1e-4)]
    for name in ("fft", "multigrid"):
        model = ImpactXModel(
            elements,
            ["Q1.k1"],
            ["MON.sigma_x"],
            beam=bunch(),
            space_charge="3D",
            n_cell=(16, 16, 16),
            settings={"poisson_solver": name, "prob_relative": [3.0]},
        )
        model.get("MON.sigma_x")
    model = ImpactXModel(str(EXAMPLES / "fodo" / "input_fodo.in"), beam=bunch())
    model.get("final.sigma_x")
    model.close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


ALONE = """
    import os, signal, time, impactx, lume_diff as ld
    from impactx import elements as ix
    from lume_diff.blackbox.impactx.model import ImpactXModel

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

    def theirs():
        sim = impactx.ImpactX()
        sim.verbose, sim.diagnostics, sim.tiny_profiler, sim.space_charge = 0, False, False, False
        sim.init_grids()
        return sim

    twiss = dict(beta_x=5.0, norm_emit_x=1e-6, beta_y=4.0, norm_emit_y=1e-6)
    beam = ld.BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss).get("final_particles")
    line = [ix.Quad(name="Q", ds=0.2, k=1.0)]
    sim = theirs()
    try:
        ImpactXModel(line, beam=beam)
    except ld.SimulatorError as error:
        print("refused:", error)
    sim.finalize()

    model = ImpactXModel(line, ["Q.k1"], ["final.sigma_x"], beam=beam)
    before = float(model.get("final.sigma_x"))
    theirs().finalize()
    model.refresh()
    print("after a foreign finalize:", float(model.get("final.sigma_x")) == before)

    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A process that also uses ImpactX by hand, and is interrupted."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ALONE)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path_factory.mktemp("alone"),
    )


@pytest.mark.system
def test_an_impactx_of_the_users_own_is_noticed(alone: subprocess.CompletedProcess[str]) -> None:
    assert "workers=1" in alone.stdout.partition("refused:")[2].splitlines()[0], alone.stderr


@pytest.mark.system
def test_a_foreign_finalize_does_not_end_the_process(alone: subprocess.CompletedProcess[str]) -> None:
    assert "after a foreign finalize: True" in alone.stdout, alone.stderr


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupts_stay_pythons(alone: subprocess.CompletedProcess[str]) -> None:
    assert alone.stdout.splitlines()[-1] == "interrupted", alone.stderr
    assert (alone.returncode, alone.stderr) == (0, "")


# -- lattices --------------------------------------------------------------------------------------------------


def test_the_lattice_given_is_not_changed() -> None:
    elements = line()
    model = ImpactXModel(elements, beam=bunch())
    model.set({"Q1.k1": 3.0, "D1.length": 2.0})
    assert (elements[0].k, elements[1].ds) == (2.0, 1.0)
    model.simulator.select(name="Q1")[0].k = 7.0
    assert elements[0].k == 2.0


def test_refresh_reads_what_was_changed_by_hand() -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch())
    before = number(model.get("final.sigma_x"))
    model.simulator.select(name="Q1")[0].k = 5.0
    model.simulator.select(name="D2")[0].ds = 1.5
    model.refresh()
    after = number(model.get("final.sigma_x"))
    assert number(model.get("Q1.k1")) == 5.0
    fresh = line()
    fresh[0].k, fresh[-1].ds = 5.0, 1.5
    assert after == number(ImpactXModel(fresh, [], ["final.sigma_x"], beam=bunch()).get("final.sigma_x"))
    assert after != before
    model.simulator.append(ix.Marker("new"))
    with pytest.raises(LatticeError, match="build a new model"):
        model.refresh()


def test_elements_that_act_through_python_come_from_a_function() -> None:
    calls = []

    def lattice() -> list[Any]:
        element = ix.Programmable(name="P", ds=0.0)
        element.push = lambda beam, step, period: calls.append(step)
        return [*line(), element]

    model = ImpactXModel(lattice, ["Q1.k1"], ["final.sigma_x"], beam=bunch())
    model.set({"Q1.k1": 1.0})
    assert calls
    with pytest.raises(LatticeError, match="function that returns"):
        ImpactXModel(lattice(), beam=bunch())


@pytest.mark.parametrize("name", ["fodo.madx", "input_fodo.in"])
def test_lattices_are_read_from_files(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Our MAD-X and PALS parsers", RuntimeWarning)
        model = ImpactXModel(str(EXAMPLES / "fodo" / name), beam=bunch())
    strengths = {round(number(model.get(n)), 9) for n in model.input_names if n.endswith(".k1")}
    assert strengths == {1.0, -1.0}
    assert number(model.get("final.sigma_x")) > 0


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
def test_controls_have_the_fields_names_and_units(element: Any, control: str, unit: str) -> None:
    model = ImpactXModel([element], [control], ["final.s"], beam=bunch(10))
    assert model.supported_variables[control].unit == unit


@pytest.mark.parametrize("element,control,kick,power", [
    (ix.ExactMultipole(name="E", ds=1e-3, k_normal=[0.0] * 4, k_skew=[0.0] * 4), "E.k2", 2.0, 2),
    (ix.ExactMultipole(name="E", ds=1e-3, k_normal=[0.0] * 4, k_skew=[0.0] * 4), "E.k3", 6.0, 3),
    (ix.Multipole(name="E", multipole=3, K_normal=0.0, K_skew=0.0), "E.k2l", 2e-3, 2),
])  # fmt: skip
def test_multipoles_are_those_of_mad(element: Any, control: str, kick: float, power: int) -> None:
    start = bunch(10, norm_emit_y=1e-12, sigma_energy=0.0)
    model = ImpactXModel([element], [control], [], beam=start)
    before = model.get("final_particles")
    strength = 1e4
    after = model({control: strength})["final_particles"]
    expected = -strength * 1e-3 / kick * before.x**power if "l" not in control else -strength * before.x**power / 2.0
    p0 = np.sqrt(1e16 - 510998.95069**2)
    torch.testing.assert_close((after.px - before.px) / p0, expected, rtol=1e-2, atol=1e-12)


def test_elements_of_one_name_act_as_one() -> None:
    halves = [ix.Quad(name="Q", ds=0.1, k=2.0), ix.Quad(name="Q", ds=0.1, k=2.0)]
    model = ImpactXModel(halves, ["Q.k1"], ["Q.sigma_x"], beam=bunch())
    whole = ImpactXModel([ix.Quad(name="Q", ds=0.2, k=3.0)], ["Q.k1"], ["Q.sigma_x"], beam=bunch())
    model.set({"Q.k1": 3.0})
    assert number(model.get("Q.sigma_x")) == pytest.approx(number(whole.get("Q.sigma_x")), rel=1e-13)
    halves[1].k = 1.0
    with pytest.raises(ValidationError, match="different values"):
        ImpactXModel(halves, ["Q.k1"], beam=bunch())
    assert "Q.k1" not in ImpactXModel(halves, beam=bunch()).input_names


# -- what is refused -------------------------------------------------------------------------------------------


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
def test_mistakes_are_refused_when_the_model_is_built(change: Any, error: type[Exception], words: str) -> None:
    options = {"lattice": line(), "controls": ["Q1.k1"], "outputs": ["final.sigma_x"], "beam": bunch(10), **change}
    with pytest.raises(error, match=words):
        ImpactXModel(options.pop("lattice"), **options)


def test_numbers_that_are_none_never_reach_impactx() -> None:
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


def test_a_bunch_that_cannot_start_is_refused() -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch(10))
    start = bunch(10)
    with pytest.raises(SimulatorError, match="fly backwards"):
        model.set({"initial_particles": start.replace(pz=-start.pz)})
    with pytest.raises(SimulatorError, match="lives"):
        model.set({"initial_particles": start.replace(alive=torch.zeros_like(start.alive))})
    with pytest.raises(ld.LumeDiffError):
        model.set({"reference_energy": 1e3})


def test_particles_that_act_on_each_other_are_noticed() -> None:
    elements = [ix.Drift(name="D", ds=1.0, nslice=4), ix.Quad(name="Q", ds=0.2, k=1.0, nslice=2)]
    start = bunch(200, charge=1e-9)
    model = ImpactXModel(elements, ["Q.k1"], ["final.sigma_x"], beam=start, space_charge="3D", n_cell=(16, 16, 16))
    x = start.x.clone().requires_grad_()
    value = model({"initial_particles": start.replace(x=x)}, outputs=["final.sigma_x"])["final.sigma_x"]
    with pytest.warns(PhysicsWarning, match=r"off by 0\.\d+ in a random direction"):
        value.backward()


def test_the_identity_tells_lattices_and_settings_apart() -> None:
    data = [element_data(element) for element in line()]
    first = ImpactXSimulator(Recipe(data, ["Q1.k1"]))
    same = ImpactXSimulator(Recipe(data, ["Q1.k1"]))
    assert first.identity() == same.identity()
    assert impactx.__version__ in first.identity()
    same.native.select(name="D2")[0].ds = 3.0
    others = [same, ImpactXSimulator(Recipe(data, ["Q1.k1"], settings={"space_charge": "3D"}))]
    assert len({first.identity(), *(other.identity() for other in others)}) == 3
