"""The program that a worker process runs: one host that does what its parent asks until the parent is gone."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NamedTuple

from lume_diff.errors import SimulatorError
from lume_diff.processes.channel import Channel

_STDOUT = 1


class Reply(NamedTuple):
    """How a worker answers.

    Attributes:
        well: whether what was asked for was done.
        value: what came of it, or what went wrong.
        kind: class name of what was raised.
        printed: size of the log now [bytes].
        log: what was printed meanwhile, if it did not go well; the parent fills it in.
    """

    well: bool
    value: Any
    kind: str
    printed: int
    log: str = ""


def main(link: int, lifeline: int) -> None:
    """Serve one parent.

    Args:
        link: descriptor of the socket to the parent.
        lifeline: descriptor of a pipe whose other end only the parent holds.
    """
    for descriptor in (link, lifeline):
        os.set_inheritable(descriptor, False)
    os.dup(link)  # never closed, so the parent sees the end of this process and not the end of its interpreter
    _die_with_parent(lifeline)
    faulthandler.enable()
    _print_by_the_line()
    channel = Channel(socket.socket(fileno=link))
    try:
        _serve(channel)
    except (EOFError, ConnectionError):
        return


def _serve(channel: Channel) -> None:
    host = None
    try:
        host = pickle.load(sys.stdin.buffer)()
        reply = _reply(host.make)
    except Exception as error:
        reply = _failed(error)
    channel.send(tuple(reply))
    while host is not None and reply.well:
        verb, *args = channel.receive()
        if verb == "close":
            host.close()
            return
        answer = _reply(getattr(host, verb), *args)
        try:
            channel.send(tuple(answer))
        except (EOFError, OSError):
            raise
        except Exception as error:
            channel.send(tuple(_no(f"what was returned cannot be sent: {error}", type(error).__name__)))


def _reply(action: Any, *args: Any) -> Reply:
    try:
        value = action(*args)
    except Exception as error:
        return _failed(error)
    if isinstance(value, SimulatorError):
        if value.__cause__ is not None:
            traceback.print_exception(value.__cause__, file=sys.stderr)
        return _no(value.__dict__.get("what", str(value)), "SimulatorError")
    return Reply(True, value, "", _printed())


def _failed(error: Exception) -> Reply:
    traceback.print_exception(error, file=sys.stderr)
    return _no(f"{type(error).__name__}: {error}", type(error).__name__)


def _no(what: str, kind: str) -> Reply:
    return Reply(False, what, kind, _printed())


def _printed() -> int:
    return os.fstat(_STDOUT).st_size


def _die_with_parent(lifeline: int) -> None:
    """See to it that this process and its children end when the parent does, however it ends.

    On Linux the kernel itself kills the process group when the last writer of the pipe is gone, so a simulator that
    never gives up the interpreter lock dies as well. The parent-death signal (prctl) would not do: it comes when the
    parent's *thread* ends, and it leaves this process's own children running. Elsewhere a thread watches the pipe.
    """
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)  # type: ignore[attr-defined,unused-ignore]
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # type: ignore[attr-defined,unused-ignore]
    except (AttributeError, OSError):
        threading.Thread(target=_watch, args=(lifeline,), name="parent watch", daemon=True).start()
        return
    if _ended(lifeline, 0.0):  # gone before the kernel was told
        os.killpg(0, signal.SIGKILL)


def _watch(lifeline: int) -> None:
    _ended(lifeline, None)
    os.killpg(0, signal.SIGKILL)


def _ended(lifeline: int, milliseconds: float | None) -> bool:
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _print_by_the_line() -> None:
    """Write what C code prints line by line, so that the last lines before a crash are in the log."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        library = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        line_buffered = 1
        library.setvbuf(stdout, None, line_buffered, ctypes.c_size_t(0))
