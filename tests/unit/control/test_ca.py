"""What the client of Channel Access sends."""

from __future__ import annotations

import pytest

pytest.importorskip("caproto")

from caproto import ChannelType

from lume_diff.control.ca import _sent


@pytest.mark.parametrize(
    "kind, bits", [(ChannelType.INT, 16), (ChannelType.LONG, 32)], ids=lambda value: getattr(value, "name", None)
)
def test_a_whole_number_that_has_no_room_is_refused_and_not_cut(kind, bits):
    least = -(2 ** (bits - 1))
    assert _sent(kind, [least, -least - 1]) == [least, -least - 1]
    for number in (-least, least - 1, 2**40, float(2**40)):
        with pytest.raises(ValueError, match=f"needs more than {bits} bits"):
            _sent(kind, number)
