"""Ports of this machine where surely nobody listens, so that no answer need be waited for."""

from __future__ import annotations

import socket
from collections.abc import Iterable

_PATIENCE = 0.02  # [s]; the kernel refuses at once


def open_places(places: Iterable[tuple[str, int]], message: bytes) -> list[tuple[str, int]]:
    """Return addresses for datagrams, each once, without those of this machine that are closed.

    Args:
        places: hosts and ports.
        message: that is sent there to find out.
    """
    return [place for place in dict.fromkeys(places) if not _is_closed(place, message)]


def _is_closed(place: tuple[str, int], message: bytes) -> bool:
    if not place[0].startswith("127."):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(place)
            probe.send(message)
            probe.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
