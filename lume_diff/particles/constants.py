"""The speed of light and the species table, with values equal to openPMD-beamphysics' and Cheetah's."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from numbers import Real
from types import ModuleType
from typing import NamedTuple

from lume_diff.errors import ValidationError, nearest_names

c_light = 299792458.0
"""The speed of light [m/s], exact."""


class SpeciesConstants(NamedTuple):
    """The rest energy [eV] and the charge [elementary charges] of one particle."""

    mass: float
    charge: float


@lru_cache(maxsize=1)
def known_species() -> dict[str, SpeciesConstants]:
    """Return the species that lume_diff knows by name.

    Returns:
        Name to rest energy [eV] and charge number.

    Source: the CODATA set of the installed SciPy, which openPMD-beamphysics and Cheetah use too.
    """
    from scipy.constants import value

    electron, proton, muon, deuteron = (
        value(f"{name} mass energy equivalent in MeV") * 1e6 for name in ("electron", "proton", "muon", "deuteron")
    )
    return {
        "electron": SpeciesConstants(electron, -1.0),
        "positron": SpeciesConstants(electron, 1.0),
        "proton": SpeciesConstants(proton, 1.0),
        "antiproton": SpeciesConstants(proton, -1.0),
        "deuteron": SpeciesConstants(deuteron, 1.0),
        "muon": SpeciesConstants(muon, -1.0),
        "antimuon": SpeciesConstants(muon, 1.0),
        "H-": SpeciesConstants(proton + electron * 2, -1.0),
        "H2+": SpeciesConstants(2 * proton + electron, 1.0),
    }


@lru_cache(maxsize=1)
def elementary_charge() -> float:
    """Return the elementary charge [C]."""
    from scipy.constants import e

    return float(e)


def species_constants(species: str, mass: float | None = None, charge: float | None = None) -> SpeciesConstants:
    """Look a species up, or take the mass and charge that are given for an unknown one.

    Args:
        species: the name, such as ``"electron"``.
        mass: rest energy [eV] of a species that the table does not have.
        charge: charge of that species [elementary charges].

    Returns:
        Rest energy [eV] and charge number.

    Raises:
        ValidationError: an unknown name without mass and charge, values that contradict the table or are no numbers.
    """
    for name, value in (("mass", mass), ("species_charge", charge)):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValidationError(f"{name}={value!r:.80} of species {species!r}: expected a finite number")
    known = known_species().get(species) if isinstance(species, str) else None
    if known is not None:
        given = SpeciesConstants(known.mass if mass is None else mass, known.charge if charge is None else charge)
        if abs(given.mass / known.mass - 1.0) > 1e-6 or given.charge != known.charge:
            raise ValidationError(
                f"species={species!r}: mass {given.mass!r} eV and charge {given.charge!r} e contradict the known "
                f"{known.mass!r} eV and {known.charge!r} e; leave them out, or give the species another name"
            )
        return known
    if not isinstance(species, str) or mass is None or charge is None:
        raise ValidationError(
            f"species={species!r} is not known{nearest_names(str(species), known_species())}; for another species "
            "give mass= [eV] and species_charge= [elementary charges] too"
        )
    if not mass > 0.0:
        raise ValidationError(f"mass={mass!r} of species {species!r}: expected a rest energy above 0 eV")
    return SpeciesConstants(float(mass), float(charge))


@lru_cache(maxsize=1)
def load_beamphysics() -> ModuleType:
    """Import openPMD-beamphysics when it is first needed, without its import-time deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=PendingDeprecationWarning)
        import beamphysics
        import beamphysics.particles
        import beamphysics.species
        import beamphysics.units
    return beamphysics
