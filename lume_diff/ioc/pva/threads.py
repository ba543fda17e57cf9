"""Batches of posts: the thread of pvxs that sends them begins when the last is posted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_SENDER = "PVXTCP"  # pvxs calls it so, and on Linux that can be read
_BATCH = getattr(os, "SCHED_BATCH", None)


class Senders:
    """Keep the threads that send from running in between the posts of a large cycle.

    Every post wakes them, and on a busy machine the kernel runs what wakes at once: a switch of threads and a packet
    for each variable, which takes three times as long as all of them together. While many are posted the threads are
    therefore of the kind that waits for its turn.
    """

    def __init__(self) -> None:
        self._threads = [] if _BATCH is None else _named(_SENDER)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let them wait for their turn."""
        try:
            self._be(_BATCH)
            yield
        finally:
            self._be(getattr(os, "SCHED_OTHER", None))

    def _be(self, policy: int | None) -> None:
        for thread in self._threads:
            with contextlib.suppress(OSError):  # it has ended, or we may not
                os.sched_setscheduler(thread, policy or 0, os.sched_param(0))


def _named(name: str) -> list[int]:
    """Return the threads of this process with a name."""
    found = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
    return found
