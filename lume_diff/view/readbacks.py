"""Readbacks: which output tells what a set-point has become."""

from __future__ import annotations

from collections.abc import Mapping

from lume_diff.variables import Variable

#: Ends of names of set-points, and of their readbacks, as facilities have them.
_ENDINGS = (
    ("BCTRL", "BACT"),
    ("BDES", "BACT"),
    ("_ADES", "_S_AV"),
    ("_PDES", "_S_PV"),
    ("CHRG_S", "CHRG"),
    (":SP", ":RB"),
    ("-SP", "-RB"),
    (":SET", ":GET"),
    ("", "_RBV"),
    ("", ":RBV"),
)


def readback_of(name: str, variables: Mapping[str, Variable]) -> str | None:
    """Return the name of the readback of a set-point, None where there is none.

    Args:
        name: of the set-point.
        variables: that there are.

    Example:
        >>> readback_of("QUAD:1:BCTRL", {"QUAD:1:BACT": ...})
        'QUAD:1:BACT'
    """
    for ending, other in _ENDINGS:
        found = name.removesuffix(ending) + other
        if name.endswith(ending) and found != name and found in variables:
            return found
    return None
