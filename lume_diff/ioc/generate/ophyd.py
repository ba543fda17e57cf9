"""An ophyd-async device of a model."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Sequence

from lume_diff.errors import ValidationError
from lume_diff.ioc.generate.shown import shown
from lume_diff.models import LUMEModel
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    StrVariable,
    TorchNDVariable,
    Variable,
)

#: Names of classes that the file has anyway.
_IMPORTED = ("A", "Array1D", "EpicsDevice", "PvSuffix", "SignalR", "SignalRW", "StrictEnum")
_HEAD = '''\
"""{title}, as lume-diff serves it by PVAccess: machine = {title}("pva://{prefix}", name="machine")."""

from typing import Annotated as A

import numpy as np
from ophyd_async.core import Array1D, SignalR, SignalRW, StrictEnum
from ophyd_async.epics.core import EpicsDevice, PvSuffix
'''


def ophyd_device(model: LUMEModel, prefix: str = "", title: str = "Machine", names: Sequence[str] | None = None) -> str:
    """Return the source of an ophyd-async device with a signal for every variable of a model.

    Args:
        model: whose variables are shown; beams are left out.
        prefix: that it is served with.
        title: of the class.
        names: variables to show; all if None.

    Returns:
        Python source; ``Machine("pva://VA:")`` connects to what it describes.

    Raises:
        ValidationError: for a title that no class may have.
        UnknownVariableError: for a name that the model does not have.

    Example:
        >>> from lume_diff.models import TorchModel
        >>> from lume_diff.variables import TorchScalarVariable
        >>> inputs = [TorchScalarVariable(name="Q1.k1", default_value=0.0)]
        >>> model = TorchModel(lambda k1: 2.0 * k1, inputs, [TorchScalarVariable(name="x", unit="m")])
        >>> print(ophyd_device(model, prefix="VA:").splitlines()[-2].strip())
        q1_k1: A[SignalRW[float], PvSuffix("Q1.k1")]
    """
    if not title.isidentifier() or keyword.iskeyword(title):
        raise ValidationError(f"title={title!r}; expected a name that a class may have, such as 'Machine'")
    variables = shown(model, names)
    attributes = _unique(variable.name for variable in variables)
    enums, lines = [], [f"class {title}(EpicsDevice):", f'    """{len(variables)} variables."""', ""]
    classes = {title, *_IMPORTED}
    for variable in variables:
        attribute = attributes[variable.name]
        kind = _type(variable)
        if isinstance(variable, EnumVariable):
            kind = "".join(part.capitalize() for part in attribute.split("_"))
            while kind in classes:
                kind += "_"
            classes.add(kind)
            enums += ["", "", *_enum(kind, variable)]
        signal = "SignalR" if variable.read_only else "SignalRW"
        lines.append(f"    {attribute}: A[{signal}[{kind}], PvSuffix({_quoted(variable.name)})]")
    head = _HEAD.format(title=title, prefix=prefix).splitlines()
    return "\n".join([*head, *enums, "", "", *lines]) + "\n"


def _type(variable: Variable) -> str:
    for kind, name in ((BoolVariable, "bool"), (IntVariable, "int"), (StrVariable, "str")):
        if isinstance(variable, kind):
            return name
    if isinstance(variable, TorchNDVariable):
        return "Array1D[np.float64]" if len(variable.shape) == 1 else "np.ndarray"
    return "float"


def _enum(title: str, variable: EnumVariable) -> list[str]:
    members = _unique(variable.options)
    lines = [f"    {members[option].upper()} = {_quoted(option)}" for option in variable.options]
    return [f"class {title}(StrictEnum):", f'    """Choices of {variable.name}."""', "", *lines]


def _unique(names: Iterable[str]) -> dict[str, str]:
    """Return an identifier for each of some names."""
    found: dict[str, str] = {}
    for name in names:
        made = re.sub(r"\W+", "_", name).strip("_").lower() or "value"
        made = f"v_{made}" if made[0].isdigit() or keyword.iskeyword(made) or made in _TAKEN else made
        while made in found.values():
            made += "_"
        found[name] = made
    return found


#: What every device has already.
_TAKEN = ("name", "parent", "children", "connect", "set_name", "log", "disconnect")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
