"""PriorMeanModelConstructor: Xopt's constructor with a model as the mean, while the data bear it out."""

from __future__ import annotations

import logging
import statistics
from typing import Any

import torch
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import ScaleKernel
from gpytorch.priors import LogNormalPrior
from pydantic import Field, PrivateAttr, SerializationInfo, model_serializer
from torch import nn
from xopt.generators.bayesian.models.standard import LBFGSNumericalOptimizerConfig, StandardModelConstructor
from xopt.pydantic import recursive_serialize

from lume_diff.calibration.prior_mean.checks import raise_all
from lume_diff.calibration.prior_mean.decision import Decision, History, LearnedValue, report
from lume_diff.calibration.prior_mean.gp import ModelGP
from lume_diff.calibration.prior_mean.gp_mean import PhysicalMean, emulation_of
from lume_diff.calibration.prior_mean.learning import learn
from lume_diff.calibration.prior_mean.model_mean import ModelMean
from lume_diff.calibration.prior_mean.storing import LOST, is_kept_as_module
from lume_diff.calibration.prior_mean.trust import correlation, leave_one_out
from lume_diff.errors import ValidationError

logger = logging.getLogger(__name__)

#: What is demanded at three points [nats], and from how many points after the second on no more is.
_LEAST, _LAST = 3.0, 10

#: Variance of what a mean leaves over, of standardised data, as learning begins: it is to explain what it can.
_FIRST = 0.01

#: Change of the likelihood, relative, at which training around a fixed mean ends: closer takes twice as many steps.
_TOLERANCE = 1e-6


