"""CAClient: process variables on Channel Access, by caproto."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
from caproto import AlarmStatus, CaprotoError, ChannelType
from caproto.threading.client import PV, Context, SharedBroadcaster

from lume_diff.control.client import ControlClient, Listener, Subscription
from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import ControlError

_CONDITIONS = {
    AlarmStatus.NO_ALARM: Condition.FINE,
    AlarmStatus.HIHI: Condition.HIHI,
    AlarmStatus.HIGH: Condition.HIGH,
    AlarmStatus.LOW: Condition.LOW,
    AlarmStatus.LOLO: Condition.LOLO,
    AlarmStatus.UDF: Condition.UNDEFINED,
    AlarmStatus.COMM: Condition.DISCONNECTED,
    AlarmStatus.LINK: Condition.UNTRUSTED,
    AlarmStatus.TIMEOUT: Condition.STALE,
}
_FLOATS = (ChannelType.DOUBLE, ChannelType.FLOAT)
_BITS = {ChannelType.INT: 16, ChannelType.LONG: 32}
_LONGEST = 39  # bytes of a text that is no waveform of characters
#: A truth value travels as an enumeration of these.
_TRUTH = {"False": False, "True": True}


@final
class CAClient(ControlClient):
    """Talk Channel Access; addresses and ports are those of the ``EPICS_CA_...`` environment.

    An array of several dimensions comes flat, a waveform of characters is a text, and one of texts a list.
    """

    def __init__(self) -> None:
        self._context = Context(SharedBroadcaster())
        self._known: dict[str, _Channel] = {}
        self._lock = threading.Lock()

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        """Read variables, all at the same time."""
        end = time.monotonic() + timeout
        channels = [self._channel(name) for name in names]  # all are searched for before the first is waited for
        begun = [one.begin_read(end) for one in channels]
        return {name: finish() for name, finish in zip(names, begun, strict=True)}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        """Write variables, all at the same time, and wait until the server has done it."""
        end = time.monotonic() + timeout
        channels = {name: self._channel(name) for name in values}
        begun = {name: one.begin_write(values[name], end) for name, one in channels.items()}
        wrong = [f"{name}: {why}" for name, finish in begun.items() if (why := finish())]
        if wrong:
            raise ControlError(f"{len(wrong)} of {len(values)} process variables were not written: " + "; ".join(wrong))

    def monitor(self, names: Sequence[str], listener: Listener) -> Subscription:
        """Follow variables; one that is away comes back by itself."""
        return _Monitors([self._channel(name) for name in names], listener)

    def close(self) -> None:
        """Let go of all connections."""
        self._context.disconnect()
        self._context.broadcaster.disconnect()

    def _channel(self, name: str) -> _Channel:
        with self._lock:
            if name not in self._known:
                self._known[name] = _Channel(self._context, name)
            return self._known[name]


class _Channel:
    """One process variable."""

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()
        self._subscription: Any = None
        self._last = self._away("not connected")
        self._waiting: list[Callable[[], None]] = []  # what is to be asked when there is a connection
        (self._pv,) = context.get_pvs(name, connection_state_callback=self._connection)

    # -- once ------------------------------------------------------------------------------------------------

    def begin_read(self, end: float) -> Callable[[], Reading]:
        """Begin to read; returns what waits for the answer, until a time at the latest."""
        begun = self._begin(end, lambda told: self._pv.read(data_type=self._kind(), wait=False, callback=told))

        def finish() -> Reading:
            response = begun()
            return self._away(f"no answer ({response})") if isinstance(response, str) else self._reading(response)

        return finish

    def begin_write(self, value: Any, end: float) -> Callable[[], str]:
        """Begin to write; returns what waits for the end and tells why not, or nothing."""
        begun = self._begin(end, lambda told: self._write(value, told))

        def finish() -> str:
            response = begun()
            if isinstance(response, str):
                return response
            status = response.status
            return "" if status.success else f"refused ({status.name}); the server's log has the reason"

        return finish

    def _begin(self, end: float, ask: Callable[[Callable[[Any], None]], None]) -> Callable[[], Any]:
        """Ask something as soon as there is a connection.

        Returns:
            What waits for the response until a time at the latest, and returns why there is none as a text.
        """
        answered = threading.Event()
        outcome: list[Any] = []

        def told(response: Any) -> None:
            outcome.append(response)
            answered.set()

        def begin() -> None:
            try:
                ask(told)
            except (CaprotoError, TimeoutError) as error:
                told(" ".join(str(error).split()))
            except (ValueError, TypeError) as error:
                told(f"cannot be sent: {error}")

        with self._lock:
            is_connected = self._pv.connected
            if not is_connected:
                self._waiting.append(begin)
        if is_connected:
            begin()

        def finish() -> Any:
            if answered.wait(max(end - time.monotonic(), 0.0)):
                return outcome[0]
            with self._lock:
                if begin in self._waiting:
                    self._waiting.remove(begin)
                    return "not connected in time"
            return "no answer in time"

        return finish

    def _write(self, value: Any, told: Callable[[Any], None]) -> None:
        kind = self._pv.channel.native_data_type
        if kind is ChannelType.ENUM and isinstance(value, str):
            kind = ChannelType.STRING  # the server looks up the word
        self._pv.write(_sent(kind, value), wait=False, callback=told, notify=True, data_type=kind)

    def _kind(self) -> Any:
        """Return the type in which to ask for the value; an enumeration is asked for its word."""
        return ChannelType.TIME_STRING if self._pv.channel.native_data_type is ChannelType.ENUM else "time"

    # -- following -------------------------------------------------------------------------------------------

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Tell a listener of every change; returns what ends it."""
        with self._lock:
            self._listeners.append(listener)
            if self._subscription is None and self._pv.connected:
                self._subscribe()
            else:
                listener(self.name, self._last)
        return lambda: self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if self._listeners or self._subscription is None:
                return
            subscription, self._subscription = self._subscription, None
        with contextlib.suppress(OSError):  # the server has gone
            subscription.clear()

    def _subscribe(self) -> None:
        self._subscription = self._pv.subscribe(data_type=self._kind())
        self._subscription.add_callback(self._changed)

    def _changed(self, _: Any, response: Any) -> None:
        self._tell(self._reading(response))

    def _connection(self, pv: PV, state: str) -> None:
        if state != "connected":
            self._tell(self._away("not connected"))
            return
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if self._listeners and self._subscription is None:
                self._subscribe()
        for begin in waiting:
            begin()

    def _tell(self, reading: Reading) -> None:
        with self._lock:
            self._last = reading
            for listener in self._listeners:
                listener(self.name, reading)

    # -- readings --------------------------------------------------------------------------------------------

    def _away(self, text: str) -> Reading:
        message = f"{self.name}: {text}"
        return Reading(None, time.time(), 0, Severity.INVALID, Condition.DISCONNECTED, message)

    def _reading(self, response: Any) -> Reading:
        status, severity = AlarmStatus(response.metadata.status), Severity(int(response.metadata.severity))
        condition = _CONDITIONS.get(status, Condition.FAILED)
        message = "" if severity is Severity.NO_ALARM else status.name
        value = _plain(self._pv.channel.native_data_type, response.data)
        return Reading(value, response.metadata.timestamp, 0, severity, condition, message)


