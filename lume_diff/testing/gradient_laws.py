"""Laws of batches, gradients and transforms."""

from __future__ import annotations

import torch

from lume_diff.errors import GradientError
from lume_diff.testing.trial import LawViolation, Trial, Values, same, same_all


def law_batches(trial: Trial) -> None:
    """A batch equals a loop, and batch dimensions stand in front."""
    points = [trial.somewhere() for _ in range(3)]
    batch = {name: torch.tensor([point[name] for point in points], dtype=trial.model.dtype) for name in trial.inputs}
    together = trial.model(batch, outputs=trial.outputs)
    for index, point in enumerate(points):
        alone = trial.model(point, outputs=trial.outputs)
        for name in trial.outputs:
            shape = together[name].shape
            trial.demand(shape[:1] == (3,), f"{name!r} has shape {tuple(shape)} for a batch of 3")
            trial.demand(same(together[name][index], alone[name], 1e-9), f"{name!r}: batch differs from loop")


def law_gradient(trial: Trial) -> None:
    """Every gradient is finite and equals a central difference."""
    point = trial.somewhere()
    for name in trial.inputs:
        step = 1e-3 * trial.scale(name)
        x = torch.tensor(point[name], dtype=torch.float64)

        def at(value: torch.Tensor, name: str = name) -> Values:
            return trial.model({**point, name: value}, outputs=trial.outputs)

        leaf = x.to(trial.model.dtype).requires_grad_()
        values = at(leaf)
        for output in trial.outputs:
            if not values[output].requires_grad:
                continue
            (found,) = torch.autograd.grad(values[output].sum(), leaf, retain_graph=True, materialize_grads=True)
            trial.demand(bool(found.isfinite()), f"d {output} / d {name} is {found.item()}")
            wide, narrow = (
                (at(x + h)[output].sum() - at(x - h)[output].sum()).double().item() / (2 * h) for h in (step, step / 2)
            )
            best = (4 * narrow - wide) / 3
            size = abs(values[output].detach().double().sum().item())
            # What the difference itself does not know: its truncation, and the noise of the output, or its round-off.
            resolution = max(torch.finfo(trial.model.dtype).eps * 30 * size, 10 * trial.noise(output, name)) / step
            allowed = trial.rtol * max(abs(best), 1e-3 * size / trial.scale(name)) + abs(best - narrow) + resolution
            trial.demand(
                abs(found.item() - best) <= allowed,
                f"d {output} / d {name} is {found.item():.10g}, a central difference gives {best:.10g}",
            )


def law_graphs(trial: Trial) -> None:
    """Set and get keep the graph; one that a backward has freed is built again, also after no_grad or a step."""
    name, output = trial.pair()
    model, leaf = trial.model, trial.leaf(name)
    gradients = []
    for turn in range(4):
        if turn != 1:  # the second time only read
            model.set({name: leaf})
        if turn == 2:
            with torch.no_grad():
                trial.demand(not model.get(output).requires_grad, "a value read under no_grad carries a graph")
        value = model.get(output)
        trial.demand(value.requires_grad, "set and get lost the graph")
        (gradient,) = torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
        gradients.append(gradient)
    trial.demand(all(same(g, gradients[0], 1e-9) for g in gradients), f"repeated backward gives {gradients}")
    there = trial.tensor(trial.somewhere()[name])
    fresh = model({name: there}, outputs=[output])[output].detach()
    with torch.no_grad():
        leaf.copy_(there)
    trial.demand(same(model.get(output).detach(), fresh, 1e-9), "an in-place step of the optimiser was not noticed")
    model.detach_()
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    trial.demand(not model.get(name).requires_grad, "detach_ left a graph on a set-point")
    trial.demand(trainable or not model.get(output).requires_grad, "detach_ left a graph on an output")


