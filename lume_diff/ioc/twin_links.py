"""Which inputs follow which remote variables, checked all at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, Variable


def links_of(variables: Mapping[str, Variable], remote: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Return the name of the remote variable by the name of the input.

    Args:
        variables: of the model.
        remote: such names; a list of inputs, or ``"same"`` for all of them, where the names are equal.
    """
    if isinstance(remote, Mapping):
        return dict(remote)
    if isinstance(remote, str):
        if remote != "same":
            raise ValidationError(f"remote={remote!r}; expected names by input, a list of inputs, or 'same'")
        remote = [name for name, one in variables.items() if not one.read_only and not _is_beam(one)]
    return {name: name for name in remote}


def check_links(
    variables: Mapping[str, Variable],
    links: Mapping[str, str],
    write_back: Mapping[str, str],
    served: Iterable[str] | None = None,
    prefix: str | None = None,
) -> None:
    """Check what is followed and what is written back.

    Args:
        variables: of the model.
        links: name of the remote variable by the name of the input.
        write_back: name of the remote variable by the name of the output.
        served: names that the twin has, all if None.
        prefix: under which the twin is served, None if it is not.

    Raises:
        ValidationError: with every mistake.
    """
    names = set(variables if served is None else served)
    wrong = [] if links else ["nothing is followed: name an input"]
    for name, remote in links.items():
        if name not in variables:
            wrong.append(f"{name!r} is no variable of the model{nearest_names(name, variables)}")
        elif variables[name].read_only:
            wrong.append(f"{name!r} is an output and cannot follow anything")
        elif _is_beam(variables[name]):
            wrong.append(f"{name!r} is a beam, which no process variable can set")
        elif name not in names:
            wrong.append(f"{name!r} is followed and must be among 'names'")
        if not isinstance(remote, str) or not remote.strip():
            wrong.append(f"{name!r} follows {remote!r}; expected the name of a process variable")
        if prefix is not None and remote.removeprefix(prefix) in names and remote.startswith(prefix):
            wrong.append(f"{name!r} follows {remote!r}, which the twin itself serves; give it another prefix")
    for name, remote in write_back.items():
        if name not in variables or not variables[name].read_only:
            outputs = [other for other, one in variables.items() if one.read_only]
            wrong.append(f"{name!r} is written back and is no output{nearest_names(name, outputs)}")
        elif _is_beam(variables[name]):
            wrong.append(f"{name!r} is a beam, which cannot be written back")
        elif name not in names:
            wrong.append(f"{name!r} is written back and must be among 'names'")
        if remote in links.values():
            wrong.append(f"{remote!r} is followed and cannot be written to")
    if wrong:
        raise ValidationError(f"{len(wrong)} mistakes in what the twin follows: " + "; ".join(wrong))


def _is_beam(variable: Variable) -> bool:
    return isinstance(variable, MomentsVariable | ParticleGroupVariable)
