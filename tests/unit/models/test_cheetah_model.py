"""CheetahModel as an engine: names, beams, batches, arrays along the line, and bad input."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import beamphysics
import cheetah
import numpy as np
import pytest
import torch

from lume_diff import (
    CheetahModel,
    LatticeError,
    ReadOnlyError,
    ShapeError,
    TorchParticleGroup,
    UnknownVariableError,
    ValidationError,
)

F64 = torch.float64


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def beam_of(n: int = 300, seed: int = 8) -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(seed)
    scale = t((4e-4, 2e-5, 3e-4, 1e-5, 2e-4, 2e-3))
    particles = (torch.randn(n, 6, generator=generator, dtype=F64) + 0.1) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(n, 1, dtype=F64)), dim=-1),
        energy=t(1e8),
        particle_charges=torch.rand(n, generator=generator, dtype=F64) * 1e-13,
        s=t(0.5),
        species=cheetah.Species("electron", dtype=F64),
    )


def line() -> list[cheetah.accelerator.Element]:
    return [
        cheetah.Quadrupole(t(0.2), t(0.0), name="Q1", dtype=F64),
        cheetah.Drift(t(0.6), name="D1", dtype=F64),
        cheetah.BPM(is_active=True, name="BPM1", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(-3.0), name="Q2", dtype=F64),
        cheetah.Screen(resolution=(12, 8), pixel_size=t((4e-4, 4e-4)), is_active=True, name="SCR1", dtype=F64),
        cheetah.Drift(t(0.4), name="D2", dtype=F64),
    ]


def model_of(**options: object) -> CheetahModel:
    return CheetahModel(cheetah.Segment(line()), beam_of(), **options)


# -- names ---------------------------------------------------------------------------------------------------


def test_everything_is_offered() -> None:
    model = model_of()
    assert {
        "Q1.k1",
        "Q1.length",
        "Q1.tilt",
        "Q2.misalignment_x",
        "D1.length",
        "BPM1.is_active",
        "SCR1.pixel_size_x",
    } <= set(model.input_names)
    assert model.input_names[-3:] == ["initial_particles", "reference_energy", "reference_time"]
    expected = {"BPM1.x", "SCR1.image", "Q1.beta_x", "final.sigma_x", "line.beta_x", "D1.particles", "final_particles"}
    assert expected <= set(model.output_names)
    values = model.get()
    assert set(values) == {*model.input_names, *model.output_names}
    for name in model.output_names:
        variable = model.supported_variables[name]
        assert variable.read_only
        variable.validate_value(values[name], dtype=F64, device=torch.device("cpu"))


def test_only_what_was_asked_for() -> None:
    model = model_of(controls=["Q1.k1", "reference_energy"], outputs=["SCR1.image", "final.sigma_x"])
    assert model.input_names == ["Q1.k1", "initial_particles", "reference_energy", "reference_time"]
    assert model.output_names == ["SCR1.image", "final.sigma_x", "final_moments", "final_particles"]


@pytest.mark.parametrize(
    "key",
    [
        "sigma_x",
        "norm_emit_4d",
        "cov_x__px",
        "percentile_90_x",
        "twiss_alpha_y",
        "ptp_t",
        "mean_kinetic_energy",
        "bunching_1e-4",
    ],
)
def test_any_statistic_of_openpmd_behind_any_element(key: str) -> None:
    model = model_of(outputs=[f"Q2.{key}", f"final.{key}", "Q2.particles", "final_particles"])
    for place in ("Q2", "final"):
        bunch = model.get("Q2.particles" if place == "Q2" else "final_particles")
        torch.testing.assert_close(model.get(f"{place}.{key}"), bunch.alive_only[key], rtol=1e-10, atol=0.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"controls": ["Q1.k2"]}, UnknownVariableError, r"'Q1.k2' is not a knob of the line; nearest: .*'Q1.k1'"),
        ({"controls": ["q1.K1"]}, UnknownVariableError, r"nearest: .*'Q1.k1'"),
        ({"outputs": ["SRC1.image"]}, UnknownVariableError, r"no element 'SRC1' in the line; nearest: 'SCR1'"),
        (
            {"outputs": ["Q1.simga_x"]},
            UnknownVariableError,
            r"'simga_x' is not something to read at 'Q1'; nearest: 'sigma_x'",
        ),
        ({"outputs": ["Q1.image"]}, UnknownVariableError, r"'image' is not something to read at 'Q1'"),
        ({"outputs": ["Q1.x"]}, UnknownVariableError, r"'x' is not something to read at 'Q1'"),
        ({"outputs": ["sigma_x"]}, UnknownVariableError, r"no element 'sigma_x' in the line"),
        ({"outputs": ["line.sigma_q"]}, UnknownVariableError, "line"),
        ({"controls": "Q1.k1"}, ValidationError, r"controls must be a list of names.*write \['Q1.k1'\]"),
        ({"outputs": "Q1.k1"}, ValidationError, r"outputs must be a list of names"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_names_that_do_not_exist(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model_of(**options)


@pytest.mark.parametrize("name", ["final", "line"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(LatticeError, match=f"element is called '{name}'"):
        CheetahModel(cheetah.Segment([cheetah.Marker(name=name)]), beam_of())


def test_names_with_dots_and_those_of_methods() -> None:
    names = ("R.1:Q-1", "train", "forward", "type")
    pieces = [cheetah.Quadrupole(t(0.1), t(1.0), name=name, sanitize_name=False, dtype=F64) for name in names]
    pieces[0].k1 = torch.nn.Parameter(t(1.0))
    model = CheetahModel(cheetah.Segment(pieces, name="S"), beam_of(), outputs=["R.1:Q-1.sigma_x", "train.sigma_x"])
    for name in names:
        before = model.get("train.sigma_x").item()
        model.set({f"{name}.k1": 2.0})
        assert (model.get("train.sigma_x").item() != before) == (name in names[:2])
    pickle.loads(pickle.dumps(model)).get("train.sigma_x")


def test_an_empty_segment() -> None:
    with pytest.raises(LatticeError, match="has no elements"):
        CheetahModel(cheetah.Segment([cheetah.Segment([])]), beam_of())


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_numbers_that_are_none(value: float) -> None:
    with pytest.raises(LatticeError, match=r"Q1.k1 is (nan|inf): expected finite"):
        CheetahModel(cheetah.Segment([cheetah.Quadrupole(t(0.2), t(value), name="Q1")]), beam_of())


def test_an_open_aperture_has_no_number_until_it_is_set() -> None:
    model = CheetahModel(cheetah.Segment([cheetah.Aperture(name="A1", dtype=F64)]), beam_of(), outputs=["A1.survival"])
    assert model.get("A1.x_max") is None
    assert model.get("A1.survival") == 1.0
    assert str(model.plan()) == "1  A1  one matrix"
    model.set({"A1.x_max": 3e-4})
    assert 0.1 < model.get("A1.survival") < 0.9
    model.simulator.A1.y_max = t(1e-4)
    model.refresh()
    assert model.get("A1.y_max") == 1e-4
    model.reset()
    assert model.get("A1.x_max") is None


# -- beams ---------------------------------------------------------------------------------------------------


def beam_file(tmp_path: Path) -> Path:
    path = tmp_path / "beam.h5"
    TorchParticleGroup.from_cheetah(beam_of()).to_openpmd(path)
    return path


@pytest.mark.parametrize("kind", ["cheetah", "torch", "beamphysics", "openpmd path", "openpmd string"])
def test_beams_of_every_kind_are_the_same(kind: str, tmp_path: Path) -> None:
    path = beam_file(tmp_path)
    beam = {
        "cheetah": beam_of,
        "torch": lambda: TorchParticleGroup.from_cheetah(beam_of()),
        "beamphysics": lambda: beamphysics.ParticleGroup(str(path)),
        "openpmd path": lambda: path,
        "openpmd string": lambda: str(path),
    }[kind]()
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=["final.sigma_x", "final.sigma_t", "final.charge"])
    # A ParticleGroup has no reference: the mean energy takes its place, so the bunch is compared at one.
    out = model({"reference_energy": 1e8, "reference_time": 0.0})
    expected = model_of(outputs=list(out))({"reference_energy": 1e8, "reference_time": 0.0})
    for name in ("final.sigma_x", "final.sigma_t", "final.charge"):
        torch.testing.assert_close(out[name], expected[name], rtol=1e-9, atol=0.0)


def test_a_beam_from_an_astra_file(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    rows = np.zeros((200, 10))
    rows[:, :3] = generator.normal(size=(200, 3)) * 1e-4
    rows[:, 3:5] = generator.normal(size=(200, 2)) * 1e3
    rows[1:, 5] = generator.normal(size=199) * 1e4
    rows[0, :6] = (0.0, 0.0, 1.2, 0.0, 0.0, 5e6)
    rows[:, 7], rows[:, 8], rows[:, 9] = -1e-5, 1, 5
    rows[-3:, 9] = -89  # lost
    path = tmp_path / "run.ini"
    np.savetxt(path, rows)
    model = CheetahModel(cheetah.Segment(line()), path, outputs=["final.sigma_x", "final.charge"])
    raw = cheetah.Segment(line()).track(cheetah.ParticleBeam.from_astra(str(path), dtype=F64))
    assert model.get("final.charge").item() == pytest.approx(197 * 1e-14, rel=1e-12)
    bunch = model.get("final_particles")
    torch.testing.assert_close(bunch.x, raw.x, rtol=1e-10, atol=1e-16)
    assert model.get("reference_energy").item() == pytest.approx(raw.energy.item(), rel=1e-12)


def test_a_snapshot_in_time_keeps_its_length(shared_data: Path) -> None:
    path = shared_data / "lcls_injector_impact_10000.h5"
    model = CheetahModel(
        cheetah.Segment([cheetah.Marker(name="M1")]), path, outputs=["final.sigma_t", "final.norm_emit_x"]
    )
    group = beamphysics.ParticleGroup(str(path))
    group.drift_to_z()
    assert model.get("final.sigma_t").item() == pytest.approx(group["sigma_t"], rel=1e-9)
    assert model.get("final.norm_emit_x").item() == pytest.approx(group["norm_emit_x"], rel=1e-9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"\x89HDF\r\n\x1a\nrubbish", "beam.h5"),
        (b"once upon a time", "neither an openPMD file"),
    ],
    ids=["missing", "broken HDF5", "text"],
)
def test_beam_files_that_are_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / ("beam.txt" if content and content.startswith(b"once") else "beam.h5")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LatticeError, match=message):
        CheetahModel(cheetah.Segment(line()), path)


def test_beams_that_are_none() -> None:
    with pytest.raises(ValidationError, match=r"beam is a builtins.int; expected a TorchParticleGroup"):
        CheetahModel(cheetah.Segment(line()), 3)


# -- batches -------------------------------------------------------------------------------------------------

BATCHED = ["BPM1.x", "SCR1.image", "final.sigma_x", "Q1.sigma_x", "line.sigma_y", "final.survival", "final.s"]


def test_batches_of_settings_of_bunches_and_of_both() -> None:
    model = model_of(outputs=BATCHED)
    bunches = [TorchParticleGroup.from_cheetah(beam_of(seed=seed)) for seed in (1, 2)]
    stacked = TorchParticleGroup.stack(bunches)
    k1 = t((-2.0, 0.0, 2.0))
    settings = model({"Q2.k1": k1}, outputs=BATCHED)
    beams = model({"initial_particles": stacked}, outputs=BATCHED)
    both = model({"Q2.k1": k1[:, None], "initial_particles": stacked}, outputs=[*BATCHED, "final_particles"])
    assert both["final_particles"].batch_shape == (3, 2)
    for i, strength in enumerate(k1):
        for j, bunch in enumerate(bunches):
            alone = model({"Q2.k1": strength, "initial_particles": bunch}, outputs=BATCHED)
            for name in BATCHED:
                assert both[name].shape[:2] == (3, 2)
                torch.testing.assert_close(both[name][i, j], alone[name], rtol=1e-10, atol=1e-22)
        alone = model({"Q2.k1": strength}, outputs=BATCHED)
        for name in BATCHED:
            torch.testing.assert_close(settings[name][i], alone[name], rtol=1e-10, atol=1e-22)
    for j, bunch in enumerate(bunches):
        alone = model({"initial_particles": bunch}, outputs=BATCHED)
        for name in BATCHED:
            torch.testing.assert_close(beams[name][j], alone[name], rtol=1e-10, atol=1e-22)


def test_what_is_upstream_of_a_batch_has_its_shape_too() -> None:
    model = model_of(outputs=["Q1.sigma_x", "Q1.particles", "final_moments"])
    out = model({"Q2.k1": t((1.0, 2.0)).requires_grad_()})
    assert out["Q1.sigma_x"].shape == (2,)
    assert out["Q1.particles"].batch_shape == out["final_moments"].batch_shape == (2,)


def test_batches_that_do_not_fit() -> None:
    model = model_of(outputs=["final.sigma_x"])
    with pytest.raises(ShapeError, match="do not broadcast"):
        model({"Q1.k1": t((1.0, 2.0)), "Q2.k1": t((1.0, 2.0, 3.0))})
    with pytest.raises((ShapeError, ValidationError), match=r"BPM1\.is_active"):
        model({"BPM1.is_active": torch.tensor([True, False])})


# -- along the line ------------------------------------------------------------------------------------------


def test_arrays_along_the_line() -> None:
    model = model_of()
    names = [element.name for element in line()]
    for quantity in ("sigma_x", "beta_y", "mean_x", "sigma_energy"):
        along = model.get(f"line.{quantity}")
        assert along.shape == (len(names) + 1,)
        torch.testing.assert_close(along[1:], torch.stack([model.get(f"{name}.{quantity}") for name in names]))
        torch.testing.assert_close(along[-1], model.get(f"final.{quantity}"), rtol=1e-12, atol=1e-18)
    assert model.get("line.s").tolist() == pytest.approx([0.0, 0.2, 0.8, 0.8, 1.0, 1.0, 1.4])
    assert model.get("line.survival").tolist() == [1.0] * 7
    assert model.get("line.reference_energy").tolist() == [1e8] * 7
    start = TorchParticleGroup.from_cheetah(beam_of())
    torch.testing.assert_close(model.get("line.sigma_x")[0], start["sigma_x"])
    torch.testing.assert_close(model.get("final_particles").z[0], t(1.9))


def test_time_of_flight() -> None:
    model = model_of(outputs=["final.mean_t", "final_particles"])
    bunch = model.get("final_particles")
    gamma = 1e8 / bunch.mass
    expected = 1.4 / (299792458.0 * (1.0 - gamma**-2) ** 0.5)
    assert bunch.reference_time.item() == pytest.approx(expected, rel=1e-12)
    model.set({"reference_time": 1e-9})
    assert model.get("final_particles").reference_time.item() == pytest.approx(expected + 1e-9, rel=1e-12)


# -- memory, precision, copies -------------------------------------------------------------------------------


def test_single_precision() -> None:
    model = model_of(outputs=["final.sigma_x", "SCR1.image", "final_particles"])
    before = model.get(["final.sigma_x", "SCR1.image"])
    model.to(torch.float32)
    after = model.get(["final.sigma_x", "SCR1.image", "final_particles"])
    assert after["final_particles"].dtype == after["SCR1.image"].dtype == torch.float32
    torch.testing.assert_close(after["final.sigma_x"].double(), before["final.sigma_x"], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(after["SCR1.image"].double(), before["SCR1.image"], rtol=1e-2, atol=1e-15)
    built = CheetahModel(cheetah.Segment(line()), beam_of(), outputs=["final.sigma_x"], dtype=torch.float32)
    torch.testing.assert_close(built.get("final.sigma_x"), after["final.sigma_x"], rtol=1e-5, atol=0.0)


def test_copies_live_on_their_own() -> None:
    segment = cheetah.Segment(line())
    k1 = t(1.0).requires_grad_()
    segment.Q1.k1 = k1 * 1.0  # Cheetah's own caches and screens hold graphs, which cannot be copied
    segment.track(beam_of())
    segment.Q1.k1 = t(1.0)
    model = CheetahModel(segment, beam_of(), outputs=["final.sigma_x"])
    model.set({"Q2.k1": k1 * 2.0})
    before = model.get("final.sigma_x").item()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.get("final.sigma_x").item() == pytest.approx(before, rel=1e-14)
        other.simulator.D1.length = t(2.0)
        other.refresh()
        assert other.get("final.sigma_x").item() != pytest.approx(before, rel=1e-3)
        assert other.get("Q2.k1").item() == 2.0
    assert model.get("final.sigma_x").item() == before
    assert model.simulator is segment


def test_bad_input_leaves_the_model_as_it_was() -> None:
    model = model_of(outputs=["final.sigma_x"])
    model.set({"Q1.k1": 1.0})
    before = model.get("final.sigma_x").item()
    for values, error in (
        ({"Q1.k1": 2.0, "Q9.k1": 1.0}, UnknownVariableError),
        ({"Q1.k1": 2.0, "final.sigma_x": 1.0}, ReadOnlyError),
        ({"Q1.k1": float("nan")}, ValidationError),
        ({"Q1.k1": 2.0, "reference_energy": 1e5}, ValidationError),
        ({"Q1.k1": 2.0, "initial_particles": 3.0}, ValidationError),
    ):
        with pytest.raises(error):
            model.set(values)
        assert model.get("final.sigma_x").item() == before
        assert model.get("Q1.k1").item() == 1.0


def test_reference_energy_needs_no_tracking() -> None:
    model = model_of(outputs=["final.sigma_x"])
    runs = model.runs
    assert model.reference_energy(None, ["Q1", "D2"])["D2"] == 1e8
    with pytest.raises(UnknownVariableError, match="no element 'Q9' in the line; nearest: 'Q"):
        model.reference_energy({}, ["Q9"])
    assert model.runs == runs
