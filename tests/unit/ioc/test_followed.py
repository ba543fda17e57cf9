"""One followed input, and what other servers may show it."""

from __future__ import annotations

from lume_diff.control import Condition, Reading
from lume_diff.ioc.followed import Followed
from lume_diff.ioc.limits import LimitStore
from lume_diff.variables import TorchNDVariable


def test_what_no_array_can_be_made_of_is_a_fault_of_its_input_and_no_end_of_the_twin():
    variable = TorchNDVariable(name="waveform", shape=(3,))
    followed = Followed(variable, "SCOPE:WF", LimitStore({"waveform": variable}))
    followed.take(Reading([1.0, [2.0, 3.0]], 0.0, 0))
    condition, message = followed.fault()
    assert condition is Condition.UNTRUSTED
    assert "SCOPE:WF cannot be taken" in message
