"""ModelMean: shapes, names, units, copies, and everything that Xopt's constructors hand over."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

pytest.importorskip("xopt")

from xopt.generators.bayesian.models.standard import BatchedModelConstructor, StandardModelConstructor

from lume_diff.calibration import ModelMean, Normal, Offset, OutputOffset, PriorMeanModelConstructor, Scale
from lume_diff.errors import ShapeError, UnknownVariableError, ValidationError
from lume_diff.models import TorchModel

NAMES = ["Q2.k1", "Q10.k1", "B.k1"]
LIMITS = {"Q2.k1": [-4.0, 4.0], "Q10.k1": [0.0, 10.0], "B.k1": [-1.0, 3.0]}
D = torch.float64
X = torch.tensor([[1.0, 2.0, 0.5], [-3.0, 9.0, 2.0]], dtype=D)


def log_size(model: TorchModel, x: torch.Tensor, names: list[str] = NAMES) -> torch.Tensor:
    return model({name: x[..., i] for i, name in enumerate(names)}, ["size"])["size"].log10()


@pytest.fixture
def mean(model: TorchModel) -> ModelMean:
    return ModelMean(model, NAMES, "size", torch.log10)


@pytest.mark.parametrize("batch", [(), (5,), (4, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batches_keep_their_shape_and_dtype(
    model: TorchModel, mean: ModelMean, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = X.expand(*batch, 2, 3).to(dtype)
    value = mean(x)
    assert value.shape == (*batch, 2)
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), log_size(model, X).expand(*batch, 2), rtol=1e-6, atol=1e-6)


def test_several_outputs_and_arrays_feed_the_transform(model: TorchModel) -> None:
    mean = ModelMean(model, NAMES, ["profile", "size"], lambda profile, size: profile.sum(-1) / size)
    torch.testing.assert_close(mean(X.expand(3, 2, 3)), torch.full((3, 2), 10.0, dtype=D))


def test_bound_columns_are_taken_by_name(model: TorchModel, mean: ModelMean) -> None:
    order = [2, 0, 1]
    mean.bind([NAMES[i] for i in order])
    torch.testing.assert_close(mean(X[:, order]), log_size(model, X))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("constructor", [StandardModelConstructor, PriorMeanModelConstructor])
@pytest.mark.parametrize("transform_inputs", [True, False])
@pytest.mark.filterwarnings("ignore:Data .input features. is not contained")
def test_a_gp_expects_what_the_model_says(
    model: TorchModel,
    mean: ModelMean,
    table: Callable[..., Any],
    constructor: Any,
    order: tuple[int, ...],
    transform_inputs: bool,
) -> None:
    """Whatever the order of the VOCS and the transforms, the prior mean in the objective's unit is the model's."""
    if constructor is StandardModelConstructor and not transform_inputs:
        pytest.skip("Xopt's own wrapper raises: it undoes a transform that is not there")
    names = [NAMES[i] for i in order]
    data = table(6, lambda x: 2.0 + x.sum(-1) / 10.0, names)
    options: dict[str, Any] = {"mean_modules": {"log_size": mean}, "transform_inputs": transform_inputs}
    if constructor is PriorMeanModelConstructor:
        options["trust"] = False
    builder = constructor(train_model=False, **options)
    bounds = {name: LIMITS[name] for name in names}
    gp = builder.build_model(names, ["log_size"], data, bounds).models[0].eval()
    x = X[:, list(order)]
    found = gp.mean_module(gp.transform_inputs(x))
    outcome = gp.outcome_transform
    expected = (log_size(model, X) - outcome.means.squeeze()) / outcome.stdvs.squeeze()
    torch.testing.assert_close(found, expected)
    posterior = gp.posterior(x.expand(4, 2, 3))
    assert posterior.mean.shape == (4, 2, 1)


@pytest.mark.parametrize("train", [True, False], ids=["trained", "untrained"])
def test_scaled_inputs_are_refused(mean: ModelMean, table: Callable[..., Any], train: bool) -> None:
    builder = BatchedModelConstructor(mean_modules={"log_size": mean}, train_model=train)
    with pytest.raises(ValidationError, match=r"BatchedModelConstructor.*StandardModelConstructor"):
        builder.build_model(NAMES, ["log_size"], table(5, lambda x: x.sum(-1)), LIMITS).posterior(X)


def test_a_wrapper_that_never_told_the_names_is_refused(mean: ModelMean) -> None:
    from botorch.models.transforms import Normalize, Standardize
    from xopt.generators.bayesian.models.prior_mean import CustomMean

    wrapper = CustomMean(
        mean, Normalize(3, bounds=torch.tensor([LIMITS[name] for name in NAMES], dtype=D).T), Standardize(1)
    )
    with pytest.raises(ValidationError, match="order of its variables"):
        wrapper(torch.zeros(2, 3, dtype=D))


def test_copies_share_the_model_and_own_their_parameters(mean: ModelMean) -> None:
    copy = deepcopy(mean)
    assert copy.model is mean.model
    with torch.no_grad():
        copy.calibration.coordinates.add_(1.0)
    assert not mean.calibration.coordinates.any()
    assert not torch.equal(copy(X), mean(X))


def test_pickle_and_state_dict_keep_it(mean: ModelMean, model: TorchModel) -> None:
    module = ModelMean(build_plain(), ["a"], "y", torch.log10)
    with torch.no_grad():
        module.calibration.coordinates.fill_(0.7)
    again = pickle.loads(pickle.dumps(module))
    x = torch.tensor([[0.3], [1.0]], dtype=D)
    torch.testing.assert_close(again(x), module(x))
    fresh = ModelMean(build_plain(), ["a"], "y", torch.log10)
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(x), module(x))


def build_plain() -> TorchModel:
    from lume_diff.variables import TorchScalarVariable as Scalar

    return TorchModel(torch.nn.Softplus(), [Scalar(name="a", default_value=1.0)], [Scalar(name="y")])


def test_neither_dtype_nor_training_reaches_the_model(mean: ModelMean) -> None:
    assert [name for name, _ in mean.named_parameters()] == ["calibration.coordinates"]
    mean.float()
    assert mean.model.dtype is D


def test_parameters_act_in_physical_units(model: TorchModel) -> None:
    mean = ModelMean(
        model,
        NAMES[:2],
        "size",
        torch.log10,
        trainable=[Scale("Q2.k1", Normal(1.1, 0.1)), Offset("B.k1", Normal(-0.5, 0.2)), OutputOffset(Normal(0.3, 0.1))],
    )
    with torch.no_grad():
        mean.calibration.coordinates[0] = -1.0
    x = X[:, :2]
    machine = torch.stack([x[:, 0] * 1.0, x[:, 1], torch.full((2,), 0.5, dtype=D)], dim=-1)
    torch.testing.assert_close(mean(x), log_size(model, machine) + 0.3)
    assert [(v.name, round(v.value, 9), v.unit) for v in mean.learned()] == [
        ("scale of Q2.k1", 1.0, ""),
        ("offset of B.k1", -0.5, "1/m^2"),
        ("offset of the objective", 0.3, ""),
    ]


def test_a_learned_scale_stops_at_the_models_limit(model: TorchModel) -> None:
    mean = ModelMean(model, NAMES, "size", torch.log10, trainable=[Scale("Q10.k1", Normal(1.5, 0.1))])
    x = torch.tensor([[1.0, 9.0, 0.0]], dtype=D)
    limit = torch.tensor([[1.0, 10.0, 0.0]], dtype=D)
    torch.testing.assert_close(mean(x), log_size(model, limit))


def test_points_beyond_the_limits_raise_and_rounding_does_not(mean: ModelMean) -> None:
    edge = torch.tensor([[4.0 * (1.0 + 1e-15), 10.0, 3.0]], dtype=D)
    assert mean(edge).isfinite().all()
    with pytest.raises(ValidationError, match=r"'Q2.k1' is 4.1; its limits are -4 and 4"):
        mean(edge * 1.025)


def test_rounding_at_a_limit_of_zero_does_not_raise() -> None:
    from lume_diff.variables import TorchScalarVariable as Scalar

    knob = Scalar(name="a", default_value=1.0, value_range=(0.0, math.inf))
    mean = ModelMean(TorchModel(torch.nn.Softplus(), [knob], [Scalar(name="y")]), ["a"], "y")
    assert mean(torch.tensor([[-1e-18], [2.0]], dtype=D)).isfinite().all()
    with pytest.raises(ValidationError, match=r"'a' is -0\.1; its limits are 0 and inf"):
        mean(torch.tensor([[-0.1], [2.0]], dtype=D))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"inputs": ["Q2.k1", "Q3.k1", "X"]}, UnknownVariableError, r"'Q3.k1' is not an input.*'X' is not an input"),
        ({"inputs": ["size"]}, UnknownVariableError, "'size' is an output"),
        ({"inputs": []}, ValidationError, "inputs is empty"),
        ({"inputs": "Q2.k1"}, ValidationError, r"write \['Q2.k1'\]"),
        ({"inputs": ["B.k1", "B.k1"]}, ValidationError, "'B.k1' appears twice"),
        ({"output": "sigma"}, UnknownVariableError, "'sigma' is not an output"),
        ({"output": "profile"}, ShapeError, r"'profile' has shape \(4,\); expected a scalar"),
        ({"output": ["size", "profile"]}, ValidationError, "there is no transform"),
        ({"transform": torch.sum}, ShapeError, r"returned shape \(\) for a batch of \(2, 3\)"),
        ({"transform": lambda value: 1.0}, ValidationError, "returned a float"),
        ({"transform": lambda value: value @ value}, ValidationError, "transform failed on a batch"),
        ({"trainable": [Scale("Q.k1", Normal(1.0, 0.1))]}, UnknownVariableError, "'Q.k1'"),
        ({"trainable": [3.0]}, ValidationError, "expected parameters of inputs"),
        ({"trainable": [OutputOffset(Normal(0.0, 1.0))] * 2}, ValidationError, "more than one"),
    ],
    ids=lambda value: None if isinstance(value, type) else (value if isinstance(value, str) else next(iter(value))),
)
def test_mistakes_are_told_at_construction(
    model: TorchModel, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ModelMean(model, **{"inputs": NAMES, "output": "size", **options})


@pytest.mark.parametrize("constructor", [StandardModelConstructor, PriorMeanModelConstructor])
def test_a_vocs_that_does_not_fit_is_refused_when_a_gp_is_built(
    mean: ModelMean, table: Callable[..., Any], constructor: Any
) -> None:
    data = table(4, lambda x: x.sum(-1)).rename(columns={"B.k1": "C.k1"})
    names = ["Q2.k1", "Q10.k1", "C.k1"]
    bounds = {"Q2.k1": [-4.0, 4.0], "Q10.k1": [0.0, 10.0], "C.k1": [-1.0, 3.0]}
    with pytest.raises(ValidationError, match=r"'C.k1' is no input of the mean.*'B.k1' of the mean is no variable"):
        constructor(mean_modules={"log_size": mean}).build_model(names, ["log_size"], data, bounds)


def test_all_misfits_of_a_vocs_are_told_at_once(mean: ModelMean) -> None:
    from xopt.vocs import VOCS

    vocs = VOCS(variables={"Q2.k1": [-5.0, 4.0], "Q10.k1": [0.0, 10.0], "C": [0.0, 1.0]}, objectives={"f": "MINIMIZE"})
    with pytest.raises(ValidationError) as caught:
        mean.check(vocs)
    text = str(caught.value)
    assert "'C' is no input" in text
    assert "'B.k1' of the mean is no variable" in text
    assert "'Q2.k1' goes from -5 to 4; the model's limits are -4 and 4" in text