def _plain(kind: ChannelType, data: Any) -> Any:
    """Return data of a variable as a Python value: of one element the element."""
    if kind is ChannelType.CHAR:
        return _word(data)
    if kind in (ChannelType.STRING, ChannelType.ENUM):
        words = [_word(word) for word in data]
        found = [_TRUTH.get(word, word) for word in words] if kind is ChannelType.ENUM else words
        return found[0] if len(found) == 1 else found
    if len(data) != 1:
        return np.array(data)
    return float(data[0]) if kind in _FLOATS else int(data[0])


def _word(characters: Any) -> str:
    return bytes(bytearray(characters)).partition(b"\0")[0].decode(errors="replace")


def _sent(kind: ChannelType, value: Any) -> Any:
    """Return a value as caproto sends it."""
    if kind is ChannelType.CHAR and isinstance(value, str):
        return _characters(value) or b"\0"
    if kind is ChannelType.STRING or isinstance(value, str):
        texts = [value] if isinstance(value, str) or np.ndim(value) == 0 else list(value)
        return [_characters(text, _LONGEST) for text in texts]
    numbers = np.asarray(value, dtype=np.float64 if kind in _FLOATS else None).reshape(-1)
    if kind not in _FLOATS and numbers.dtype.kind == "f":
        if not np.all(numbers == np.floor(numbers)):
            raise ValueError(f"{value} is no whole number")
        numbers = numbers.astype(np.int64)
    found: list[Any] = numbers.tolist()
    bits = _BITS.get(kind)
    if bits is not None and not all(-(1 << bits - 1) <= number < 1 << bits - 1 for number in found):
        raise ValueError(f"{value} needs more than {bits} bits")  # caproto would send what is left of it
    return found


def _characters(text: Any, most: int | None = None) -> bytes:
    """Return a text in UTF-8 of at most so many bytes; caproto would send what is left of others."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text")
    if "\0" in text:
        raise ValueError(f"{text!r:.60} holds a NUL, where Channel Access takes a text to end")
    found = text.encode()
    if most is not None and len(found) > most:
        raise ValueError(f"{text!r:.60} takes {len(found)} bytes, and at most {most} can be sent")
    return found


class _Monitors(Subscription):
    """Subscriptions of several variables."""

    def __init__(self, channels: Sequence[_Channel], listener: Listener) -> None:
        self._ends = [channel.follow(listener) for channel in channels]

    def close(self) -> None:
        """Follow no more."""
        for end in self._ends:
            end()
        self._ends = []
