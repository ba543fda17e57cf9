"""EnsembleModel: several networks for the same thing, their mean and how far they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn

from lume_diff.errors import ValidationError
from lume_diff.models.base import LUMEModel
from lume_diff.models.surrogates.spread import SUFFIX, root, with_spread
from lume_diff.models.torch_model import TorchModel
from lume_diff.variables import TorchNDVariable, Variable

if TYPE_CHECKING:
    from lume_diff.models.surrogates.modules import Allowed


class EnsembleModel(LUMEModel):
    """Average networks that were trained on the same data, and say how far they agree.

    Every output ``<name>`` is the mean over the members, and ``<name>.std`` is their standard deviation (with Bessel's
    correction), which grows where there were no data. Both carry a gradient. Where all members agree to the last bit,
    the gradient of the deviation is 0.

    Args:
        members: two or more models with the same inputs and outputs; the first one's variables are the ensemble's.
        validation: see ``LUMEModel``.

    Raises:
        ValidationError: for fewer than two members, one model twice, or names, kinds, units, dtypes or devices of
            variables that differ.

    Gradient:
        Exact.

    Source:
        B. Lakshminarayanan, A. Pritzel and C. Blundell, "Simple and scalable predictive uncertainty estimation using
        deep ensembles", NeurIPS 30 (2017), arXiv:1612.01474, without its noise model.

    Example:
        >>> from lume_diff.variables import TorchScalarVariable
        >>> x = TorchScalarVariable(name="x", default_value=1.0)
        >>> y = TorchScalarVariable(name="y", unit="m")
        >>> model = EnsembleModel([TorchModel(lambda x, a=a: a * x, [x], [y]) for a in (1.0, 2.0, 3.0)])
        >>> model.get(["y", "y.std"])
        {'y': tensor(2., dtype=torch.float64), 'y.std': tensor(1., dtype=torch.float64)}
    """

    def __init__(self, members: Sequence[TorchModel], *, validation: Mapping[str, str] | None = None) -> None:
        members = list(members)
        _check(members)
        first = members[0]
        variables = first.supported_variables
        constants = [name for name in first.output_names if name in first.constant_names]
        estimates = [name for name in first.output_names if name not in first.constant_names]
        super().__init__(
            [
                *(variables[name] for name in (*first.input_names, *constants)),
                *with_spread(variables[name] for name in estimates),
            ],
            dtype=first.dtype,
            device=first.device,
            validation=dict(first._validation) | dict(validation or {}),
        )
        self.members = nn.ModuleList(members)
        self._constants, self._estimates = constants, estimates
        self.eval()

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        allow: Iterable[Allowed] = (),
        allow_torchscript: bool = False,
        validation: Mapping[str, str] | None = None,
    ) -> Self:
        """Read an ensemble that lume-torch has dumped, without running code of the file.

        Args:
            path: the YAML file of an ``NNEnsemble``; the files of its members lie beside it.
            allow, allow_torchscript, validation: see ``TorchModel.from_file``.

        Raises:
            ValidationError: see ``TorchModel.from_file``.

        Gradient:
            Exact.
        """
        from lume_diff.models.surrogates.reader import read_members

        return cls(read_members(Path(path), allow, allow_torchscript), validation=validation)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        answers = [member._run(inputs, outputs) for member in self._members()]
        found: dict[str, Any] = {name: answers[0][name] for name in self._constants}
        for name in self._estimates:
            values = torch.stack([answer[name] for answer in answers])
            mean = values.mean(0)
            found[name] = mean
            found[name + SUFFIX] = root((values - mean).square().sum(0) / (len(answers) - 1))
        return found

    def _members(self) -> list[TorchModel]:
        return [cast(TorchModel, member) for member in self.members]


def _check(members: Sequence[TorchModel]) -> None:
    if len(members) < 2:
        raise ValidationError(f"members has {len(members)} model(s): a spread needs two or more")
    if len({id(member) for member in members}) < len(members):
        raise ValidationError("members has one model twice: give each of them once")
    for index, member in enumerate(members):
        if not isinstance(member, TorchModel):
            raise ValidationError(f"member {index} is a {type(member).__name__}; expected a TorchModel")
        for word in ("input_names", "output_names", "dtype", "device"):
            mine, firsts = getattr(member, word), getattr(members[0], word)
            if mine != firsts:
                raise ValidationError(
                    f"{word} of member {index} is {mine}, of member 0 {firsts}: they must be the same"
                )
        for name, variable in member.supported_variables.items():
            here, there = _what_it_is(variable), _what_it_is(members[0].supported_variables[name])
            if here != there:
                raise ValidationError(
                    f"{name!r} of member {index} is {here}, of member 0 {there}: they must be the same"
                )


def _what_it_is(variable: Variable) -> str:
    shape = f" of shape {variable.shape}" if isinstance(variable, TorchNDVariable) else ""
    return f"a {type(variable).__name__}{shape} in {variable.unit!r}"
