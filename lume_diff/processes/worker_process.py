"""WorkerProcess: a parent's handle on one worker."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle

from lume_diff.processes.channel import Channel
from lume_diff.processes.worker_main import Reply

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from lume_diff.processes.worker_main import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_STALL = 30.0  # [s] that one transfer may stand still
_LOG_LIMIT = 1 << 22  # [bytes] at which a log starts anew
_TAIL_SIZE = 4000  # [bytes]
_TAIL_LINES = 20
_TICK = 0.25  # [s] between looks at a process that is waited for

#: Every handle of this process, so that a forked child can let go of them.
_HANDLES: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerLost(Exception):
    """A worker that died, or hung: then the message is a phrase that fits after "the worker"."""


class WorkerProcess:
    """Start a worker and talk to it.

    The process is a fresh interpreter in a session of its own: the terminal's Ctrl-C does not reach it, and its
    children are killed with it. What it prints goes to an unnamed temporary file that is cut when it grows.

    Args:
        host: makes, in the worker, the object that the parent talks to: a message is the name of one of its methods
            and the arguments. ``make`` is called first and answered for, ``close`` last.
        environment, folder: of the process.
        descriptors: of files that the process is to have open too, under the same numbers.
    """

    def __init__(
        self, host: Callable[[], Any], environment: Mapping[str, str], folder: str, descriptors: Sequence[int] = ()
    ) -> None:
        self.started = time.monotonic()
        self.ready = False  # whether the host is made
        self.broken = False  # whether a transfer was cut short
        self._mark = 0  # where the log of what is being done now begins
        with contextlib.ExitStack() as on_failure:
            self._log = on_failure.enter_context(tempfile.TemporaryFile(buffering=0))
            fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
            # A file and not the channel, which would fill up and hold us until the interpreter has started.
            letter = on_failure.enter_context(tempfile.TemporaryFile())
            cloudpickle.dump(host, letter)
            letter.seek(0)
            ours, theirs = socket.socketpair()
            on_failure.callback(ours.close)
            listening, self._lifeline = os.pipe()
            on_failure.callback(self._cut)
            path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", "-c", _BOOT, str(theirs.fileno()), str(listening), path],
                    stdin=letter,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), listening, *descriptors),
                    start_new_session=True,
                    env=dict(environment),
                    cwd=folder,
                )
            finally:
                theirs.close()
                os.close(listening)
            letter.close()
            self._channel = Channel(ours, _STALL)
            on_failure.pop_all()
        _HANDLES.add(self)

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return self._channel.fileno()

    def alive(self) -> bool:
        """Tell whether the process runs and can be talked to."""
        return not self.broken and self.fileno() >= 0 and self._process.poll() is None

    # -- talking ---------------------------------------------------------------------------------------------

    def send(self, message: Any, most: int | None = None) -> bool:
        """Send a message; returns whether it was small enough.

        Args:
            message: what to send.
            most: how large it may be [bytes], None for any size.

        Raises:
            WorkerLost: if the process is gone.
            Exception: if the message cannot be pickled.
        """
        was_broken, self.broken = self.broken, True
        try:
            sent = self._channel.send(message, most)
        except OSError as error:
            raise WorkerLost from error
        except Exception:
            self.broken = was_broken  # nothing was sent
            raise
        self.broken = was_broken
        return sent

    def receive(self, limit: float | None = None) -> Reply:
        """Wait for a reply.

        Args:
            limit: how long [s], None for ever.

        Raises:
            WorkerLost: if the process dies or does not answer in time.
        """
        end = None if limit is None else time.monotonic() + limit
        self.broken = True
        while not self.has_news(_TICK if end is None else min(_TICK, max(end - time.monotonic(), 0.0))):
            if self._process.poll() is not None and not self.has_news():
                raise WorkerLost
            if end is not None and time.monotonic() >= end:
                raise WorkerLost(f"did not answer within {limit:g} s")
        try:
            reply = Reply(*self._channel.receive())
        except (EOFError, OSError) as error:
            raise WorkerLost from error
        begin, self._mark = self._mark, reply.printed
        self.broken = False
        return reply if reply.well else reply._replace(log=self._text(begin, reply.printed))

    def has_news(self, seconds: float = 0.0) -> bool:
        """Tell whether there is something to receive, or the end of the process, within a time [s]."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(1e3 * seconds))

    # -- the log ---------------------------------------------------------------------------------------------

    def trim(self) -> None:
        """Start the log anew if it has grown large."""
        if os.fstat(self._log.fileno()).st_size > _LOG_LIMIT:
            os.ftruncate(self._log.fileno(), 0)
            self._mark = 0

    def tail(self) -> str:
        """Return the last lines printed since the last reply."""
        return "" if self._log.closed else self._text(self._mark, os.fstat(self._log.fileno()).st_size)

    def _text(self, begin: int, end: int) -> str:
        """Return the last lines of a stretch of the log; from its start, if the log was cut since."""
        begin = max(begin if begin <= end else 0, end - _TAIL_SIZE)
        text = os.pread(self._log.fileno(), end - begin, begin).decode(errors="replace")
        return "\n".join(text.strip("\n").splitlines()[-_TAIL_LINES:])

    # -- the end ---------------------------------------------------------------------------------------------

    def kill_group(self) -> None:
        """Send SIGKILL to the process and its children; safe from any thread."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def bury(self) -> tuple[int | None, str]:
        """Kill what is left of the process and its children, give up what belongs to it; may be called again.

        Returns:
            The exit code, negative for a signal, and the tail of the log.
        """
        if self.fileno() >= 0:
            self.kill_group()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        tail = self.tail()
        self._let_go()
        return self._process.returncode, tail

    def ask_to_close(self) -> None:
        """Ask the worker to close its host and end."""
        with contextlib.suppress(WorkerLost):
            self.send(("close",))

    def wait_closed(self, seconds: float) -> None:
        """Wait until the process has ended by itself, then bury it."""
        with contextlib.suppress(EOFError, OSError):
            end = time.monotonic() + seconds
            while self.has_news(max(end - time.monotonic(), 0.0)):
                self._channel.receive()
        self.bury()

    def _let_go(self) -> None:
        self._channel.close()
        self._log.close()
        self._cut()

    def _cut(self) -> None:
        descriptor, self._lifeline = self._lifeline, -1
        if descriptor >= 0:
            os.close(descriptor)


def how_it_ended(code: int | None) -> str:
    """Return an exit code in words."""
    if code is None:
        return "could not be killed"
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"was killed by signal {-code}"


def _forget_in_child() -> None:
    """Let a forked child hold nothing that keeps the workers of its parent alive, nor reap them."""
    for handle in list(_HANDLES):
        handle._process.returncode = -signal.SIGKILL
        handle._let_go()
    _HANDLES.clear()


os.register_at_fork(after_in_child=_forget_in_child)
