"""CalibrationResult: what a fit has found, how sure that is, and what the data cannot tell."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from lume_diff.calibration.data.several import data_sets
from lume_diff.calibration.fit.calibrated import CalibratedModel
from lume_diff.calibration.fit.objective import holds_images
from lume_diff.calibration.fit.posterior import Laplace, Unresolved, standard_errors
from lume_diff.errors import ValidationError, unknown_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lume_diff.calibration.fit.calibration import Calibration
    from lume_diff.calibration.fit.progress import Step
    from lume_diff.models import LUMEModel

#: A parameter of whose prior width more than this is left has learned next to nothing.
_SHARE_LEFT = 0.7
#: Chi² per degree of freedom above which a fit says that something is wrong.
_POOR_FIT = 2.0


class CalibrationResult:
    """The estimates of a fit with their standard errors, and everything to judge them by; see ``Calibration.run``.

    Attributes:
        parameters: what was unknown, in the order of all arrays here.
        u: the estimates in coordinates in which every prior is a standard normal distribution, ``(p,)``.
        laplace: the normal distribution around them, in these coordinates.
        cost: minus the log posterior, but for a constant, at the best point that the optimiser has found.
        optima: where each start ended, and what it costs there.
        converged: whether the optimiser found that nothing more is to be gained.
        message: why it stopped.
        method: which optimiser.
        history: every accepted step: cost, values, simulator runs, seconds.
        runs: simulator runs that the fit took.
        evaluations: how often model and data were compared; those from a checkpoint not counted.
        seconds: that the fit took.
        seed: of random starts.
    """

    def __init__(
        self,
        calibration: Calibration,
        u: Tensor,
        cost: float,
        laplace: Laplace,
        method: str,
        converged: bool,
        message: str,
        optima: Sequence[tuple[Tensor, float]],
        history: Sequence[Step],
        runs: int,
        evaluations: int,
        seconds: float,
        seed: int,
        expected: float | None = None,
    ) -> None:
        self.calibration = calibration
        self.parameters = calibration.parameters
        self.u = u
        self.cost = cost
        self.laplace = laplace
        self.method = method
        self.converged = converged
        self.message = message
        self.optima = list(optima)
        self.history = list(history)
        self.runs = runs
        self.evaluations = evaluations
        self.seconds = seconds
        self.seed = seed
        self._expected = expected

    # -- numbers ---------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The parameters, in the order of all arrays here."""
        return [parameter.name for parameter in self.parameters]

    @cached_property
    def _values(self) -> Tensor:
        return torch.stack([p.prior.at(part) for p, part in zip(self.parameters, self.u.unbind(), strict=True)])

    @property
    def values(self) -> dict[str, float]:
        """The most likely values, each in its unit."""
        return dict(zip(self.names, self._values.tolist(), strict=True))

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors, each in its parameter's unit; of what the data do not resolve, the prior's."""
        found = standard_errors(self.parameters, self.u, self.laplace.errors)
        return dict(zip(self.names, found.tolist(), strict=True))

    @property
    def correlation(self) -> Tensor:
        """Correlation matrix of the parameters, ``(p, p)``."""
        return self.laplace.correlation

    @property
    def unresolved(self) -> list[Unresolved]:
        """Combinations of parameters of which the data say less than the priors."""
        return self.laplace.unresolved(self.parameters)

    @property
    def resolved(self) -> dict[str, bool]:
        """Whether the data have narrowed a parameter down: to less than 0.7 of its prior's width."""
        return {n: e < _SHARE_LEFT for n, e in zip(self.names, self.laplace.errors.tolist(), strict=True)}

    @cached_property
    def residuals(self) -> Tensor:
        """Deviations of the best fit from all data, in standard deviations, ``(n,)``."""
        with torch.no_grad():
            everything = self.calibration.objective().residuals(self.u)
        return everything[: len(everything) - len(self.u)]

    @property
    def chi_square(self) -> float:
        """Sum of the squared deviations."""
        return float(self.residuals.square().sum())

    @property
    def degrees_of_freedom(self) -> int:
        """Number of data less that of parameters that they resolve.

        Errors of pixels that allow for a model's particles are on the large side; data count by what is known of their
        noise then.
        """
        number = len(self.residuals) if self._expected is None else round(self._expected)
        return max(number - (len(self.u) - len(self.unresolved)), 1)

    @property
    def reduced_chi_square(self) -> float:
        """Around 1 if model and noise are right; errors are too small by its root where it is larger."""
        return self.chi_square / self.degrees_of_freedom

    def __getitem__(self, name: str) -> tuple[float, float]:
        """Return the estimate and the standard error of a parameter, in its unit."""
        if name not in self.names:
            raise unknown_variable(name, self.names, "this calibration")
        return self.values[name], self.errors[name]

    # -- predictions -----------------------------------------------------------------------------------------

    def predict(self, data: Any = None) -> list[dict[str, Tensor]]:
        """Return what the calibrated machine should have shown at the settings of data sets.

        Args:
            data: a data set or several, whose settings are converted to the units of the model; those of the fit if
                None.

        Returns:
            For each data set ``{output: (settings, *shape)}``.

        Raises:
            ValidationError, UnknownVariableError, UnitError, ShapeError: for data that do not fit the model.
        """
        sets = self.calibration.data
        if data is not None:
            sets = [part.check_against(self.calibration.model) for part in data_sets(data)]
        objective = self.calibration.objective()
        with torch.no_grad():
            return [objective.predict(self._values, part) for part in sets]

    def apply(self, model: LUMEModel | None = None) -> LUMEModel:
        """Return a model with the machine's errors inside, which takes settings as they are written down.

        Args:
            model: the model to calibrate; that of the fit if None.

        Raises:
            UnknownVariableError, ReadOnlyError, UnitError, ValidationError: for a model without these inputs.
        """
        chosen = self.calibration.model if model is None else model
        for parameter in self.parameters:
            parameter.check(chosen)
        return CalibratedModel(chosen, self.parameters, self._values, self._pixel_sizes)

    @property
    def _pixel_sizes(self) -> dict[str, tuple[float, float]]:
        """Pixel size [m] of each screen, by output."""
        return {n: part.frame.pixel for part in self.calibration.data if holds_images(part) for n in part.outputs}

    def sample(self, count: int = 1000, *, warmup: int = 300, seed: int = 0) -> Tensor:
        """Draw values from the posterior by the No-U-Turn sampler, ``(count, p)``, each in its unit.

        Args:
            count: how many.
            warmup: steps that tune the sampler and are thrown away.
            seed: of the chain.

        Raises:
            MissingExtraError: without pyro.
        """
        from lume_diff.calibration.fit.sampling import sample

        return sample(self.calibration.objective(), self.u, self.laplace, count, warmup, seed)

    # -- for people ------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Return everything but the data as plain values."""
        return {
            "method": self.method,
            "converged": self.converged,
            "message": self.message,
            "cost": self.cost,
            "chi_square": self.chi_square,
            "degrees_of_freedom": self.degrees_of_freedom,
            "runs": self.runs,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "seed": self.seed,
            "parameters": [
                {
                    "name": p.name,
                    "kind": type(p).__name__,
                    "value": value,
                    "standard_error": self.errors[p.name],
                    "unit": p.unit,
                    "prior": repr(p.prior),
                    "resolved": self.resolved[p.name],
                    "acts": p.acts(),
                }
                for p, value in zip(self.parameters, self._values.tolist(), strict=True)
            ],
            "pixel_sizes": {name: [float(size) for size in pixel] for name, pixel in self._pixel_sizes.items()},
            "coordinates": self.u.tolist(),
            "correlation": self.correlation.tolist(),
            "unresolved": [{"information": u.information, "direction": u.direction} for u in self.unresolved],
            "optima": [{"cost": cost, "coordinates": u.tolist()} for u, cost in self.optima],
            "history": [step._asdict() for step in self.history],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the data as YAML, or with the residuals as HDF5 where the path ends with ``.h5``.

        Args:
            path: of the file; an existing one is replaced.
        """
        import yaml

        if not _is_hdf5(path):
            Path(path).write_text(yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True), encoding="utf-8")
            return
        import h5py

        with h5py.File(path, "w") as file:
            file["result"] = json.dumps(self.plain())
            file["names"] = self.names
            file["values"] = self._values.numpy()
            file["errors"] = list(self.errors.values())
            file["correlation"] = self.correlation.numpy()
            file["residuals"] = self.residuals.numpy()

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
        """Read what ``save`` wrote, as ``plain`` has it.

        Raises:
            ValidationError: for a file that does not exist or is something else.
        """
        import yaml

        found: Any = None
        if not Path(path).is_file():
            raise ValidationError(f"{os.fspath(path)!r} does not exist; give what CalibrationResult.save wrote")
        try:
            if _is_hdf5(path):
                import h5py

                with h5py.File(path) as file:
                    found = json.loads(file["result"][()]) if "result" in file else None
            else:
                found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValidationError(f"{os.fspath(path)!r} is no saved calibration: {error}") from error
        if not isinstance(found, dict) or "parameters" not in found:
            raise ValidationError(f"{os.fspath(path)!r} is no saved calibration: it has no 'parameters'")
        return found

    def plot(
        self, path: str | os.PathLike[str] | BinaryIO | None = None, truth: Mapping[str, float] | None = None
    ) -> Figure:
        """Draw data, best fit, residuals, estimates and convergence as one picture.

        Args:
            path: of the picture, or a stream that takes a PNG; None to write none.
            truth: true values of parameters by name, where they are known.

        Returns:
            A matplotlib figure, which a notebook shows.
        """
        from lume_diff.calibration.fit.pictures import plot_result

        return plot_result(self, path, truth)

    def shown(self, name: str) -> tuple[str, str]:
        """Return the estimate and the standard error of a parameter as text, to a tenth of the error."""
        value, error = self[name]
        return f"{value:.{_digits(value, error)}g}", f"{error:.2g}"

    @property
    def warnings(self) -> list[str]:
        """What to know before the numbers are believed."""
        found = [f"not resolved: {combination}" for combination in self.unresolved]
        if self.reduced_chi_square > _POOR_FIT:
            found.append(
                f"chi² per degree of freedom is {self.reduced_chi_square:.3g}: the model or the noise is not right, "
                f"and the errors are too small, by {math.sqrt(self.reduced_chi_square):.2g} at least"
            )
        others = [cost for _, cost in self.optima if cost > self.cost + 0.5]
        if others:
            found.append(
                f"{len(others)} of {len(self.optima)} starts ended in worse minima, the best of them "
                f"{min(others) - self.cost:.3g} above this one"
            )
        return found

    def __str__(self) -> str:
        width = max(map(len, [*self.names, "parameter"]))
        lines = [f"{'parameter':{width}}  {'estimate':>13}  {'error':>9}  {'unit':6}  prior"]
        for parameter in self.parameters:
            note = "" if self.resolved[parameter.name] else "   not resolved by the data: this is the prior"
            value, error = self.shown(parameter.name)
            lines.append(
                f"{parameter.name:{width}}  {value:>13}  {error:>9}  {parameter.unit:6}  {parameter.prior}{note}"
            )
        lines += [f"warning: {text}" for text in self.warnings]
        lines.append(f"chi² / degrees of freedom = {self.chi_square:.4g} / {self.degrees_of_freedom}")
        state = "converged" if self.converged else "NOT converged"
        lines.append(
            f"{state} ({self.message.rstrip('.')}) by {self.method}: {len(self.history)} steps, {self.evaluations} "
            f"evaluations, {self.runs} simulator runs, {self.seconds:.3g} s"
        )
        return "\n".join(lines)


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).endswith((".h5", ".hdf5"))


def _digits(value: float, error: float) -> int:
    """Return how many digits show a value to a tenth of its error."""
    if value == 0.0 or not error > 0.0:
        return 6
    return min(max(math.ceil(math.log10(abs(value) / error)) + 2, 2), 12)
