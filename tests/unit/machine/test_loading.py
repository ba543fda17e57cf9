"""Loading and saving machine files: the same variables and values, whatever way they went."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lume_diff as ld
from lume_diff.errors import ValidationError
from lume_diff.machine import Backend, check, read, schema
from lume_diff.machine.backends.torch import Affine
from lume_diff.machine.changes import parse_change
from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel, TorchModel
from lume_diff.registry import plugins
from lume_diff.variables import TorchScalarVariable
from lume_diff.variables.text import load_yaml
from tests.unit.machine.conftest import TWISS

FACILITY = """\
mapping:
  separator: ":"
  templates:
    quad:
      BCTRL:
        {kind: setpoint, native: "{element}.k1", unit: kG, conversion: {kind: quadrupole_field}, value_range: [-9, 9]}
      BACT: {kind: readback, of: "{name}:BCTRL"}
  elements:
    file: names.csv
  keep: ["final*", alpha_x]
"""


def same(a: LUMEModel, b: LUMEModel) -> None:
    """Check that two models have the same variables and values: inputs exactly, what is computed to round-off."""
    assert dict(a.supported_variables) == dict(b.supported_variables)
    for name, value in a.get().items():
        if isinstance(value, torch.Tensor):
            rtol = 0.0 if name in a.input_names else 1e-8
            size = float(value.detach().double().nan_to_num().abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(b.get(name), value, rtol=rtol, atol=rtol * size, equal_nan=True)
        elif not hasattr(value, "species"):
            assert b.get(name) == value, name


def test_the_model_is_that_of_the_file(folder: Path) -> None:
    model = ld.load_model(folder / "machine.yaml")
    assert isinstance(model, StagedModel)
    assert list(model.stages) == ["gun", "line"]
    variable = model.supported_variables["Q1.k1"]
    assert isinstance(variable, TorchScalarVariable)
    assert (variable.value_range, variable.alarm_range) == ((-5.0, 5.0), (-4.0, 4.0))
    assert variable.description == "the only quadrupole"
    assert (float(model.get("Q1.k1")), float(model.get("alpha_x"))) == (2.0, 0.5)
    with pytest.raises(ValidationError, match=r"outside value_range \[-5, 5\]"):
        model.set({"Q1.k1": 6.0})
    size = model.get("final.sigma_x")
    model.set({"Q1.k1": 3.0, "alpha_x": 0.0})
    assert model.get("final.sigma_x") != size
    model.reset()
    assert (float(model.get("Q1.k1")), float(model.get("alpha_x"))) == (2.0, 0.5)
    assert model.get("final.sigma_x") == size
    assert model.origin.ioc.protocols == ["pva", "ca"]
    assert model.origin.ioc.timeout == 60.0


def test_a_stage_without_a_beam_is_built_for_the_one_that_reaches_it(folder: Path) -> None:
    model = ld.load_model(folder / "machine.yaml", changes={"stages.gun.mean_energy": 2.5e8})
    np.testing.assert_allclose(float(model.get("line/reference_energy")), 2.5e8, rtol=1e-6)


def test_it_has_a_gradient(folder: Path) -> None:
    model = ld.load_model(folder / "machine.yaml")
    k1 = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    model({"Q1.k1": k1})["final.sigma_x"].backward()
    assert k1.grad is not None
    assert bool(k1.grad != 0.0)


def test_loaded_saved_and_loaded_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    model = ld.load_model(folder / "machine.yaml")
    model.set({"Q1.k1": 1.25, "C1.angle": 1e-3})
    (tmp_path / "far").mkdir()
    for path in (folder / "again.yaml", tmp_path / "far" / "again.yaml", tmp_path / "above.yaml"):
        ld.save_model(model, path)
        same(model, ld.load_model(path))
        assert read(path).ioc == model.origin.ioc
    assert load_yaml(tmp_path / "above.yaml")["stages"]["line"]["lattice"] == "machine/line.json"
    assert (tmp_path / "far" / "line.json").read_text() == (folder / "line.json").read_text()


def test_a_copy_overwrites_no_other_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "line.json").write_text("{}")
    with pytest.raises(ValidationError, match="is there already, and another file"):
        ld.save_model(ld.load_model(folder / "machine.yaml"), tmp_path / "far" / "again.yaml")
    assert (tmp_path / "far" / "line.json").read_text() == "{}"


def test_decks_stay_where_they_are(folder: Path, tmp_path: Path) -> None:
    (folder / "line.madx").write_text("")
    (folder / "code.yaml").write_text("model: {backend: madx, deck: line.madx, trust: true}")
    (tmp_path / "far").mkdir()
    ld.save_model(read(folder / "code.yaml"), tmp_path / "far" / "code.yaml")
    assert load_yaml(tmp_path / "far" / "code.yaml") == {
        "allow_outside": True,
        "model": {"backend": "madx", "deck": "../machine/line.madx", "trust": True},
    }


def chain() -> StagedModel:
    """Return a network, a bunch made of what it predicts, and a line."""
    import cheetah

    torch.manual_seed(1)
    phase = TorchScalarVariable(name="phase", unit="deg", default_value=1.5, value_range=(-10, 10))
    energy = TorchScalarVariable(name="energy", unit="MeV", read_only=True)
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    net = TorchModel(module, [phase], [energy], Affine([0.5], [4.0]), Affine([100.0], [2.0]))
    twiss = {"beta_x": 8.0, "norm_emit_x": 1e-6, "beta_y": 6.0, "norm_emit_y": 1e-6}
    bunch = BunchFromMoments(100, 3, mean_energy=1e8, sigma_energy=1e4, sigma_t=1e-12, charge=1e-10, **twiss)
    one = torch.tensor(1.0, dtype=torch.float64)
    elements = [
        cheetah.Quadrupole(0.2 * one, 3.0 * one, misalignment=torch.stack([1e-4 * one, 0.0 * one]), name="Q1"),
        cheetah.RBend(0.3 * one, 0.05 * one, name="B1"),
        cheetah.Aperture(x_max=0.02 * one, name="A1"),
        cheetah.Cavity(one, 1e7 * one, -20.0 * one, 2.856e9 * one, name="CAV1"),
        cheetah.BPM(is_active=True, misalignment=torch.stack([2e-4 * one, one * 0.0]), name="BPM1"),
        cheetah.Screen(resolution=(12, 10), pixel_size=torch.full((2,), 3e-4).double(), is_active=True, name="SCR1"),
    ]
    line = CheetahModel(cheetah.Segment(elements, name="line1"), bunch.get("final_particles"), losses="soft")
    return StagedModel({"net": net, "bunch": bunch, "line": line}, {"bunch/mean_energy": "net/energy"})


def test_a_model_without_a_file_is_described_anew(tmp_path: Path) -> None:
    model = chain()
    model.set({"Q1.k1": -1.5, "A1.is_active": False, "line/reference_energy": 1.02e8})
    ld.save_model(model, tmp_path / "new.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "new.line.lattice.json",
        "new.net.weights.pt",
        "new.yaml",
    ]
    again = ld.load_model(tmp_path / "new.yaml")
    same(model, again)
    ld.save_model(again, tmp_path / "third.yaml")
    same(model, ld.load_model(tmp_path / "third.yaml"))


def test_a_line_alone_keeps_its_bunch(tmp_path: Path) -> None:
    line = chain().stages["line"]
    line.set({"reference_energy": 1.01e8})
    ld.save_model(line, tmp_path / "line.yaml")
    same(line, ld.load_model(tmp_path / "line.yaml"))


def test_what_no_file_can_describe_is_refused(tmp_path: Path) -> None:
    x = TorchScalarVariable(name="x", default_value=0.0)
    y = TorchScalarVariable(name="y", read_only=True)
    with pytest.raises(ValidationError, match=r"nn\.Sequential"):
        ld.save_model(TorchModel(torch.cos, [x], [y]), tmp_path / "no.yaml")
    steep = nn.Sequential(nn.Linear(1, 4), nn.ELU(alpha=3.0), nn.Linear(4, 1)).double()
    with pytest.raises(ValidationError, match="as torch makes it without arguments"):
        ld.save_model(TorchModel(steep, [x], [y]), tmp_path / "no.yaml")
    with pytest.raises(ValidationError, match="no backend describes it"):
        ld.save_model(ld.BlackBoxModel.from_function(lambda x: {"y": x}, [x], [y]), tmp_path / "no.yaml")
    assert list(tmp_path.iterdir()) == []


def test_an_activation_in_place_is_written_as_any_other(tmp_path: Path) -> None:
    x = TorchScalarVariable(name="x", default_value=-0.5)
    network = nn.Sequential(nn.Linear(1, 4), nn.ELU(inplace=True), nn.Linear(4, 1)).double()
    model = TorchModel(network, [x], [TorchScalarVariable(name="y", read_only=True)])
    ld.save_model(model, tmp_path / "net.yaml")
    same(model, ld.load_model(tmp_path / "net.yaml"))


def test_weights_are_data_only(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "pwned",)

    (tmp_path / "w.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    text = "model: {backend: torch, inputs: {x: {default_value: 0.0}}, outputs: {y: {}}, weights: w.pt}"
    (tmp_path / "net.yaml").write_text(text)
    with pytest.raises(ValidationError, match="holds no weights"):
        ld.load_model(tmp_path / "net.yaml")
    torch.save({"0.weight": torch.zeros(2, 1), "0.bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValidationError, match="the layers of the file need"):
        ld.load_model(tmp_path / "net.yaml")
    assert not (tmp_path / "pwned").exists()


def test_one_line_swaps_a_stage(folder: Path) -> None:
    model = ld.load_model(folder / "machine.yaml")
    (folder / "gun.yaml").write_text(
        "model: {backend: bunch-from-moments, n_particles: 50, mean_energy: 2e8, charge: 1e-10, beta_x: 8, beta_y: 6,"
        " norm_emit_x: 1e-6, norm_emit_y: 1e-6}\nset: {alpha_y: 0.25}\nvariables: {beta_y: {value_range: [1, 7]}}\n"
    )
    for changes in ({"stages.gun": "gun.yaml"}, {"stages.gun": {"backend": "machine", "file": "gun.yaml"}}):
        swapped = ld.load_model(folder / "machine.yaml", changes=changes)
        assert swapped.input_names == model.input_names
        assert float(swapped.get("mean_energy")) == 2e8
        assert float(swapped.get("alpha_y")) == 0.25
        with pytest.raises(ValidationError, match="outside value_range"):
            swapped.set({"beta_y": 8.0})


def test_a_surrogate_of_lume_torch_is_a_stage(folder: Path) -> None:
    (folder / "surrogate.yaml").write_text(
        "model_class: TorchModel\nmodel: net.pt\noutput_variables: {energy: {unit: MeV}}\n"
        "input_variables: {phase: {default_value: 2.0, value_range: [-9, 9]}}\n"
    )
    changes = {
        "stages": {
            "net": "surrogate.yaml",
            "gun": read(folder / "machine.yaml").plain()["stages"]["gun"],
            "line": {"backend": "cheetah", "lattice": "line.json"},
        },
        "links": {"gun/mean_energy": "net/energy"},
    }
    missing = check(folder / "machine.yaml", changes=changes)
    assert [(problem.file, "no file 'net.pt'" in problem.message) for problem in missing] == [("surrogate.yaml", True)]
    net = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(net.weight, 50.0)
    torch.nn.init.constant_(net.bias, 0.0)
    torch.save(net, folder / "net.pt")
    assert check(folder / "machine.yaml", changes=changes) == []
    model = ld.load_model(folder / "machine.yaml", changes=changes)
    assert float(model.get("energy")) == 100.0
    np.testing.assert_allclose(float(model.get("final.mean_energy")), 1e8, rtol=1e-6)
    ld.save_model(model, folder / "again.yaml")
    same(model, ld.load_model(folder / "again.yaml"))


@pytest.mark.parametrize(
    "text, place, value",
    [
        ("stages.gun=gun.yaml", "stages.gun", "gun.yaml"),
        ("set.Q1.k1=1e-3", "set.Q1.k1", 1e-3),
        ("variables.Q1.k1.value_range=[1, 2]", "variables.Q1.k1.value_range", [1, 2]),
        ("ioc.prefix=A=B", "ioc.prefix", "A=B"),
        ("stages.gun={backend: machine, file: x}", "stages.gun", {"backend": "machine", "file": "x"}),
    ],
)
def test_a_change_is_a_place_and_yaml(text: str, place: str, value: object) -> None:
    assert parse_change(text) == (place, value)


@pytest.mark.parametrize("text", ["stages.gun", "=3", "a=[1", "a=!!python/name:os.system"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="--set"):
        parse_change(text)


def test_changes_reach_names_with_dots(folder: Path) -> None:
    changes = {"variables.Q1.k1.value_range": [-2, 2], "set.Q1.k1": 1.5, "stages.line.set.Q1.k1": 0.5}
    model = ld.load_model(folder / "machine.yaml", changes=changes)
    assert model.supported_variables["Q1.k1"].value_range == (-2.0, 2.0)  # type: ignore[attr-defined]
    assert float(model.get("Q1.k1")) == 1.5
    assert float(model.stages["line"].get("Q1.k1")) == 0.5  # type: ignore[attr-defined]


def test_a_change_in_what_an_alias_stands_for_leaves_its_other_places_alone(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text(f"stages:\n  a: &gun {{backend: bunch-from-moments, {TWISS}}}\n  b: *gun\n")
    machine = read(tmp_path / "machine.yaml", changes={"stages.a.charge": 2e-10})
    assert [machine.model.stages[name].charge for name in "ab"] == [2e-10, 1e-10]  # type: ignore[attr-defined]


def test_a_change_fills_a_section_that_was_left_empty(tmp_path: Path) -> None:
    (tmp_path / "machine.yaml").write_text(f"model: {{backend: bunch-from-moments, {TWISS}}}\nset:\n")
    assert float(ld.load_model(tmp_path / "machine.yaml", changes={"set.alpha_x": 0.3}).get("alpha_x")) == 0.3


def test_a_facility_file_speaks_its_language(folder: Path, tmp_path: Path) -> None:
    (folder / "names.csv").write_text("element,name,class\nQ1,QUAD:1,quad\n")
    text = (folder / "machine.yaml").read_text().split("variables:")[0] + FACILITY
    text += 'variables: {"QUAD:1:BCTRL": {description: a quadrupole}}\nset: {"QUAD:1:BCTRL": 1.5}\n'
    (folder / "facility.yaml").write_text(text)
    model = ld.load_model(folder / "facility.yaml")
    assert float(model.get("QUAD:1:BACT")) == 1.5
    assert model.supported_variables["QUAD:1:BCTRL"].description == "a quadrupole"
    (tmp_path / "far").mkdir()
    ld.save_model(model, tmp_path / "far" / "facility.yaml")
    same(model, ld.load_model(tmp_path / "far" / "facility.yaml"))
    (folder / "mapping.yaml").write_text(FACILITY.split("\n", 1)[1].replace("\n  ", "\n")[2:])
    apart = text.replace(FACILITY, "mapping: mapping.yaml\n")
    (folder / "apart.yaml").write_text(apart)
    same(model, ld.load_model(folder / "apart.yaml"))


def test_mistakes_of_the_mapping_have_lines(folder: Path) -> None:
    (folder / "names.csv").write_text("element,name,class\nQ7,QUAD:1,quad\n")
    text = (folder / "machine.yaml").read_text().split("variables:")[0] + FACILITY
    (folder / "facility.yaml").write_text(text)
    line = text.splitlines().index(next(row for row in text.splitlines() if "BCTRL:" in row)) + 1
    for found in (check(folder / "facility.yaml"), _raised(folder / "facility.yaml")):
        assert any(f"line {line}: mapping.templates.quad.BCTRL: " in str(problem) for problem in found)
        assert any("no input 'Q7.k1'" in str(problem) for problem in found)


def _raised(path: Path) -> list[str]:
    with pytest.raises(ValidationError) as raised:
        ld.load_model(path)
    return [str(raised.value)]


def test_every_backend_is_a_section_with_a_schema() -> None:
    known = schema()
    assert json.loads(json.dumps(known)) == known
    for name in plugins("models"):
        section = known["$defs"][f"backend {name}"]
        assert section["properties"]["backend"]["const"] == name
        assert section["additionalProperties"] is False
        assert section["description"]


def test_a_backend_is_one_class() -> None:
    class Constant(Backend):
        value: float

        def build(self, site: object) -> LUMEModel:
            raise NotImplementedError

    assert Constant(backend="constant", value=1.0).dumped() == {"backend": "constant", "value": 1.0}
