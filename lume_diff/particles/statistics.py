"""Statistics of a bunch, with the definitions of openPMD-beamphysics, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.particles.arrays import ARRAYS
from lume_diff.particles.checks import is_concrete
from lume_diff.particles.constants import c_light, elementary_charge
from lume_diff.particles.emittance import check_plane, norm_emit_2d, norm_emit_4d, twiss_and_dispersion
from lume_diff.particles.keys import StatisticKey, parse_key
from lume_diff.particles.weighted import dot, percentile, round_off_of_constant, safe_divide, safe_sqrt

if TYPE_CHECKING:
    from lume_diff.particles.group import TorchParticleGroup

T = TypeVar("T")


class BunchStatistics:
    """Statistics of one bunch with one set of weights; intermediates are computed once.

    Made for one evaluation and then dropped: what it keeps belongs to the autograd graph of that moment.

    Args:
        bunch: the particles.
        alive_only: weigh each particle by its survival probability. Then a bunch that is lost entirely has
            NaN statistics (charge and counts 0) whose gradient is zero, so it spoils no other batch member.
        selection: 1 for the particles that count and 0 for the others, (*batch, n); left out, all count.

    Gradient: exact, and finite for a coordinate without spread.
    """

    def __init__(self, bunch: TorchParticleGroup, alive_only: bool = False, selection: Tensor | None = None) -> None:
        self.bunch: TorchParticleGroup = bunch
        self.alive_only = alive_only
        self.selection = selection
        weight = bunch.weight * bunch.alive if alive_only else bunch.weight
        self.weight = weight if selection is None else weight * selection
        self._cache: dict[Any, Any] = {}

    def cached(self, key: Any, compute: Callable[[], T]) -> T:
        """Return what was computed under this key, or compute it."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value

    def array(self, name: str) -> Tensor:
        """Return a per-particle array, (*batch, n)."""
        return self.cached(name, lambda: ARRAYS[name](self))

    # What the weights add up to

    @property
    def total(self) -> Tensor:
        """The sum of the weights, (*batch,)."""
        return self.cached("total", lambda: self.weight.sum(-1))

    @property
    def counted(self) -> Tensor:
        """The particles that count, a bool tensor (*batch, n)."""
        return self.cached("counted", lambda: self.weight > 0.0)

    @property
    def fit_weight(self) -> Tensor:
        """The weight of a particle in a fit that leaves the charge out of account, (*batch, n)."""
        return self.bunch.alive if self.alive_only else torch.ones_like(self.bunch.x)

    def _defined(self, value: Tensor) -> Tensor:
        """Make a value NaN, with a zero gradient, for a bunch without any living particle."""
        return torch.where(self.total > 0.0, value, torch.nan) if self.alive_only else value

    def _per_weight(self, value: Tensor) -> Tensor:
        return safe_divide(value, self.total, 0.0) if self.alive_only else value / self.total

    # First and second moments; the underscored ones are finite for a lost bunch too

    def _centred(self, name: str) -> Tensor:
        def compute() -> Tensor:
            values, mean = self.array(name), self._mean(name)
            return values - (mean + round_off_of_constant(values, mean)).unsqueeze(-1)

        return self.cached(("centred", name), compute)

    def _mean(self, name: str) -> Tensor:
        return self.cached(("mean", name), lambda: self._per_weight(dot(self.weight, self.array(name))))

    def _sum_of_products(self, a: str, b: str) -> Tensor:
        a, b = sorted((a, b))
        return self.cached(("products", a, b), lambda: dot(self.weight * self._centred(a), self._centred(b)))

    def _prepare_products(self, *names: str) -> None:
        """Compute the sums of products of all pairs of some arrays, weighting each array only once."""
        names = tuple(sorted(names))
        for i, a in enumerate(names):
            missing = [b for b in names[i:] if ("products", a, b) not in self._cache]
            if missing:
                weighted = self.weight * self._centred(a)
                for b in missing:
                    self._cache["products", a, b] = dot(weighted, self._centred(b))

    @property
    def _covariance_norm(self) -> Tensor:
        """The divisor that makes a covariance unbiased for weighted samples, as in numpy.cov(aweights=)."""

        def compute() -> Tensor:
            square = dot(self.weight, self.weight)
            return self.total - safe_divide(square, self.total, 0.0)

        return self.cached("covariance_norm", compute)

    def _cov(self, a: str, b: str) -> Tensor:
        return self.cached(
            ("cov", *sorted((a, b))),
            lambda: safe_divide(self._sum_of_products(a, b), self._covariance_norm, math.nan),
        )

    def mean(self, name: str) -> Tensor:
        """Return the weighted mean, (*batch,)."""
        return self._defined(self._mean(name))

    def sigma(self, name: str) -> Tensor:
        """Return the weighted standard deviation (biased, as ParticleGroup's), (*batch,)."""
        return self._defined(safe_sqrt(self._per_weight(self._sum_of_products(name, name))))

    def cov(self, a: str, b: str) -> Tensor:
        """Return the weighted covariance (unbiased, as ParticleGroup's), (*batch,)."""
        return self._defined(self._cov(a, b))

    # Range and percentiles; for a lost bunch the underscored ones are infinite

    def _min(self, name: str) -> Tensor:
        values = self.array(name)
        return torch.amin(torch.where(self.counted, values, torch.inf) if self.alive_only else values, -1)

    def _max(self, name: str) -> Tensor:
        values = self.array(name)
        return torch.amax(torch.where(self.counted, values, -torch.inf) if self.alive_only else values, -1)

    def _ptp(self, name: str) -> Tensor:
        return self._max(name) - self._min(name)

    def min(self, name: str) -> Tensor:
        """Return the smallest value, (*batch,)."""
        return self._defined(self._min(name))

    def max(self, name: str) -> Tensor:
        """Return the largest value, (*batch,)."""
        return self._defined(self._max(name))

    def ptp(self, name: str) -> Tensor:
        """Return the range, (*batch,)."""
        return self._defined(self._ptp(name))

    def percentile(self, name: str, percent: float) -> Tensor:
        """Return the weighted percentile (see `weighted.percentile`), (*batch,)."""
        return self._defined(percentile(self.array(name), self.weight, percent / 100.0))

    # Emittance and Twiss parameters

    def _norm_emit_2d(self, plane: str) -> Tensor:
        self._prepare_products(plane, "p" + plane)
        return norm_emit_2d(self._cov, plane, self.bunch.mass)

    def mass_normalised_twiss(self, plane: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha and beta [m] of (x, p_x / mc), from which x_bar, px_bar and Jx are made.

        The third is whether they are defined; where not, the first two are 0 and 1.
        """

        def compute() -> tuple[Tensor, Tensor, Tensor]:
            emit = self._norm_emit_2d(plane)
            defined = emit > 0.0
            emit = torch.where(defined, emit, 1.0)
            alpha = torch.where(defined, -self._cov(plane, "p" + plane) / self.bunch.mass / emit, 0.0)
            beta = torch.where(defined, self._cov(plane, plane) / emit, 1.0)
            # A lost bunch keeps finite arrays, so that what is made of them has a gradient of zero.
            return alpha, beta, defined | (self.total <= 0.0)

        return self.cached(("mass_normalised_twiss", plane), compute)

    def twiss(self, plane: str = "x", fraction: float = 1.0, p0c: Tensor | float | None = None) -> dict[str, Tensor]:
        """Return Twiss parameters and dispersion of one plane, or of several.

        Args:
            plane: ``"x"``, ``"y"`` or ``"xy"``.
            fraction: of the particles, those with the smallest amplitude.
            p0c: reference momentum [eV/c]; left out, the mean momentum.

        Returns:
            ``alpha_x``, ``beta_x`` [m], ``gamma_x`` [1/m], ``emit_x`` [m], ``eta_x`` [m], ``etap_x``,
            ``norm_emit_x`` [m], and so for y; each (*batch,).

        Raises:
            ValidationError: another plane, or a fraction outside (0, 1].
        """
        check_plane(plane)
        if not 0.0 < fraction <= 1.0:
            raise ValidationError(f"fraction={fraction!r} of twiss: expected a number in (0, 1]")
        result: dict[str, Tensor] = {}
        for p in plane:
            chosen = self if fraction == 1.0 else self._core(p, fraction)
            values = chosen._twiss(p, p0c)
            result.update({f"{name}_{p}": self._defined(value) for name, value in values.items()})
        return result

    def _twiss(self, plane: str, p0c: Tensor | float | None = None) -> dict[str, Tensor]:
        def compute() -> dict[str, Tensor]:
            p0 = self._mean("p") if p0c is None else torch.as_tensor(p0c, dtype=self.total.dtype).to(self.total.device)
            self._prepare_products(plane, "p" + plane, "p")
            return twiss_and_dispersion(self._cov, plane, p0, self.bunch.mass)

        return self.cached(("twiss", plane), compute) if p0c is None else compute()

    def _core(self, plane: str, fraction: float) -> BunchStatistics:
        """Return the statistics of the particles with the smallest amplitude in a plane."""
        amplitude = self.array("J" + plane).detach()
        if self.alive_only:
            amplitude = torch.where(self.counted, amplitude, torch.inf)
        counted = self.counted if self.alive_only else torch.ones_like(self.counted)
        # In double precision whatever that of the bunch, as ParticleGroup counts: 0.29 of 100 are 28.
        count = torch.floor(fraction * counted.sum(-1, keepdim=True).to(torch.float64))
        rank = torch.argsort(torch.argsort(amplitude, dim=-1), dim=-1)
        selection = (rank < count).to(self.weight.dtype)
        return BunchStatistics(self.bunch, self.alive_only, selection)

    # Scalars of their own

    def _on_one_plane(self, coordinate: str) -> Tensor:
        values = getattr(self.bunch, coordinate).detach()
        return (values == values[..., :1]).all(-1)

    def _average_current(self) -> Tensor:
        dt = self._ptp("t")
        if is_concrete(dt) and bool((dt.detach() != 0.0).all()):  # The usual case: saves the energies.
            return self._defined(self.total / dt)
        path_time = safe_divide(self._ptp("z"), self._mean("beta_z") * c_light, torch.inf)
        dt = torch.where(dt == 0.0, path_time, dt)
        return self._defined(safe_divide(self.total, dt, torch.inf))

    def _bunching(self, wavelength: float) -> tuple[Tensor, Tensor]:
        """Return the real and imaginary part of the bunching factor, each (*batch,)."""
        time = self.bunch.t * self._mean("beta_z").unsqueeze(-1) * c_light
        phase = 2.0 * math.pi / wavelength * torch.where(self._on_one_plane("z").unsqueeze(-1), time, self.bunch.z)
        return self._per_weight(dot(self.weight, phase.cos())), self._per_weight(dot(self.weight, phase.sin()))

    def _scalar(self, name: str) -> Tensor:
        total = self.total
        match name:
            case "norm_emit_x" | "norm_emit_y":
                return self._defined(self._norm_emit_2d(name[-1]))
            case "norm_emit_4d":
                self._prepare_products("x", "px", "y", "py")
                return self._defined(norm_emit_4d(self._cov, self.bunch.mass))
            case "charge":
                return total
            case "average_current":
                return self._average_current()
            case "species_charge":
                return torch.full_like(total.detach(), self.bunch.charge_number * elementary_charge())
            case "mass":
                return torch.full_like(total.detach(), self.bunch.mass)
            case "n_particle":
                if self.alive_only:
                    return self._scalar("n_alive")
                return torch.full_like(total.detach(), self.bunch.x.shape[-1], dtype=torch.int64)
            case "n_alive":
                return (self.bunch.alive > 0.5).sum(-1)
            case "n_dead":
                dead = (self.bunch.alive <= 0.5).sum(-1)
                return torch.zeros_like(dead) if self.alive_only else dead
        raise AssertionError(name)

    def __getitem__(self, key: str | StatisticKey) -> Tensor:
        parsed = parse_key(key) if isinstance(key, str) else key
        operator, names, parameter = parsed
        match operator:
            case "array":
                return self.array(names[0]) if names[0] != "id" else self.bunch.id.expand(self.bunch.x.shape)
            case "scalar":
                return self._scalar(names[0])
            case "mean" | "sigma" | "min" | "max" | "ptp":
                value: Tensor = getattr(self, operator)(names[0])
                return value
            case "delta":
                return self._centred(names[0])
            case "cov":
                return self.cov(*names)
            case "twiss":
                return self._defined(self._twiss(names[1])[names[0]])
            case "percentile":
                return self.percentile(names[0], parameter)
            case "bunching" | "bunching_phase":
                real, imaginary = self._bunching(parameter)
                phase = operator == "bunching_phase"
                both = torch.atan2(imaginary, real) if phase else safe_sqrt(real * real + imaginary * imaginary)
                return self._defined(both)
        raise AssertionError(operator)

    def matrix(self, keys: Iterable[str]) -> Tensor:
        """Return the covariance matrix of some arrays, (*batch, k, k)."""
        names = list(keys)
        for name in names:
            if parse_key(name).operator != "array":
                raise ValidationError(f"cov: {name!r} is not a per-particle array{nearest_names(name, ARRAYS)}")
        if not names:
            raise ValidationError("cov: no array is named; expected one or more, such as 'x', 'px'")
        self._prepare_products(*names)
        rows = [torch.stack([self.cov(a, b) for b in names], -1) for a in names]
        return torch.stack(rows, -2)
