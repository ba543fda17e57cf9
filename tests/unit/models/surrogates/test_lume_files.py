"""Files that lume-torch itself has dumped, and those of older lume-models: the same numbers, the same variables."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lume_diff.errors import PhysicsWarning, ReadOnlyError, TrustWarning, ValidationError
from lume_diff.models import EnsembleModel, TorchModel
from lume_diff.testing import check_model
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

lume_models = pytest.importorskip("lume_torch.models", reason="lume-torch is not installed")
lume_variables = pytest.importorskip("lume_torch.variables")
transforms = pytest.importorskip("botorch.models.transforms.input")

F64 = torch.float64
NAMES = ["phase", "voltage", "spot"]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let lume-torch say what it says without making it an error here."""
    caplog.set_level(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lume_torch")
        warnings.filterwarnings("ignore", message="This class is still under development")
        yield


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def inputs(constant: bool = True) -> list[Any]:
    made = [
        lume_variables.TorchScalarVariable(name=name, default_value=0.1 * i, value_range=(-1.0, 1.0), unit=unit)
        for i, (name, unit) in enumerate(zip(NAMES, ("deg", "MV", "m"), strict=True))
    ]
    fixed = lume_variables.TorchScalarVariable(name="charge", default_value=2.0, value_range=(2.0, 2.0), read_only=True)
    return [*made, fixed] if constant else made


def outputs(count: int = 2) -> list[Any]:
    made = [
        lume_variables.TorchScalarVariable(name="sigma_x", unit="m", value_range=(-5.0, 5.0)),
        lume_variables.TorchScalarVariable(name="energy"),
    ]
    return made[:count]


def network(n_in: int = 4, n_out: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(n_in, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, n_out)
    )


def affine(count: int, seed: int, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    size = len(options.get("indices", range(count)))
    scale, shift = torch.rand(2, size, generator=generator, dtype=F64)
    return transforms.AffineInputTransform(count, coefficient=scale + 0.5, offset=shift, **options)


def fitted(transform: Any, count: int) -> Any:
    """Return a transform that has learnt its coefficients from data, as they are made in training."""
    transform.train()
    transform(2.0 + torch.rand(20, count, dtype=F64, generator=torch.Generator().manual_seed(5)))
    return transform.eval()


def linear(count: int) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(count, count)


def lume_model(**changes: Any) -> Any:
    given = {"model": network(), "input_variables": inputs(), "output_variables": outputs()} | changes
    return lume_models.TorchModel(**given)


def dumped(model: Any, folder: Path, name: str = "model.yml", **options: Any) -> Path:
    path = folder / name
    model.dump(str(path), **options)
    return path


def sample(names: list[str], count: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: 2.0 * torch.rand(count, generator=generator, dtype=F64) - 1.0 for name in names}


def assert_same(ours: TorchModel, theirs: Any, tolerance: float = 1e-12) -> None:
    values = sample(ours.input_names)
    expected = theirs.evaluate({name: value.clone() for name, value in values.items()})
    found = ours(values)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.squeeze(-1), rtol=tolerance, atol=tolerance, msg=name)


MODELS: dict[str, Callable[[], Any]] = {
    "bare": lume_model,
    "affine": lambda: lume_model(input_transformers=[affine(4, 1)], output_transformers=[affine(2, 2)]),
    "several": lambda: lume_model(
        input_transformers=[
            affine(4, 1),
            fitted(transforms.Normalize(4), 4),
            fitted(transforms.InputStandardize(4), 4),
        ],
        output_transformers=[affine(2, 2), affine(2, 3)],
    ),
    "of columns": lambda: lume_model(
        input_transformers=[affine(4, 1, indices=[0, 2])], output_transformers=[affine(2, 2, indices=[1])]
    ),
    "reversed": lambda: lume_model(input_transformers=[affine(4, 1, reverse=True)]),
    "chained": lambda: lume_model(
        input_transformers=[transforms.ChainedInputTransform(one=affine(4, 1), two=affine(4, 2))],
        output_transformers=[transforms.ChainedInputTransform(one=affine(2, 1), two=affine(2, 2))],
    ),
    "logarithm": lambda: lume_model(
        input_transformers=[transforms.Log10(indices=[3])], output_transformers=[transforms.Log10(indices=[0])]
    ),
    "linear": lambda: lume_model(input_transformers=[linear(4)], output_transformers=[linear(2)]),
    "one output": lambda: lume_model(
        model=network(n_out=1), output_variables=outputs(1), output_transformers=[affine(1, 2)]
    ),
    "without constants": lambda: lume_model(model=network(3), input_variables=inputs(constant=False)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_dump_of_lume_torch_gives_its_numbers(tmp_path: Path, make: Callable[[], Any]) -> None:
    theirs = make()
    assert_same(TorchModel.from_file(dumped(theirs, tmp_path)), theirs)


def test_gradients_are_those_of_lume_torch(tmp_path: Path) -> None:
    theirs = MODELS["affine"]()
    ours = TorchModel.from_file(dumped(theirs, tmp_path))
    values = {name: t(0.3).requires_grad_() for name in NAMES}
    expected = torch.autograd.grad(theirs.evaluate(values)["energy"].sum(), list(values.values()))
    found = torch.autograd.grad(ours(values)["energy"].sum(), list(values.values()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_a_loaded_model_keeps_the_laws(tmp_path: Path) -> None:
    check_model(TorchModel.from_file(dumped(MODELS["several"](), tmp_path)))


def test_single_precision_stays(tmp_path: Path) -> None:
    theirs = lume_model(input_transformers=[affine(4, 1)], precision="single")
    ours = TorchModel.from_file(dumped(theirs, tmp_path))
    assert ours.dtype is torch.float32
    values = {name: value.float() for name, value in sample(NAMES).items()}
    expected = theirs.evaluate(values)["energy"].squeeze(-1)
    torch.testing.assert_close(ours(values)["energy"], expected, rtol=1e-6, atol=1e-6)


def test_a_wrapped_model_is_read_too(tmp_path: Path) -> None:
    theirs = MODELS["affine"]()
    assert_same(TorchModel.from_file(dumped(lume_models.TorchModule(model=theirs), tmp_path)), theirs)


# -- variables -----------------------------------------------------------------------------------------------------


def test_variables_come_along(tmp_path: Path) -> None:
    model = TorchModel.from_file(dumped(lume_model(), tmp_path))
    assert model.input_names == NAMES
    assert model.output_names == ["charge", "sigma_x", "energy"]
    voltage = model.supported_variables["voltage"]
    assert (voltage.default_value, voltage.value_range, voltage.unit) == (0.1, (-1.0, 1.0), "MV")
    assert model.supported_variables["sigma_x"].value_range == (-5.0, 5.0)


def test_a_constant_can_be_read_and_not_written(tmp_path: Path) -> None:
    model = TorchModel.from_file(dumped(lume_model(), tmp_path))
    assert model.get("charge").item() == 2.0
    assert model(sample(NAMES))["charge"].shape == (7,)
    with pytest.raises(ReadOnlyError, match="'charge'"):
        model.set({"charge": 3.0})


def test_what_the_file_says_of_limits_holds(tmp_path: Path) -> None:
    theirs = lume_model(
        input_validation_config={"phase": "none", "voltage": "error"}, output_validation_config={"sigma_x": "none"}
    )
    model = TorchModel.from_file(dumped(theirs, tmp_path))
    model.set({"phase": 1.5})
    for name in ("voltage", "spot"):  # of the latter the file says nothing: LUME's general "none" is not taken over
        with pytest.raises(ValidationError, match=f"'{name}'"):
            model.set({name: 1.5})
    TorchModel.from_file(tmp_path / "model.yml", validation={"spot": "none"}).set({"spot": 1.5})


def test_a_unit_that_is_not_known_is_left_out_with_a_warning(tmp_path: Path) -> None:
    variables = inputs()
    variables[0].unit = "wiggles"
    path = dumped(lume_model(input_variables=variables), tmp_path)
    with pytest.warns(PhysicsWarning, match="unit 'wiggles' of variable 'phase'"):
        model = TorchModel.from_file(path)
    assert model.supported_variables["phase"].unit == ""


# -- arrays ---------------------------------------------------------------------------------------------------------


class Images(nn.Module):
    """From two images to one, to two, or to two numbers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Conv2d(2, 1 if kind == "one" else 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.layer(x).tanh()
        if self.kind == "numbers":
            return image.mean((-1, -2))
        return image if self.kind == "one" else image.movedim(1, -1)


@pytest.mark.parametrize("kind", ["one", "two", "numbers"])
def test_arrays_are_stacked_as_lume_torch_does(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(4)
    shape = (4, 5)

    def image(name: str, **options: Any) -> Any:
        return lume_variables.TorchNDVariable(name=name, shape=shape, dtype=F64, **options)

    ends = {"one": [image("seen")], "two": [image("seen"), image("other")], "numbers": outputs()}[kind]
    theirs = lume_models.TorchModel(
        model=Images(kind),
        input_variables=[image(name, default_value=torch.rand(shape, dtype=F64)) for name in "ab"],
        output_variables=ends,
    )
    ours = TorchModel.from_file(dumped(theirs, tmp_path), allow=[Images])
    assert isinstance(ours.supported_variables["a"], TorchNDVariable)
    values = {name: torch.rand(3, *shape, dtype=F64) for name in "ab"}
    expected, found = theirs.evaluate(values), ours(values)
    for name, value in expected.items():
        wanted = value.squeeze(-1) if kind == "numbers" else value
        torch.testing.assert_close(found[name], wanted, rtol=1e-12, atol=1e-12)


# -- TorchScript and ensembles -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_read_on_request_only(tmp_path: Path) -> None:
    theirs = MODELS["affine"]()
    path = dumped(theirs, tmp_path, save_jit=True)
    with pytest.raises(ValidationError, match=r"model_model\.jit.*is TorchScript.*allow_torchscript=True"):
        TorchModel.from_file(path)
    with pytest.warns(TrustWarning, match=r"model_model\.jit' is TorchScript, a program"):
        ours = TorchModel.from_file(path, allow_torchscript=True)
    assert_same(ours, theirs)


def lume_ensemble() -> Any:
    spread = [
        lume_variables.DistributionVariable(name=name, unit=unit) for name, unit in (("sigma_x", "m"), ("energy", None))
    ]
    members = [lume_model(model=network(seed=seed), input_transformers=[affine(4, 1)]) for seed in range(3)]
    return lume_models.NNEnsemble(models=members, input_variables=inputs(), output_variables=spread)


def test_an_ensemble_has_lume_torchs_means_and_deviations(tmp_path: Path) -> None:
    theirs = lume_ensemble()
    ours = EnsembleModel.from_file(dumped(theirs, tmp_path, "ensemble.yml"))
    assert ours.output_names == ["charge", "sigma_x", "sigma_x.std", "energy", "energy.std"]
    values = sample(NAMES)
    found = ours(values)
    torch.set_default_dtype(F64)  # lume-torch collects the members' answers in torch's default precision
    try:
        expected = theirs.evaluate(values | {"charge": torch.full((7,), 2.0, dtype=F64)})
    finally:
        torch.set_default_dtype(torch.float32)
    for name, distribution in expected.items():
        torch.testing.assert_close(found[name], distribution.mean.squeeze(-1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[f"{name}.std"], distribution.stddev.squeeze(-1), rtol=1e-12, atol=1e-12)


def test_each_kind_of_file_has_its_reader(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"NNEnsemble: read it with EnsembleModel\.from_file"):
        TorchModel.from_file(dumped(lume_ensemble(), tmp_path))
    with pytest.raises(ValidationError, match=r"TorchModel: read it with TorchModel\.from_file"):
        EnsembleModel.from_file(dumped(lume_model(), tmp_path))


def test_a_gaussian_process_of_lume_torch_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "gp.yml").write_text("model_class: GPModel\nmodel: gp_model.pt\n")
    with pytest.raises(ValidationError, match=r"runs code when it is opened.*lume_diff\.GPModel\("):
        TorchModel.from_file(tmp_path / "gp.yml")


# -- files of older lume-models ----------------------------------------------------------------------------------

OLD = """
model_class: TorchModel
input_variables:
  phase: {variable_type: scalar, default: 0.25, value_range: [-1.0, 1.0], is_constant: false}
  voltage: {variable_type: scalar, default: 1.0e-1, range: [-1.0, 1.0], units: MV}
  charge: {variable_type: scalar, default: 2.0, value_range: [2.0, 2.0], is_constant: true}
output_variables:
  energy: {variable_type: scalar}
model: model.pt
input_transformers: [before.pt]
output_transformers: [after.pt]
output_format: variable
device: cpu
fixed_model: true
"""


def test_a_file_of_the_first_lume_models_is_read(tmp_path: Path) -> None:
    module, before, after = network(3, 1), affine(3, 1), affine(1, 2)
    for name, part in (("model", module), ("before", before), ("after", after)):
        torch.save(part, tmp_path / f"{name}.pt")
    (tmp_path / "old.yml").write_text(OLD)
    model = TorchModel.from_file(tmp_path / "old.yml")
    assert model.supported_variables["voltage"] == TorchScalarVariable(
        name="voltage", default_value=0.1, value_range=(-1.0, 1.0), unit="MV", read_only=False
    )
    assert model.get("charge").item() == 2.0
    x = torch.tensor([[0.25, 0.1, 2.0]], dtype=F64)
    expected = after.untransform(module.double().eval()(before(x)))
    torch.testing.assert_close(model.get("energy"), expected.squeeze(), rtol=1e-12, atol=0.0)
