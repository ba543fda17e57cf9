"""Statistics of a moments description: each quantity by its mean and its slopes along the six coordinates."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.errors import UnknownVariableError, nearest_names
from lume_diff.particles.constants import c_light, elementary_charge
from lume_diff.particles.emittance import check_plane, norm_emit_2d, norm_emit_4d, twiss_and_dispersion
from lume_diff.particles.keys import TWISS_PARAMETERS, parse_key, statistic_names
from lume_diff.particles.weighted import safe_sqrt

if TYPE_CHECKING:
    from lume_diff.particles.moments import TorchMoments

EXACT = ("x", "y", "z", "px", "py", "t", "energy", "kinetic_energy", "gamma", "z/c")
FIRST_ORDER = ("p", "pz", "xp", "yp", "beta", "beta_x", "beta_y", "beta_z", "Lz")
_SCALARS = ("norm_emit_x", "norm_emit_y", "norm_emit_4d", "charge", "mass", "species_charge")


@lru_cache(maxsize=1)
def moment_statistic_names() -> tuple[str, ...]:
    """Return the names of the statistics that moments have."""
    arrays = (*EXACT, *FIRST_ORDER)
    names = [*_SCALARS, *(f"twiss_{parameter}_{plane}" for plane in "xy" for parameter in TWISS_PARAMETERS)]
    names += [f"{operator}_{name}" for operator in ("mean", "sigma") for name in arrays]
    names += [f"cov_{a}__{b}" for a in arrays for b in arrays]
    return tuple(names)


class MomentStatistics:
    """Statistics of one set of moments, made for one evaluation.

    A quantity f has the mean f(mean coordinates) and the covariances of its linear form there: exact for the
    coordinates and energies, to first order in the spread for the rest.
    """

    def __init__(self, moments: TorchMoments) -> None:
        self.moments = moments
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the value at the mean, (*batch,), and the slopes along x, px, y, py, tau, p, (*batch, 6)."""
        if name not in self._rows:
            self._rows[name] = self._make_linear(name)
        return self._rows[name]

    def _make_linear(self, name: str) -> tuple[Tensor, Tensor]:
        m = self.moments
        p0c = m.reference_momentum
        axis = torch.eye(6, dtype=m.dtype, device=m.device)
        scale: dict[str, tuple[int, Tensor | float, Tensor | float]] = {
            "x": (0, 1.0, 0.0),
            "px": (1, p0c, 0.0),
            "y": (2, 1.0, 0.0),
            "py": (3, p0c, 0.0),
            "t": (4, 1.0 / c_light, m.reference_time),
            "energy": (5, p0c, m.reference_energy),
            "kinetic_energy": (5, p0c, m.reference_energy - m.mass),
            "gamma": (5, p0c / m.mass, m.reference_energy / m.mass),
        }
        if name in scale:
            i, factor, offset = scale[name]
            factor = torch.as_tensor(factor, dtype=m.dtype, device=m.device).expand(m.batch_shape)
            return m.mean[..., i] * factor + offset, axis[i] * factor.unsqueeze(-1)
        if name in ("z", "z/c"):
            return m.s / (c_light if name == "z/c" else 1.0), torch.zeros_like(m.mean)
        return self._make_dependent(name)

    def _make_dependent(self, name: str) -> tuple[Tensor, Tensor]:
        energy, energy_slope = self._linear("energy")
        if name == "p":
            p = torch.sqrt((energy - self.moments.mass) * (energy + self.moments.mass))
            return p, energy_slope * (energy / p).unsqueeze(-1)
        if name == "pz":
            (p, dp), (px, dpx), (py, dpy) = (self._linear(n) for n in ("p", "px", "py"))
            pz = safe_sqrt(p * p - px * px - py * py)
            slope = p.unsqueeze(-1) * dp - px.unsqueeze(-1) * dpx - py.unsqueeze(-1) * dpy
            return pz, slope / pz.unsqueeze(-1)
        if name == "Lz":
            (x, dx), (y, dy), (px, dpx), (py, dpy) = (self._linear(n) for n in ("x", "y", "px", "py"))
            terms = ((x, dpy, 1.0), (py, dx, 1.0), (y, dpx, -1.0), (px, dy, -1.0))
            return x * py - y * px, torch.stack([f.unsqueeze(-1) * slope * sign for f, slope, sign in terms]).sum(0)
        quotients = {
            "xp": ("px", "pz"),
            "yp": ("py", "pz"),
            "beta": ("p", "energy"),
            "beta_x": ("px", "energy"),
            "beta_y": ("py", "energy"),
            "beta_z": ("pz", "energy"),
        }
        (a, da), (b, db) = (self._linear(n) for n in quotients[name])
        return a / b, (da - (a / b).unsqueeze(-1) * db) / b.unsqueeze(-1)

    def mean(self, name: str) -> Tensor:
        """Return the mean, (*batch,)."""
        return self._linear(name)[0]

    def cov(self, a: str, b: str) -> Tensor:
        """Return the covariance, (*batch,)."""
        (_, left), (_, right) = self._linear(a), self._linear(b)
        return (left.unsqueeze(-2) @ self.moments.cov @ right.unsqueeze(-1)).squeeze(-1).squeeze(-1)

    def sigma(self, name: str) -> Tensor:
        """Return the standard deviation, (*batch,), with a zero gradient where it is 0."""
        return safe_sqrt(self.cov(name, name))

    def twiss(self, plane: str = "x", p0c: Tensor | float | None = None) -> dict[str, Tensor]:
        """Return Twiss parameters and dispersion of one plane or several, each (*batch,)."""
        check_plane(plane)
        p0 = self.mean("p") if p0c is None else torch.as_tensor(p0c, dtype=self.moments.dtype)
        result: dict[str, Tensor] = {}
        for p in plane:
            values = twiss_and_dispersion(self.cov, p, p0, self.moments.mass)
            result.update({f"{name}_{p}": value for name, value in values.items()})
        return result

    def _scalar(self, name: str) -> Tensor:
        m = self.moments
        match name:
            case "charge":
                return m.charge
            case "mass":
                return torch.full_like(m.charge.detach(), m.mass)
            case "species_charge":
                return torch.full_like(m.charge.detach(), m.charge_number * elementary_charge())
            case "norm_emit_4d":
                return norm_emit_4d(self.cov, m.mass)
        return norm_emit_2d(self.cov, name[-1], m.mass)

    def __getitem__(self, key: str) -> Tensor:
        if key not in moment_statistic_names():
            if key in statistic_names():
                raise UnknownVariableError(
                    f"{key!r} needs particles, and moments have none; sample a bunch by sample_bunch(moments, n), or "
                    f"use one of the moments' own{nearest_names(key, moment_statistic_names())}"
                )
            raise UnknownVariableError(
                f"{key!r} is not a statistic of TorchMoments{nearest_names(str(key), moment_statistic_names())}"
            )
        operator, names, _ = parse_key(key)
        match operator:
            case "mean":
                return self.mean(names[0])
            case "sigma":
                return self.sigma(names[0])
            case "cov":
                return self.cov(*names)
            case "twiss":
                return self.twiss(names[1])[f"{names[0]}_{names[1]}"]
        return self._scalar(names[0])
