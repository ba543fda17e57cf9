"""Many variables at once: made when somebody asks, posted together, and let go of one by one."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("p4p")
pytest.importorskip("caproto")

from lume_diff.ioc import Server
from lume_diff.ioc.pva.sender import Sender
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable
from tests.system.ioc.conftest import free_ports, settings_of

MANY = 120
NAMES = [f"y{number}" for number in range(MANY)]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return ports that nobody else uses; caproto's client takes them from the environment."""
    found = settings_of(free_ports())
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def server(settings: dict[str, str]) -> Iterator[Server]:
    """Serve a model whose outputs all follow one input."""
    x = TorchScalarVariable(name="x", default_value=1.0, value_range=(-10.0, 10.0))
    outputs = [TorchScalarVariable(name=name) for name in NAMES]
    model = TorchModel(lambda values: dict.fromkeys(NAMES, 2.0 * values["x"]), [x], outputs, layout="dict")
    with Server(model, "M:", settings=settings, search=0.0, changeable_limits=["x"]) as found:
        yield found.wait_ready(30.0)


def eventually(holds: Callable[[], Any]) -> bool:
    end = time.monotonic() + 20.0
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(holds())


def test_a_large_cycle_reaches_every_follower_with_one_stamp(server: Server, settings: dict[str, str]) -> None:
    from p4p.client.raw import Context

    seen: dict[str, Any] = {}
    held: list[Any] = []
    with Context("pva", conf=settings, useenv=False, nt=False) as context:

        def follow(name: str) -> None:
            made = threading.Event()

            def event() -> None:
                made.wait()
                while (value := held[NAMES.index(name)].pop()) is not None:
                    if not isinstance(value, Exception):
                        seen[name] = (value.value, value["timeStamp.userTag"], value["alarm.severity"])

            held.append(context.monitor(f"M:{name}", event))
            made.set()

        for name in NAMES:
            follow(name)
        assert eventually(lambda: seen.keys() == set(NAMES) and server.fronts[0]._sender._stream is not None)
        for value in (3.0, 4.0):
            cycle = server.set({"x": value}, 20.0)
            assert eventually(lambda: set(seen.values()) == {(2.0 * value, cycle, 0)}), seen  # noqa: B023
        for one in held:
            one.close()


class Configured:
    """What is known of a server's configuration."""

    def __init__(self, found: dict[str, str]) -> None:
        self.conf = lambda: found


def test_posts_are_made_where_they_are_asked_for_if_the_server_does_not_answer_itself() -> None:
    from p4p.nt import NTScalar
    from p4p.server.raw import SharedPV

    pvs = [SharedPV(nt=NTScalar("d"), initial=0.0) for _ in range(3)]
    sender = Sender()
    sender.post([(pv, 1.0) for pv in pvs])
    assert [pv.current() for pv in pvs] == [1.0] * 3
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = str(deaf.getsockname()[1])
        sender.start(Configured({"EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1", "EPICS_PVAS_SERVER_PORT": port}))
        sender.post([(pv, 2.0) for pv in pvs])
        assert [pv.current() for pv in pvs] == [2.0] * 3
    sender.post([(pv, 3.0) for pv in pvs])
    assert [pv.current() for pv in pvs] == [3.0] * 3
    sender.stop()


def test_who_comes_late_sees_what_holds_on_both_protocols(server: Server, settings: dict[str, str]) -> None:
    from caproto.sync.client import read

    from lume_diff.control.pva import PVAClient

    server.set({"x": 2.0}, 20.0)
    server.limits.change("x", "warning", -1.0, 1.0)
    server.runtime.limits_changed("x")
    with PVAClient(settings) as client:
        found = client.get(["M:y7", "M:x"], timeout=10.0)
        assert (found["M:y7"].value, found["M:x"].value, found["M:x"].severity) == (4.0, 2.0, 1)
        assert found["M:y7"].time == pytest.approx(server.get("y7").time, abs=1e-6)
    answer = read("M:x", data_type="time", timeout=10.0, repeater=False)
    assert (answer.data[0], int(answer.metadata.severity)) == (2.0, 1)
    late = read("M:y8", data_type="time", timeout=10.0, repeater=False)
    assert (late.data[0], int(late.metadata.severity)) == (4.0, 0)
    assert late.metadata.timestamp == pytest.approx(server.get("y8").time, abs=1e-3)


def test_a_client_of_channel_access_leaves_its_channels_one_by_one(server: Server) -> None:
    from caproto.threading.client import Context, SharedBroadcaster

    told: dict[str, list[float]] = {name: [] for name in NAMES[:3]}
    broadcaster = SharedBroadcaster(registration_retry_time=1e9)
    context = Context(broadcaster)
    pvs = context.get_pvs(*(f"M:{name}" for name in told), timeout=20.0)
    subscriptions, listeners = [], []
    for pv, name in zip(pvs, told, strict=True):
        pv.wait_for_connection(timeout=20.0)
        subscription = pv.subscribe(data_type="time")
        listeners.append(lambda _, answer, name=name: told[name].append(float(answer.data[0])))
        subscription.add_callback(listeners[-1])
        subscriptions.append(subscription)
    assert eventually(lambda: all(told.values()))
    subscriptions[0].clear()
    pvs[1].go_idle()
    server.set({"x": 5.0}, 20.0)
    assert eventually(lambda: 10.0 in told["y2"])
    assert 10.0 not in told["y0"]
    again = pvs[0].subscribe(data_type="time")
    again.add_callback(listeners[0])
    server.set({"x": 6.0}, 20.0)
    assert eventually(lambda: 12.0 in told["y0"] and 12.0 in told["y2"])
    context.disconnect()
    broadcaster.disconnect()


@pytest.mark.parametrize("way", ["datagrams", "connection"])
def test_names_are_searched_for_by_datagrams_and_on_connections(server: Server, way: str) -> None:
    from lume_diff.ioc.pva.search import answered

    other = {"EPICS_PVA_NAME_SERVERS": ""} if way == "datagrams" else {"EPICS_PVAS_BROADCAST_PORT": str(free_ports())}
    served = dataclasses.replace(server.served, settings={**server.served.settings, **other})
    names = [f"M:{name}" for name in (*NAMES, "x", "none")]
    assert answered(names, served, 0.4) == set(names[:-1])


def test_ports_where_nobody_listens_are_left_out() -> None:
    from lume_diff.ioc.closed_ports import open_places

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        place = held.getsockname()
        assert open_places([place, place, ("192.0.2.1", 9)], b"?") == [place, ("192.0.2.1", 9)]
    assert open_places([place], b"?") == []
