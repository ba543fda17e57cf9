"""Names in files for other programs: of classes, and of what is not there."""

from __future__ import annotations

import re

import pytest
import torch

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.ioc.generate.ophyd import ophyd_device
from lume_diff.ioc.generate.phoebus import phoebus_screen
from lume_diff.models import LUMEModel
from lume_diff.variables import EnumVariable, TorchScalarVariable


class Modes(LUMEModel):
    def __init__(self, *names: str) -> None:
        modes = [EnumVariable(name=name, options=["on", "off"], default_value="on") for name in names]
        super().__init__([*modes, TorchScalarVariable(name="x", read_only=True)])

    def _run(self, inputs, outputs):
        return {"x": torch.zeros(())}


def test_every_enumeration_has_a_class_of_its_own_beside_the_device_and_what_is_imported():
    source = ophyd_device(Modes("mode_1", "mode1", "machine", "signal_r"))
    classes = re.findall(r"^class (\w+)\(", source, re.MULTILINE)
    assert classes == ["Mode1", "Mode1_", "Machine_", "SignalR_", "Machine"]
    assert 'machine: A[SignalRW[Machine_], PvSuffix("machine")]' in source


@pytest.mark.parametrize("make", [ophyd_device, phoebus_screen], ids=["ophyd", "phoebus"])
def test_a_name_that_is_not_there_is_told(make):
    with pytest.raises(UnknownVariableError, match=r"'mod' is not a variable.*nearest: 'mode'"):
        make(Modes("mode"), names=["mod"])


def test_what_would_make_a_broken_file_is_refused():
    for title in ("my machine", "class", ""):
        with pytest.raises(ValidationError, match="a name that a class may have"):
            ophyd_device(Modes("mode"), title=title)
    with pytest.raises(ValidationError, match="'pva' or 'ca'"):
        phoebus_screen(Modes("mode"), protocol="pv")
