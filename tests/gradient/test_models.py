"""Gradients of networks, bunches and small models: gradcheck, and every nesting of torch.func."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from lume_diff.models import BunchFromMoments, LUMEModel, StagedModel, TorchModel
from lume_diff.variables import BoolVariable, EnumVariable, TorchNDVariable, TorchScalarVariable

pytestmark = pytest.mark.gradient

F64 = torch.float64


def number(name: str, default: float | None = 0.0, **fields: Any) -> TorchScalarVariable:
    return TorchScalarVariable(name=name, default_value=default, **fields)


def network(policy: str = "error") -> TorchModel:
    torch.manual_seed(11)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    inputs = [number("a", value_range=(-1, 1)), TorchNDVariable(name="w", shape=(2,)), number("b", value_range=(-1, 1))]
    inputs[1] = TorchNDVariable(name="w", shape=(2,), default_value=[0.1, -0.2])
    outputs = [number("y", None), TorchNDVariable(name="m", shape=(2, 2))]
    return TorchModel(net, inputs, outputs, validation={"a": policy})


class Formula(LUMEModel):
    """A smooth function of numbers beside switches that have no gradient."""

    def __init__(self) -> None:
        super().__init__(
            [
                number("a", value_range=(-1, 1)),
                number("b", value_range=(-1, 1)),
                TorchNDVariable(name="w", shape=(2,), default_value=[0.5, 1.0]),
                BoolVariable(name="on", default_value=True),
                EnumVariable(name="mode", options=["p", "q"], default_value="p"),
                number("y", None, read_only=True),
                TorchNDVariable(name="m", shape=(2, 2), read_only=True),
                EnumVariable(name="label", options=["p", "q"], read_only=True),
            ]
        )

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        a, b, w = inputs["a"], inputs["b"], inputs["w"]
        y = (a * w[..., 0]).sin() + (b * a).exp() * w[..., 1] * inputs["on"]
        a, b, y = torch.broadcast_tensors(a, b, y)
        m = torch.stack([torch.stack([y, a * b], -1), torch.stack([b, a], -1)], -1).cosh()
        return {"y": y, "m": m, "label": inputs["mode"]}


def chain() -> StagedModel:
    return StagedModel({"first": Formula(), "last": network("none")}, {"last/a": "first/y"})


MODELS: dict[str, Callable[[], LUMEModel]] = {"network": network, "formula": Formula, "chain": chain}
NAMES = {
    "network": (["a", "w", "b"], ["y", "m"]),
    "formula": (["a", "b", "w"], ["y", "m"]),
    "chain": (["first/a", "first/b", "first/w", "last/w"], ["first/y", "last/y", "last/m"]),
}
EACH = pytest.mark.parametrize("kind", MODELS)


def function_of(kind: str) -> tuple[nn.Module, Tensor]:
    """Return a model as a function of one tensor, and the point of its defaults."""
    inputs, outputs = NAMES[kind]
    model = MODELS[kind]().requires_grad_(False)
    function = model.tensor_function(inputs, outputs)
    return function, torch.cat([model.get(name).reshape(-1) for name in inputs])


POINTS = {"defaults": None, "zero": 0.0, "upper bound": 1.0, "lower bound": -1.0}


@EACH
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_gradcheck_forward_reverse_and_batched(kind: str, point: float | None) -> None:
    function, default = function_of(kind)
    x = (default if point is None else torch.full_like(default, point)).requires_grad_()
    function = unlimited(function)
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, (x,), atol=1e-7, **modes)
    assert gradgradcheck(function, (x,), atol=1e-6)


def unlimited(function: nn.Module) -> nn.Module:
    """Let the steps of a numerical derivative pass the limits."""
    for module in function.modules():
        if isinstance(module, LUMEModel):
            module._validation.update(dict.fromkeys(module.input_names, "none"))
    return function


@EACH
def test_batches_have_the_gradients_of_their_members(kind: str) -> None:
    function, x = function_of(kind)
    rows = torch.stack([x, -x, 0.5 * x]).requires_grad_()
    (together,) = torch.autograd.grad(function(rows).square().sum(), rows)
    for row, found in zip(rows.detach(), together, strict=True):
        leaf = row.clone().requires_grad_()
        (alone,) = torch.autograd.grad(function(leaf).square().sum(), leaf)
        torch.testing.assert_close(found, alone)


# -- torch.func


def jacobian_by_hand(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, x, strict=False)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]] = {
    "jacrev": lambda f, x: (torch.func.jacrev(f)(x), jacobian_by_hand(f, x)),
    "jacfwd": lambda f, x: (torch.func.jacfwd(f)(x), jacobian_by_hand(f, x)),
    "grad": lambda f, x: (torch.func.grad(lambda y: f(y).sum())(x), jacobian_by_hand(f, x).sum(0)),
    "vjp": lambda f, x: (torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0], jacobian_by_hand(f, x).sum(0)),
    "jvp": lambda f, x: (torch.func.jvp(f, (x,), (torch.ones_like(x),))[1], jacobian_by_hand(f, x).sum(1)),
    "hessian": lambda f, x: (torch.func.hessian(lambda y: f(y).sum())(x), second(f, x)),
    "jacrev of jacrev": lambda f, x: (torch.func.jacrev(torch.func.jacrev(lambda y: f(y).sum()))(x), second(f, x)),
    "jacrev of jacfwd": lambda f, x: (torch.func.jacrev(torch.func.jacfwd(lambda y: f(y).sum()))(x), second(f, x)),
    "jacfwd of jacfwd": lambda f, x: (torch.func.jacfwd(torch.func.jacfwd(lambda y: f(y).sum()))(x), second(f, x)),
    "vmap": lambda f, x: (torch.func.vmap(f)(rows(x)), torch.stack([f(row) for row in rows(x)])),
    "vmap of vmap": lambda f, x: (
        torch.func.vmap(torch.func.vmap(f))(torch.stack([rows(x), -rows(x)])),
        f(torch.stack([rows(x), -rows(x)])),
    ),
    "vmap of grad": lambda f, x: (
        torch.func.vmap(torch.func.grad(lambda y: f(y).sum()))(rows(x)),
        torch.stack([jacobian_by_hand(f, row).sum(0) for row in rows(x)]),
    ),
    "vmap of jacfwd": lambda f, x: (
        torch.func.vmap(torch.func.jacfwd(f))(rows(x)),
        torch.stack([jacobian_by_hand(f, row) for row in rows(x)]),
    ),
    "jacrev of vmap": lambda f, x: (
        torch.func.jacrev(torch.func.vmap(f))(rows(x)).sum(2),
        torch.stack([jacobian_by_hand(f, row) for row in rows(x)]),
    ),
}


def rows(x: Tensor) -> Tensor:
    return torch.stack([x, 0.5 * x, x * x])


def second(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(lambda y: function(y).sum(), x)


@EACH
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_a_tensor_function(kind: str, transform: Any) -> None:
    function, x = function_of(kind)
    found, expected = transform(function, x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@EACH
def test_transforms_of_a_call_return_its_float_outputs(kind: str) -> None:
    model, first = MODELS[kind](), NAMES[kind][0][0]
    x = torch.tensor(0.3, dtype=F64)
    found = torch.func.jacrev(lambda a: model({first: a}))(x)
    assert list(found) == [n for n in model.output_names if "label" not in n]
    asked = torch.func.jacrev(lambda a: model({first: a}, outputs=[*model.output_names, *model.input_names]))(x)
    assert not {"label", "on", "mode"} & set(asked)
    assert asked[first] == 1.0
    for name, value in model.jacobian(list(found), [first], at={first: x}).items():
        torch.testing.assert_close(found[name].detach(), value[first], rtol=1e-9, atol=1e-12)
    mapped = torch.func.vmap(lambda a: model({first: a}))(torch.stack([x, -x]))
    batched = model({first: torch.stack([x, -x])})
    for name, value in mapped.items():
        torch.testing.assert_close(value, batched[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["network", "chain"])
def test_functional_call_differentiates_weights(kind: str) -> None:
    model, first = MODELS[kind](), NAMES[kind][0][0]
    weights = {name: p.detach() for name, p in model.named_parameters()}
    output = NAMES[kind][1][-1]

    def loss(values: dict[str, Tensor], a: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, ({first: a},), {"outputs": [output]})[output].square().sum()

    at = torch.tensor([0.1, -0.3, 0.7], dtype=F64)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, at)
    for index, a in enumerate(at):
        model.zero_grad()
        model({first: a}, outputs=[output])[output].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-9, atol=1e-12)
    before = model.get(output).detach().clone()
    loss({name: 2.0 * value for name, value in weights.items()}, at[0])
    assert torch.equal(model.get(output), before)


# -- bunches


BUNCH = {
    "mean_x": 1e-4,
    "mean_py": -2e3,
    "mean_energy": 1e8,
    "beta_x": 7.0,
    "alpha_x": -0.8,
    "norm_emit_x": 1e-6,
    "beta_y": 3.0,
    "norm_emit_y": 2e-6,
    "sigma_t": 1e-12,
    "sigma_energy": 1e5,
    "cov_t__energy": 4e-8,
    "charge": 2e-10,
}
STATISTICS = ["sigma_x", "twiss_beta_x", "twiss_alpha_x", "norm_emit_y", "mean_energy", "cov_t__energy", "charge"]


def test_gradcheck_of_a_bunch() -> None:
    model = BunchFromMoments(20, seed=5, reference_energy=1.01e8, **BUNCH)
    names = list(BUNCH)
    size = torch.tensor([abs(value) for value in BUNCH.values()], dtype=F64)
    signs = torch.tensor([1.0 if value > 0 else -1.0 for value in BUNCH.values()], dtype=F64)
    start = model.get("final_particles")
    scale = torch.stack([start[key].abs() for key in STATISTICS])

    def statistics(relative: Tensor) -> Tensor:
        """Everything relative to its own size, because gradcheck has one step for all."""
        values = dict(zip(names, (relative * size * signs).unbind(-1), strict=True))
        bunch = model(values, outputs=["final_particles"])["final_particles"]
        return torch.stack([bunch[key] for key in STATISTICS], -1) / scale

    x = torch.ones(len(names), dtype=F64, requires_grad=True)
    assert gradcheck(statistics, (x,), check_forward_ad=True, check_batched_grad=True, atol=1e-6, rtol=1e-5)
    both = torch.stack([x.detach(), 1.1 * x.detach()])
    torch.testing.assert_close(torch.func.vmap(statistics)(both), statistics(both), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["alpha_x", "mean_x", "cov_t__energy", "mean_px"])
def test_gradients_of_a_bunch_are_finite_at_zero(name: str) -> None:
    model = BunchFromMoments(30, **{**BUNCH, name: 0.0})
    leaf = torch.zeros((), dtype=F64, requires_grad=True)
    bunch = model({name: leaf}, outputs=["final_particles"])["final_particles"]
    total = torch.stack([bunch[key] / bunch[key].detach().abs().clamp_min(1e-30) for key in STATISTICS[:4]]).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    assert gradient.isfinite()