def law_separate_graphs(trial: Trial) -> None:
    """A backward through a pure call frees nothing that was read before."""
    name, output = trial.pair()
    leaf = trial.leaf(name)
    trial.model.set({name: leaf})
    value = trial.model.get(output)
    trial.model(outputs=[output])[output].sum().backward()
    first = leaf.grad
    leaf.grad = None
    value.sum().backward()
    trial.demand(same(leaf.grad, first, 1e-9), "the gradient of a value that was read differs from that of a call")


def law_inference(trial: Trial) -> None:
    """What was written in inference mode can be differentiated later."""
    name, output = trial.pair()
    values = trial.somewhere()
    with torch.inference_mode():
        trial.model.set(values)
        inside = {key: value.clone() for key, value in trial.read().items()}
    trial.demand(same_all(trial.read(), inside, 1e-12), "values differ inside and outside of inference mode")
    leaf = trial.tensor(values[name]).requires_grad_()
    trial.model.set({name: leaf})
    trial.model.get(output).sum().backward()
    trial.demand(leaf.grad is not None, "set and get lost the graph after inference mode")


def law_jacobian(trial: Trial) -> None:
    """Forward, reverse and torch.func give one Jacobian, and the report says what it cost."""
    at = trial.somewhere()
    model = trial.model
    reverse = model.jacobian(trial.outputs, trial.inputs, at=at, mode="reverse")
    forward = model.jacobian(trial.outputs, trial.inputs, at=at, mode="forward")
    trial.demand(model.gradient_report().jacobian is not None, "the report does not tell the Jacobian's cost")
    x = torch.tensor([at[name] for name in trial.inputs], dtype=model.dtype)
    transform = torch.func.jacrev(model.tensor_function(trial.inputs, trial.outputs))(x).detach()
    values = {output: float(model(at, outputs=[output])[output].detach()) for output in trial.outputs}
    for i, output in enumerate(trial.outputs):
        for j, name in enumerate(trial.inputs):
            row = [float(table[output][name].detach()) for table in (reverse, forward)] + [float(transform[i, j])]
            largest = max(abs(value) for value in row) + 1e-3 * abs(values[output]) / trial.scale(name)
            trial.demand(
                max(row) - min(row) <= max(trial.rtol, 1e-7) * largest, f"d {output} / d {name} is one of {row}"
            )


def law_transforms(trial: Trial) -> None:
    """torch.func works: grad, jvp, vjp agree, vmap equals a loop or says what to do, and set is refused."""
    at = trial.somewhere()
    function = trial.model.tensor_function(trial.inputs, trial.outputs[:1])
    x = torch.tensor([at[name] for name in trial.inputs], dtype=trial.model.dtype)
    v = torch.ones_like(x)
    gradient = torch.func.grad(lambda y: function(y).sum())(x).detach()
    value, pushed = (found.detach() for found in torch.func.jvp(function, (x,), (v,)))
    pulled = torch.func.vjp(function, x)[1](torch.ones(1, dtype=x.dtype))[0].detach()
    natural = float(value.abs().sum()) / max(trial.scale(name) for name in trial.inputs)
    allowed = max(trial.rtol, 1e-7) * (float(gradient.abs().sum()) + 1e-3 * natural)
    trial.demand(abs(float(gradient @ v - pushed.sum())) <= allowed, "grad and jvp differ")
    trial.demand(float((gradient - pulled).abs().max()) <= allowed, "grad and vjp differ")
    stack = torch.stack([x, x * (1 + 1e-3), x])
    try:
        mapped = torch.func.vmap(function)(stack)
    except GradientError as error:
        trial.demand("batch" in str(error), f"vmap is refused without naming the batch dimension: {error}")
        trial.notes.append("vmap is refused")
    else:
        looped = torch.stack([function(row) for row in stack])
        trial.demand(same(mapped.detach(), looped.detach(), 1e-9), "vmap differs from a loop")

    def writes(y: torch.Tensor) -> torch.Tensor:
        trial.model.set({trial.inputs[0]: y})
        return y

    try:
        torch.func.grad(writes)(x[0])
    except GradientError:
        return
    raise LawViolation("set inside a torch.func transform was not refused")
