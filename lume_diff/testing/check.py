"""check_model: the whole list of laws on one model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.testing import gradient_laws, memory_laws
from lume_diff.testing.trial import LawViolation, Trial, same
from lume_diff.variables import TorchScalarVariable

#: Every law by name, in the order they are tried.
LAWS: dict[str, Callable[[Trial], None]] = {
    name.removeprefix("law_"): law
    for module in (memory_laws, gradient_laws)
    for name, law in vars(module).items()
    if name.startswith("law_")
}


def check_model(
    model: LUMEModel,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    rtol: float = 1e-6,
    seed: int = 0,
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> dict[str, str]:
    """Try the whole list of laws on copies of a model.

    Args:
        model: any model; it is not changed.
        inputs: scalar inputs to vary; by default the first three that can be.
        outputs: scalar outputs to watch; by default the first three with a gradient to one of the inputs.
        rtol: relative accuracy demanded of gradients.
        seed: of the settings that are tried.
        skip: names of laws to leave out, which the result then says.
        only: names of the laws to try; None for all.

    Returns:
        ``{law: "passed" | "passed, <note>" | "skipped"}``.

    Raises:
        LawViolation: for the first law that is broken, with its name and what was seen.
        ValidationError: for a law that does not exist.

    Example:
        >>> import torch, lume_diff as ld
        >>> net = torch.nn.Linear(2, 1, dtype=torch.float64)
        >>> x = [ld.TorchScalarVariable(name=n, default_value=0.0) for n in ("a", "b")]
        >>> y = [ld.TorchScalarVariable(name="y", read_only=True)]
        >>> check_model(ld.TorchModel(net, x, y))["gradient"]
        'passed'
    """
    for name in (*skip, *(only or ())):
        if name not in LAWS:
            raise ValidationError(f"{name!r} is not a law{nearest_names(name, LAWS)}")
    generator = torch.Generator().manual_seed(seed)
    chosen_inputs = list(inputs) if inputs is not None else _variable_inputs(model)[:3]
    if not chosen_inputs:
        raise LawViolation("the model has no scalar input with a value, so there is nothing to vary")
    watched = list(outputs) if outputs is not None else _watched_outputs(copy.deepcopy(model), chosen_inputs, generator)
    if not watched:
        raise LawViolation(f"no scalar output has a gradient with respect to {chosen_inputs}")
    results = {}
    for name, law in LAWS.items():
        if name in skip or (only is not None and name not in only):
            results[name] = "skipped"
            continue
        trial = Trial(copy.deepcopy(model), chosen_inputs, watched, rtol, generator.manual_seed(seed))
        try:
            _try(law, trial)
        except Exception as error:
            what = str(error) if isinstance(error, LawViolation) else f"{type(error).__name__}: {error}"
            raise LawViolation(f"law {name!r} ({(law.__doc__ or '').strip()}): {what}") from error
        results[name] = "passed" + "".join(f", {note}" for note in trial.notes)
    return results


def _try(law: Callable[[Trial], None], trial: Trial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        law(trial)


def _variable_inputs(model: LUMEModel) -> list[str]:
    return [
        name
        for name in model.input_names
        if isinstance(model.supported_variables[name], TorchScalarVariable) and model.get(name) is not None
    ]


def _watched_outputs(model: LUMEModel, inputs: Sequence[str], generator: torch.Generator) -> list[str]:
    """Return scalar outputs with a gradient, leaving out those that are nothing but round-off."""
    scalars = [n for n in model.output_names if isinstance(model.supported_variables[n], TorchScalarVariable)]
    trial = Trial(model, list(inputs), [], 0.0, generator)
    leaves = {name: trial.tensor(value).requires_grad_() for name, value in trial.somewhere().items()}
    single = copy.deepcopy(model).to(torch.float32)
    found: list[str] = []
    for name in scalars:
        if len(found) == 3:
            break
        value = model(leaves, outputs=[name])[name]
        if not value.requires_grad or not bool(value.isfinite().all()) or not _matters(model, value, leaves):
            continue
        rough = single({n: leaf.detach().float() for n, leaf in leaves.items()}, outputs=[name])[name]
        if same(value.detach(), rough.detach(), 1e-2):
            found.append(name)
    return found


def _matters(model: LUMEModel, value: torch.Tensor, leaves: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether a typical change of any input changes a value by more than its round-off."""
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
    scales = (getattr(model.supported_variables[name], "scale", None) or 1.0 for name in leaves)
    changes = [float(g.abs().max()) * scale for g, scale in zip(gradients, scales, strict=True)]
    return not max(changes) <= 1e-9 * float(value.detach().abs().max())
