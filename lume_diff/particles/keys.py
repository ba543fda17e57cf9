"""The names of bunch statistics, as openPMD-beamphysics has them, and what each consists of."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from lume_diff.errors import UnknownVariableError, nearest_names
from lume_diff.particles.constants import load_beamphysics

COORDINATES = ("x", "y", "z", "px", "py", "pz", "t")
ARRAY_KEYS = (
    *COORDINATES,
    "status",
    "weight",
    "id",
    "z/c",
    "p",
    "energy",
    "kinetic_energy",
    "xp",
    "yp",
    "higher_order_energy",
    "r",
    "theta",
    "pr",
    "ptheta",
    "Lz",
    "gamma",
    "beta",
    "beta_x",
    "beta_y",
    "beta_z",
    "x_bar",
    "px_bar",
    "y_bar",
    "py_bar",
    "Jx",
    "Jy",
)
"""Per-particle arrays."""

OPERATORS = ("mean", "sigma", "min", "max", "ptp", "delta")
TWISS_PARAMETERS = ("alpha", "beta", "gamma", "emit", "norm_emit", "eta", "etap")
SCALAR_KEYS = (
    "norm_emit_x",
    "norm_emit_y",
    "norm_emit_4d",
    "higher_order_energy_spread",
    "charge",
    "average_current",
    "species_charge",
    "mass",
    "n_particle",
    "n_alive",
    "n_dead",
)
_LENGTH_UNITS = {"m": 1.0, "mm": 1e-3, "µm": 1e-6, "um": 1e-6, "nm": 1e-9}


class StatisticKey(NamedTuple):
    """A statistic's name taken apart."""

    operator: str
    """``array``, ``scalar``, one of OPERATORS, ``cov``, ``twiss``, ``percentile``, ``bunching``, ``bunching_phase``."""
    names: tuple[str, ...]
    """The arrays it is made of; for ``twiss`` the parameter and the plane."""
    parameter: float = math.nan
    """The percentile, or the wavelength [m]."""

    @property
    def per_particle(self) -> bool:
        """Whether the value is one number a particle, (*batch, n), and not one a bunch, (*batch,)."""
        return self.operator in ("array", "delta")


@lru_cache(maxsize=1)
def statistic_names() -> tuple[str, ...]:
    """Return every statistic's name, without those that need a number (``bunching_``, ``percentile_``).

    Returns:
        More than a thousand names: arrays, scalars, Twiss parameters, operators on arrays, covariances.
    """
    names = [*ARRAY_KEYS, *SCALAR_KEYS]
    names += [f"twiss_{parameter}_{plane}" for plane in "xy" for parameter in TWISS_PARAMETERS]
    names += [f"{operator}_{name}" for operator in OPERATORS for name in ARRAY_KEYS]
    names += [f"cov_{a}__{b}" for a in ARRAY_KEYS for b in ARRAY_KEYS]
    return tuple(names)


@lru_cache(maxsize=4096)
def parse_key(key: str) -> StatisticKey:
    """Take a statistic's name apart.

    Args:
        key: such as ``"sigma_x"``, ``"cov_x__px"``, ``"twiss_beta_x"``, ``"percentile_90_x"``,
            ``"bunching_1.2e-6"``, ``"bunching_phase_800_nm"``.

    Returns:
        Its operator, arrays and parameter.

    Raises:
        UnknownVariableError: no such statistic; the message names the nearest.

    Example:
        >>> parse_key("cov_x__px").names
        ('x', 'px')
    """
    parsed = _parse(key) if isinstance(key, str) else None
    if parsed is None:
        hint = nearest_names(str(key), statistic_names())
        if str(key).startswith("bunching"):
            hint = "; expected a wavelength: 'bunching_1.2e-6', 'bunching_800_nm' or 'bunching_phase_1.2e-6'"
        elif str(key).startswith("percentile"):
            hint = "; expected a number from 0 to 100 and an array: 'percentile_90_x'"
        raise UnknownVariableError(f"{key!r} is not a bunch statistic{hint}")
    return parsed


def _parse(key: str) -> StatisticKey | None:
    if key in ARRAY_KEYS:
        return StatisticKey("array", (key,))
    if key == "higher_order_energy_spread":
        return StatisticKey("sigma", ("higher_order_energy",))
    if key in SCALAR_KEYS:
        return StatisticKey("scalar", (key,))
    operator, _, rest = key.partition("_")
    if operator in OPERATORS:
        return StatisticKey(operator, (rest,)) if rest in ARRAY_KEYS else None
    if operator == "cov":
        names = tuple(rest.split("__"))
        return StatisticKey("cov", names) if len(names) == 2 and all(name in ARRAY_KEYS for name in names) else None
    if operator == "twiss":
        parameter, _, plane = rest.rpartition("_")
        known = parameter in TWISS_PARAMETERS and plane in ("x", "y")
        return StatisticKey("twiss", (parameter, plane)) if known else None
    if operator == "percentile":
        number, _, name = rest.partition("_")
        percent = _number(number)
        known = percent is not None and 0.0 <= percent <= 100.0 and name in ARRAY_KEYS
        return StatisticKey("percentile", (name,), percent) if known and percent is not None else None
    if operator == "bunching":
        phase = rest.startswith("phase_")
        number, _, unit = rest.removeprefix("phase_").partition("_")
        wavelength, factor = _number(number), _LENGTH_UNITS.get(unit or "m")
        if wavelength is None or factor is None or not 0.0 < wavelength < math.inf:
            return None
        return StatisticKey("bunching_phase" if phase else "bunching", (), wavelength * factor)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def statistic_unit(key: str) -> str:
    """Return a statistic's unit, spelled as openPMD-beamphysics does.

    Args:
        key: a name that `parse_key` takes.

    Returns:
        The unit, such as ``"m"``, ``"eV/c"``, ``"m*eV/c"``; ``"1"`` without dimension.

    Raises:
        UnknownVariableError: no such statistic.
    """
    parsed = parse_key(key)
    pg_units = load_beamphysics().units.pg_units
    return str(pg_units(parsed.names[0] if parsed.operator == "percentile" else key).unitSymbol)
