"""Limits as the normative types of PVAccess show them."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("p4p")

from p4p import Value

from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.pva.values import NumberCoder
from lume_diff.variables import IntVariable, TorchScalarVariable


@pytest.mark.parametrize("kind", [TorchScalarVariable, IntVariable])
def test_limits_that_are_opened_again_are_told_to_clients_that_have_the_old_ones(kind):
    coder = NumberCoder(kind(name="x", read_only=True))
    changed = Value(coder.type, coder.fixed(PVLimits(alarm=(-1.0, math.inf))))
    assert {"display.limitLow", "display.limitHigh", "valueAlarm.highAlarmSeverity"} <= changed.changedSet()
    assert (changed.display.limitLow, changed.display.limitHigh) == (0, 0)
    assert changed.valueAlarm.lowAlarmLimit == -1
    assert (changed.valueAlarm.lowAlarmSeverity, changed.valueAlarm.highAlarmSeverity) == (2, 0)
