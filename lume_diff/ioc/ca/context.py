"""CAContext: caproto's server, with names that hold dots, beacons to nobody, and clients that take nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import socket
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import caproto
from caproto import CaprotoNetworkError
from caproto.asyncio.server import Context, VirtualCircuit
from caproto.server.common import DisconnectedCircuit

from lume_diff.ioc.ca.packed import Packed
from lume_diff.ioc.record_fields import FIELDS
from lume_diff.ioc.served import LOOPBACK

LOG = logging.getLogger("lume_diff.ioc.ca")
_BATCH = 1 << 16  # [bytes] of updates that go out together
_FAREWELL = 0.05  # [s] for what is on its way to clients when the server ends
_WAITING = 10_000  # updates for one client, of all its subscriptions together


class Newest:
    """Hold references to updates for one client; the oldest go when it takes none, and who puts one in never waits."""

    def __init__(self) -> None:
        self._held: deque[Any] = deque()
        self._is_there = asyncio.Event()

    async def put(self, item: Any) -> None:
        """Add an update, as caproto does."""
        self.add(item)

    def add(self, item: Any) -> None:
        """Add an update."""
        if len(self._held) >= _WAITING:
            alive = [one for one in self._held if one() is not None]
            self._held = deque(alive[-(_WAITING // 2) :])
        self._held.append(item)
        if not self._is_there.is_set():
            self._is_there.set()

    async def take(self, most: int) -> list[Any]:
        """Wait for updates, and return those that there are, up to a size [bytes]; None for one that is gone."""
        while not self._held:
            self._is_there.clear()
            await self._is_there.wait()
        held, found, size = self._held, [], 0
        while held and size < most:
            found.append(held.popleft()())
            size += 0 if found[-1] is None else len(found[-1])
        return found


class Circuit(VirtualCircuit):
    """Send updates to one client as they come, together those that wait; caproto would hold them for 10 ms."""

    subscriptions: dict[Any, Any]  # by what they ask for

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # asyncio does so only for sockets that were made with the protocol's number; without it answers wait for 40 ms.
        self.client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.subscription_queue = Newest()
        self._losses: dict[int, Callable[[Any], None]] = {}

    def push(self, spec: Any, subscription: Any, update: Packed) -> None:
        """Add an update of a subscription; the oldest goes where its channel's backlog is full."""
        if not self.events_on.is_set():
            self._again(spec, subscription)
            return
        number = update.subscriptionid
        waiting = self.unexpired_updates.get(number)
        if waiting is None:
            waiting = self.unexpired_updates[number] = deque(maxlen=subscription.db_entry.max_subscription_backlog)
            self._losses[number] = functools.partial(self._lost, spec, subscription)
        waiting.append(update)
        self.subscription_queue.add(weakref.ref(update, self._losses.get(number)))

    def _again(self, spec: Any, subscription: Any) -> None:
        """Send the latest value when the client wants updates again."""
        waiting = self.subscriptions_to_resend.setdefault(spec, [])
        if subscription not in waiting:
            waiting.append(subscription)

    def _lost(self, spec: Any, subscription: Any, reference: Any) -> None:
        """Note that an update is gone: a client that wants none for a while has them thrown away."""
        if not self.events_on.is_set():
            self._again(spec, subscription)

    async def _cull_subscriptions(self, db_entry: Any, func: Callable[[Any], bool]) -> Any:
        """End subscriptions of a channel; caproto would look at all of a client's, for each channel that it leaves."""
        everything = self.subscriptions
        self.subscriptions = {spec: subs for spec, subs in everything.items() if spec.db_entry is db_entry}
        try:
            return await super()._cull_subscriptions(db_entry, func)
        finally:
            for spec, left in self.subscriptions.items():
                if not left:
                    del everything[spec]
            self.subscriptions = everything

    async def subscription_queue_loop(self) -> None:
        """Send what is in the queue, for as long as the client is there."""
        self.events_on.set()
        asked_for = self.circuit.event_add_commands
        try:
            while True:
                updates = await self.subscription_queue.take(_BATCH)
                # One that is gone was overtaken; one whose subscription has ended must not follow that end.
                alive = [one for one in updates if one is not None and one.subscriptionid in asked_for]
                for is_packed, group in itertools.groupby(alive, lambda one: isinstance(one, Packed)):
                    batch = list(group)
                    await (self._send_packed(batch) if is_packed else self.send(*batch))
        except DisconnectedCircuit:
            await self._on_disconnect()
            self.circuit.disconnect()
            await self.context.circuit_disconnected(self)

    async def _start_write_task(self, handle_write: Callable[[], Any]) -> None:
        async def write() -> None:
            with contextlib.suppress(DisconnectedCircuit):  # nobody waits for the answer any more
                await handle_write()

        self.tasks.create(write())

    async def _send_packed(self, updates: Iterable[Packed]) -> None:
        try:
            if self.connected:
                await self._send_buffers(*(one.data for one in updates))
        except (OSError, CaprotoNetworkError) as error:
            raise DisconnectedCircuit(f"the client is gone: {error}") from error