class PriorMeanModelConstructor(StandardModelConstructor):
    """Build Xopt's Gaussian processes with models as their means, and with a constant where a model misleads.

    Everything that ``StandardModelConstructor`` takes is taken. Every time data arrive, an objective with a mean gets
    two GPs, one with the model and one with a constant, each as Xopt would train it. They are judged by how well they
    predict every point from the others. Up to two points the model is believed; then it has to predict the data better
    by 3 nats, and soon by ``demand`` for each further point, or the constant takes over: a model that says something of
    the machine does so soon, and one that is no better than a constant misleads near the optimum. The middle of the
    last three builds counts.

    A step takes about half the time with ``ParallelLBFGSOptimizer`` as the generator's ``numerical_optimizer``.

    Attributes:
        trust: whether models are judged; without, they are always the mean.
        demand: by how much the model has to be better [nats for each point from the third to the twelfth].
        decisions: what was decided at every build, with its numbers.

    Example:
        >>> PriorMeanModelConstructor().report()
        'no Gaussian process has been built yet'
    """

    name: str = Field("prior_mean", frozen=True)
    trust: bool = Field(True, description="whether a constant takes over where the model loses against the data")
    demand: float = Field(0.5, description="by how much [nats a point] the model has to predict better")
    decisions: list[Decision] = Field([], description="what was decided at every build")
    _stores: dict[str, dict[str, torch.Tensor]] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Share the decisions with copies."""
        super().model_post_init(context)
        self.__dict__["decisions"] = History(self.decisions)

    def build_model(
        self,
        input_names: list[str],
        outcome_names: list[str],
        data: Any,
        input_bounds: dict[str, list] | None = None,
        dtype: torch.dtype = torch.double,
        device: torch.device | str = "cpu",
    ) -> ModelListGP:
        """Build and train one GP for each outcome; see ``StandardModelConstructor``.

        Raises:
            ValidationError: for means that are given for no outcome, or that do not fit variables and ranges.
        """
        means = dict(self.mean_modules)
        _check_means(means, input_names, outcome_names, input_bounds)
        arguments = (input_names, outcome_names, data, input_bounds, dtype, device)
        kernels = {**{name: residual_kernel(len(input_names)) for name in means}, **self.covar_modules}
        with_model = self._variant("model", kernels)._built(*arguments)
        judged = [name for name in means if self.trust]
        self._store("model", with_model)
        if not judged:
            for i, name in enumerate(outcome_names):
                if name in means:
                    self._decide(name, with_model.models[i], None)
            return with_model
        own = {name: kernel for name, kernel in self.covar_modules.items() if name in judged}
        constants = self._variant("constant", own)._built(input_names, judged, data, input_bounds, dtype, device)
        self._store("constant", constants)
        rivals = dict(zip(judged, constants.models, strict=True))
        chosen: list[Any] = [
            self._decide(name, gp, rivals[name]) if name in rivals else gp
            for name, gp in zip(outcome_names, with_model.models, strict=True)
        ]
        return ModelListGP(*chosen)

    def _variant(self, kind: str, kernels: dict[str, Any]) -> PriorMeanModelConstructor:
        """Return a copy that builds with the models, or without."""
        changed: dict[str, Any] = {}
        if kind == "constant":
            changed = {"mean_modules": {}, "trainable_mean_keys": []}
        stored = self._stores.get(kind)
        use_stored = bool(self.use_cached_hyperparameters and stored is not None)
        variant = self.model_copy(
            update={"covar_modules": kernels, "use_cached_hyperparameters": use_stored, **changed}
        )
        variant._hyperparameter_store = stored
        return variant

    def _built(self, *arguments: Any) -> ModelListGP:
        return super().build_model(*arguments)

    def _store(self, kind: str, model: ModelListGP) -> None:
        self._stores = {**self._stores, kind: model.state_dict()}

    def _train_model(self, model: Any, mll: Any) -> Any:
        """Train a GP: what its mean may learn in turn with the rest, since both at once take ten times as long."""
        if not isinstance(model.mean_module, PhysicalMean):
            return super()._train_model(model, mll)
        mean = model.mean_module.model
        if not model.mean_module.is_learning and self.train_method == "lbfgs" and self.train_config is None:
            config = LBFGSNumericalOptimizerConfig(ftol=_TOLERANCE)
            return StandardModelConstructor._train_model(self.model_copy(update={"train_config": config}), model, mll)
        if not (isinstance(mean, ModelMean) and mean.calibration.is_learning):
            return super()._train_model(model, mll)
        learn(model, variance=_FIRST)
        mean.requires_grad_(False)
        super()._train_model(model, mll)
        mean.requires_grad_(True)
        learn(model)
        return model

    def build_mean_module(self, name: str, mean_modules: Any, input_transform: Any, outcome_transform: Any) -> Any:
        """Return the mean of an outcome between its own units and the GP's, or None for a constant."""
        mean = self._get_module(mean_modules, name)
        if mean is None:
            return None
        return PhysicalMean(mean, input_transform, outcome_transform, fixed_model=name not in self.trainable_mean_keys)

    @staticmethod
    def build_single_task_gp(X: Any, Y: Any, train: bool = True, **options: Any) -> Any:
        """Return a GP of data whose noise is learned, ours if it has a mean; training is the caller's."""
        if options.get("mean_module") is None:
            return StandardModelConstructor.build_single_task_gp(X, Y, train=train, **options)
        return ModelGP(X, Y, **options)

    @staticmethod
    def build_heteroskedastic_gp(X: Any, Y: Any, Yvar: Any, train: bool = True, **options: Any) -> Any:
        """Return a GP of data with known noise, ours if it has a mean, which Xopt's own forgets."""
        if options.get("mean_module") is None:
            return StandardModelConstructor.build_heteroskedastic_gp(X, Y, Yvar, train=train, **options)
        return ModelGP(X, Y, train_Yvar=Yvar, **options)

    def _decide(self, name: str, gp: Any, constant: SingleTaskGP | None) -> Any:
        """Return the GP to use, note why, and leave its mean as it was trained."""
        mean = gp.mean_module.model
        decision = Decision(objective=name, points=len(gp.train_targets), trusted=True, correlation=correlation(gp))
        if isinstance(mean, ModelMean) and mean.calibration.is_learning:
            decision.learned = [
                LearnedValue(name=v.name, value=v.value, expected=v.expected, unit=v.unit) for v in mean.learned()
            ]
        decision.emulation = emulation_of(gp, name)
        if constant is None:
            decision.reason = "not judged"
        else:
            decision.advantage = leave_one_out(gp) - leave_one_out(constant)
            demanded = max(_LEAST, self.demand * min(decision.points - 2, _LAST))
            # One build in twenty trains badly: the middle of three is what counts.
            lately = [d.advantage for d in self.decisions if d.objective == name and d.points < decision.points][-2:]
            advantage = statistics.median([*lately, decision.advantage] if len(lately) == 2 else [decision.advantage])
            decision.trusted = decision.points < 3 or advantage >= demanded
            better = "better" if advantage >= 0.0 else "worse"
            decision.reason = (
                f"the data are predicted {better} by {abs(advantage):.1f} nats than by a constant, "
                f"{demanded:.1f} better is asked for"
            )
        before = next((d for d in reversed(self.decisions) if d.objective == name), None)
        changed = (before is None or before.trusted) != decision.trusted
        logger.log(logging.WARNING if changed else logging.INFO, "prior mean of %s", decision.line())
        self.decisions.append(decision)
        mean.requires_grad_(False)
        return gp if decision.trusted or constant is None else constant

    @model_serializer(mode="plain")
    def serialize_json(self, info: SerializationInfo) -> Any:
        """Return a module in the place of this object, which Xopt's dump keeps in a file and loads by itself.

        Xopt rebuilds constructors from their fields only if it has a name for them, and has none for this one.
        """
        if info.mode == "python" and is_kept_as_module():
            return StoredConstructor(self)
        return {**plain_fields(self), "lost": LOST}

    def model_dump(self, **options: Any) -> Any:
        """Return the fields."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def report(self) -> str:
        """Return in words how the means agree with the data, what was decided, and what was learned."""
        return report(self.decisions)


def residual_kernel(dimensions: int) -> ScaleKernel:
    """Return the kernel of what a model leaves over: Xopt's default with a scale, since little may be left."""
    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=dimensions)
    scaled = ScaleKernel(kernel, outputscale_prior=LogNormalPrior(-2.0, 2.0), outputscale_constraint=GreaterThan(1e-6))
    scaled.outputscale = 0.1
    return scaled


class StoredConstructor(nn.Module):
    """A constructor as a module, for Xopt's dump; loads as the constructor."""

    def __init__(self, constructor: PriorMeanModelConstructor) -> None:
        super().__init__()
        self._constructor = constructor

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._constructor,)


def _same(constructor: PriorMeanModelConstructor) -> PriorMeanModelConstructor:
    return constructor


def plain_fields(constructor: PriorMeanModelConstructor) -> dict[str, Any]:
    """Return the fields that plain text can hold: all but modules."""
    fields = {name: getattr(constructor, name) for name in type(constructor).model_fields}
    fields["decisions"] = [decision.model_dump() for decision in constructor.decisions]
    return recursive_serialize(fields)


def _check_means(
    means: dict[str, Any],
    input_names: list[str],
    outcome_names: list[str],
    input_bounds: dict[str, list] | None,
) -> None:
    """Bind means to the variables; raise for everything that does not fit at once."""
    problems = []
    for name, mean in means.items():
        if name not in outcome_names:
            problems.append(f"mean_modules has {name!r}; expected an output of the VOCS: {outcome_names}")
        if isinstance(mean, ModelMean):
            try:
                mean.bind(input_names, input_bounds)
            except ValidationError as error:
                problems.append(f"mean of {name!r}: {error}")
    raise_all(problems)
