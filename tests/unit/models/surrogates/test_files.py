"""Files of surrogates: what is read without lume-torch, what is refused, and that nothing of it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lume_diff.errors import ValidationError
from lume_diff.models import TorchModel
from lume_diff.models.surrogates.modules import load_module

GOOD = """
model_class: TorchModel
input_variables: {a: {default_value: 0.5}, b: {default_value: 1.0}}
output_variables: {y: {unit: m}}
model: net.pt
"""


def described(folder: Path, text: str, module: Any = None) -> Path:
    torch.save(nn.Linear(2, 1) if module is None else module, folder / "net.pt")
    path = folder / "model.yml"
    path.write_text(text)
    return path


class Touch:
    """Write a file when it is unpickled, as an attack would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Own(nn.Module):
    """A class that PyTorch does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).exp()


def test_a_plain_network_is_read(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    model = TorchModel.from_file(described(tmp_path, GOOD, net))
    torch.testing.assert_close(model.get("y"), net.double()(torch.tensor([0.5, 1.0], dtype=torch.float64)).squeeze())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = described(tmp_path, GOOD, nn.Sequential(nn.Linear(2, 1)))
    module = torch.load(tmp_path / "net.pt", weights_only=False)
    module.payload = Touch(mark)
    torch.save(module, tmp_path / "net.pt")
    with pytest.raises(ValidationError, match=r"net\.pt.*holds .*pathlib.*which is not among the classes"):
        TorchModel.from_file(path)
    assert not mark.exists()
    torch.load(tmp_path / "net.pt", weights_only=False)  # it would have
    assert mark.exists()


def test_a_class_of_ones_own_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = described(tmp_path, GOOD, Own())
    with pytest.raises(ValidationError, match=r"test_files\.Own.*allow=\[TheClass\].*save_jit=True"):
        TorchModel.from_file(path)
    assert TorchModel.from_file(path, allow=[Own]).get("y").item() > 0.0


def test_a_class_that_has_moved_is_given_with_its_old_name(tmp_path: Path) -> None:
    path = described(tmp_path, GOOD, Own())
    name = f"{Own.__module__}.Own"
    Moved = type("Moved", (Own,), {})
    model = TorchModel.from_file(path, allow=[(Moved, name)])
    assert type(model.simulator) is Moved


def test_what_is_allowed_once_is_not_allowed_for_good(tmp_path: Path) -> None:
    torch.save(Own(), tmp_path / "net.pt")
    load_module(tmp_path / "net.pt", [Own])
    with pytest.raises(ValidationError, match=r"Own"):
        load_module(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "content, match",
    [
        (None, "does not exist"),
        (b"not a file of torch", r"is no file of torch\.save"),
        (b"PK\x03\x04 cut off", r"is no file of torch\.save"),
    ],
    ids=["missing", "text", "cut off"],
)
def test_a_file_that_is_no_module_is_refused(tmp_path: Path, content: bytes | None, match: str) -> None:
    path = tmp_path / "net.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValidationError, match=match):
        load_module(path)


def test_a_state_dict_is_not_a_module(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ValidationError, match=r"holds a OrderedDict; expected a whole module"):
        load_module(tmp_path / "net.pt")


# -- networks described in the file itself

LAYERS = """
model_class: TorchModel
description: for people
input_variables: {a: {default_value: 0.5}, b: {default_value: 1.0}}
output_variables: {y: {unit: m}}
model: {layers: [{Linear: [2, 3]}, Tanh, {Linear: [3, 1]}], weights: net.pt}
input_transformers: [{Affine: {offset: [0.5, 0.0], coefficient: [2.0, 4.0]}}]
output_transformers: [{Affine: {offset: [1.0], coefficient: [3.0]}}, {Log10: {indices: [0]}}]
"""


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def test_a_network_is_built_from_its_layers(tmp_path: Path) -> None:
    net = layers()
    model = TorchModel.from_file(described(tmp_path, LAYERS, net.state_dict()))
    inside = net(torch.tensor([0.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(model.get("y"), 10.0 ** (1.0 + 3.0 * inside.squeeze()), rtol=1e-13, atol=0.0)


BAD_LAYERS = {
    "layer": (LAYERS.replace("Tanh", "Tanhh"), "layer 'Tanhh' is not known; nearest: 'Tanh'"),
    "no layer of torch": (LAYERS.replace("Tanh", "__import__"), "'__import__' is not known"),
    "sizes": (LAYERS.replace("[2, 3]", "[2, x]"), r"sizes of Linear are \[2, 'x'\]"),
    "weights": (LAYERS.replace("net.pt", "other.pt"), r"other\.pt' does not exist"),
    "other weights": (LAYERS.replace("[3, 1]", "[3, 2]"), "cannot be loaded: RuntimeError.*size mismatch"),
    "transformer": (LAYERS.replace("Log10", "Exp"), "transformer {'Exp'.* is not known"),
}


@pytest.mark.parametrize("text, match", BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_a_wrong_network_says_what_is_wrong(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s)model\.yml.*{match}"):
        TorchModel.from_file(described(tmp_path, text, layers().state_dict()))


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = described(tmp_path, LAYERS, {"0.weight": Touch(mark)})
    with pytest.raises(ValidationError, match=r"cannot be loaded: UnpicklingError"):
        TorchModel.from_file(path)
    assert not mark.exists()


WRONG = {
    "no mapping": ("- a", "is a list; expected a mapping"),
    "another class": (GOOD.replace("TorchModel", "KerasModel"), "model_class is 'KerasModel'"),
    "unknown key": (GOOD + "modle: x\n", "'modle' is not known; nearest: 'model'"),
    "no outputs": (GOOD.replace("output_variables", "outputs"), "output_variables is None"),
    "bad variable": (GOOD.replace("{unit: m}", "{unit: m, value_range: [2, 1]}"), "variable 'y'.*lower end"),
    "old kind": (GOOD.replace("{unit: m}", "{variable_type: image}"), "'y' has variable_type 'image'"),
    "constant without value": (GOOD.replace("{default_value: 0.5}", "{read_only: true}"), "'a' has no default value"),
    "policy": (GOOD + "input_validation_config: {a: maybe}\n", "input_validation_config of 'a' is 'maybe'"),
    "policy of nothing": (GOOD + "input_validation_config: {c: warn}\n", "has 'c', which is no variable"),
    "precision": (GOOD + "precision: half\n", "precision is 'half'"),
    "files": (GOOD + "input_transformers: a.pt\n", "input_transformers is 'a.pt'; expected a list"),
    "no file": (GOOD.replace("net.pt", "other.pt"), r"other\.pt': does not exist"),
    "version 0": (
        GOOD.replace("net.pt", "{model_class: lume_model.keras.KerasModel}"),
        "lume-model before version 1.0",
    ),
    "a Python tag": (GOOD + "device: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
}


@pytest.mark.parametrize("text, match", WRONG.values(), ids=WRONG)
def test_a_wrong_description_says_what_is_wrong(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ValidationError, match=match) as caught:
        TorchModel.from_file(described(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("{unit: m}", "{variable_type: image}") + "modle: x\nprecision: half\n"
    with pytest.raises(ValidationError, match=r"modle.*variable_type.*precision"):
        TorchModel.from_file(described(tmp_path, text))


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"nowhere\.yml': does not exist"):
        TorchModel.from_file(tmp_path / "nowhere.yml")