class Channels(dict[str, Any]):
    """Channels by full name; one that is not there yet is asked for.

    Args:
        sources: return a channel of theirs by its full name, or None.
    """

    def __init__(self, sources: Sequence[Callable[[str], Any]]) -> None:
        super().__init__()
        self._sources = sources

    def find(self, name: str) -> Any:
        """Return a channel, None where there is none."""
        if name not in self:
            for source in self._sources:
                try:
                    found = source(name)
                except Exception:  # others are searched for in the same packet
                    LOG.exception("%s cannot be served", name)
                    self[name] = None
                    continue
                if found is not None:
                    self[name] = found
        return self.get(name)


class CAContext(Context):
    """Serve channels.

    Args:
        channels: that there are.
        interface: address to listen on.
        settings: ``EPICS_CA...`` settings by name, as in the environment; what is not there is caproto's.
    """

    CircuitClass = Circuit
    beacon_socks: dict[tuple[str, int], Any]  # to the interface and what sends

    pvdb: Channels

    def __init__(self, channels: Channels, interface: str, settings: Mapping[str, str]) -> None:
        super().__init__(channels, [interface])
        self._interface = interface
        self.environ.update(settings)
        self.ca_server_port = int(self.environ["EPICS_CA_SERVER_PORT"])

    def __getitem__(self, name: str) -> Any:
        """Return a channel: a variable, whatever dots are in its name, or else a field of one."""
        found = self.pvdb.find(name)
        if found is not None:
            return found
        plain = name.removesuffix("$")  # a text as characters
        owner, _, field = plain.rpartition(".")
        owning = self.pvdb.find(owner) if field in FIELDS or field == "VAL" else None
        if owning is not None:
            self.pvdb[plain] = owning.get_field(field)
            return self.pvdb[plain]
        return super().__getitem__(name)

    async def run(self, **options: Any) -> None:
        """Serve until the task is cancelled, and hang up, which caproto does not: clients learn of the end at once."""
        try:
            await super().run(**options)
        finally:
            writers = [circuit.client.writer for circuit in self.circuits]
            for writer in writers:
                writer.close()
            await asyncio.sleep(_FAREWELL)
            for writer in writers:  # those that take nothing
                writer.transport.abort()
            await asyncio.sleep(0.0)

    async def broadcast_beacon_loop(self) -> None:
        """Tell clients that the server is there, ever more rarely; that nobody listens is no error."""
        if self._interface == LOOPBACK:  # what is served to this machine alone is told to it alone
            for _, wrapped in self.beacon_socks.values():
                wrapped.close()
            self.beacon_socks.clear()
            sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
            sockets[0].connect((LOOPBACK, int(self.environ["EPICS_CAS_BEACON_PORT"])))
        else:
            sockets = [wrapped.transport for _, wrapped in self.beacon_socks.values()]
        period = 0.02  # [s]
        try:
            while True:
                beacon = caproto.Beacon(caproto.DEFAULT_PROTOCOL_VERSION, self.port, self.beacon_count, self._interface)
                told = self.broadcaster.send(beacon)
                for one in sockets:
                    with contextlib.suppress(OSError):
                        one.send(told)
                self.beacon_count += 1
                await asyncio.sleep(period)
                period = min(2.0 * period, self.environ["EPICS_CAS_BEACON_PERIOD"])
        finally:
            for one in sockets:
                one.close()
