"""Channel: objects between two processes, whole and unchanged."""

from __future__ import annotations

import socket
import threading
from typing import Any

import numpy as np
import pytest

from lume_diff.processes.channel import Channel


@pytest.mark.parametrize(
    "value",
    [1.5, {"a": [1, (2.0, None)]}, np.arange(3), np.ones((400, 500)), np.ones((4, 5)).T, np.array(["a"]), b"x" * 10**6],
    ids=["number", "nested", "small array", "large array", "transposed", "strings", "bytes"],
)
def test_channel_passes_objects(value: Any) -> None:
    ours, theirs = (Channel(end, stall=10.0) for end in socket.socketpair())
    received: list[Any] = []
    reader = threading.Thread(target=lambda: received.append(theirs.receive()))
    reader.start()
    assert ours.send(value)
    reader.join()
    np.testing.assert_equal(received[0], value)
    if isinstance(value, np.ndarray):
        received[0][0] = received[0][-1]  # writable
    assert not ours.send(b"x" * 1000, most=100)
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    theirs.close()


def test_channel_sends_functions_by_value() -> None:
    ours, theirs = (Channel(end, stall=10.0) for end in socket.socketpair())
    offset = 3.0
    ours.send({"f": lambda x: x + offset})
    assert theirs.receive()["f"](1.0) == 4.0
    with pytest.raises(TypeError):
        ours.send(threading.Lock())
    ours.send("still works")
    assert theirs.receive() == "still works"
    ours.close()
    theirs.close()
