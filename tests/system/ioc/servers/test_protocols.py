"""What both protocols show of a cycle, of an error and of limits; calls; the gateway; clients that take nothing."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.ioc.servers.conftest import HERE, LOOPBACK, Running, ask, free_ports, serving

pytestmark = [pytest.mark.slow, pytest.mark.system]

INVALID = 3
OUTPUTS = ("T:size", "T:CAM:Image:ArrayData", "T:beam")


@pytest.fixture(autouse=True)
def at_baseline(pva: Any) -> None:
    """Begin with the machine as it was."""
    pva.put("T:SERVER:RESET", True, timeout=20.0)


def stamp(value: Any) -> tuple[int, int, int]:
    """Return time and cycle."""
    return value.timeStamp.secondsPastEpoch, value.timeStamp.nanoseconds, value.timeStamp.userTag


def call(pva: Any, name: str, **arguments: Any) -> Any:
    """Call a procedure."""
    from p4p.nt import NTURI

    codes = {str: "s", int: "l", float: "d"}
    given = {key: codes.get(type(value), "av" if key == "values" else "as") for key, value in arguments.items()}
    return pva.rpc(f"T:SERVER:{name}", NTURI(list(given.items())).wrap(name, kws=arguments), timeout=30.0)


def test_all_that_a_cycle_publishes_has_one_time_and_number_on_both_protocols(machine: Running, pva: Any) -> None:
    pva.put("T:Q1.k1", 2.5, timeout=20.0)
    values = pva.get(["T:Q1.k1", *OUTPUTS])
    assert len({stamp(value) for value in values}) == 1
    assert values[1].value == 5.0
    found = ask("ca_read.py", machine.settings, "T:Q1.k1", "T:size", "T:CAM:Image:ArrayData")
    assert found["T:size"]["value"] == [5.0]
    seconds, nanoseconds, _ = stamp(values[0])
    for one in found.values():
        assert one["time"] == pytest.approx(seconds + 1e-9 * nanoseconds, abs=1e-5)


def test_a_get_after_a_put_shows_its_cycle_or_a_later_one(pva: Any) -> None:
    for number in range(30):
        pva.put("T:Q1.k1", 0.1 * number, timeout=20.0)
        assert pva.get("T:size").value == pytest.approx(0.2 * number)


def test_a_failed_put_posts_the_setpoint_again_and_marks_outputs_until_the_same_value_succeeds(
    machine: Running, pva: Any
) -> None:
    from p4p.client.thread import RemoteError

    pva.put("T:Q1.k1", 1.5, timeout=20.0)
    followed: queue.Queue[Any] = queue.Queue()
    subscription = pva.monitor("T:Q1.k1", followed.put)
    assert followed.get(timeout=10.0).value == 1.5
    with pytest.raises(RemoteError, match="quench"):
        pva.put("T:Q1.k1", 7.0, timeout=20.0)
    again = followed.get(timeout=10.0)
    assert (again.value, again.alarm.severity) == (1.5, 0)
    for value in pva.get(list(OUTPUTS)):
        assert value.alarm.severity == INVALID
        assert "quench" in value.alarm.message
    found = ask("ca_read.py", machine.settings, "T:size", "T:Q1.k1", "T:SERVER:LAST_ERROR")
    assert (found["T:size"]["value"], found["T:size"]["severity"]) == ([3.0], INVALID)
    assert (found["T:Q1.k1"]["value"], found["T:Q1.k1"]["severity"]) == ([1.5], 0)
    assert "quench" in found["T:SERVER:LAST_ERROR"]["value"]
    pva.put("T:Q1.k1", 1.5, timeout=20.0)
    assert [value.alarm.severity for value in pva.get(list(OUTPUTS))] == [0, 0, 0]
    subscription.close()


def test_a_refused_put_is_told_in_words_and_posts_what_holds(pva: Any) -> None:
    from p4p.client.thread import RemoteError

    followed: queue.Queue[Any] = queue.Queue()
    subscription = pva.monitor("T:Q1.k1", followed.put)
    first = followed.get(timeout=10.0)
    with pytest.raises(RemoteError, match="outside"):
        pva.put("T:Q1.k1", 12.0, timeout=20.0)
    again = followed.get(timeout=10.0)
    assert (again.value, again.alarm.severity) == (first.value, 0)
    assert "outside" in pva.get("T:SERVER:LAST_ERROR").value
    subscription.close()


def test_an_output_that_is_no_number_is_invalid_and_the_put_succeeds(pva: Any) -> None:
    pva.put("T:Q1.k1", 6.0, timeout=20.0)
    size = pva.get("T:size")
    assert np.isnan(size.value)
    assert size.alarm.severity == INVALID
    assert pva.get("T:CAM:Image:ArrayData").alarm.severity == 0


def test_limits_are_one_store_and_have_real_times(machine: Running, pva: Any) -> None:
    before = pva.get("T:Q1.k1.DRVH")
    assert before.value == 10.0
    assert abs(before.timeStamp.secondsPastEpoch - time.time()) < 600.0
    assert pva.get("T:CAM:Image:ArraySize0_RBV").value == 30
    try:
        pva.put("T:Q1.k1.DRVH", 4.0)
        assert pva.get("T:Q1.k1").control.limitHigh == 4.0
        assert ask("ca_read.py", machine.settings, "T:Q1.k1.DRVH")["T:Q1.k1.DRVH"]["value"] == [4.0]
    finally:
        pva.put("T:Q1.k1.DRVH", 10.0)


def test_a_text_that_is_too_long_is_refused(pva: Any) -> None:
    from p4p.client.thread import RemoteError

    with pytest.raises(RemoteError, match="at most 65536 bytes"):
        pva.put("T:title", "x" * 70_000, timeout=20.0)


# -- calls -----------------------------------------------------------------------------------------------------


def test_a_group_is_set_as_one_or_not_at_all(pva: Any) -> None:
    from p4p.client.thread import RemoteError

    answer = call(pva, "SET", names=["Q1.k1", "Q2.k1", "mode"], values=[1.0, 2.0, "high"])
    values = pva.get(["T:Q1.k1", "T:Q2.k1", "T:mode", "T:size"])
    assert {value.timeStamp.userTag for value in values} == {answer.cycle}
    assert values[3].value == 8.0
    with pytest.raises(RemoteError, match="outside"):
        call(pva, "SET", names=["Q1.k1", "Q2.k1"], values=[3.0, 20.0])
    assert pva.get("T:Q1.k1").value == 1.0


def test_the_jacobian_names_its_cycle_point_runs_and_errors(pva: Any) -> None:
    cycle = call(pva, "SET", names=["Q1.k1"], values=[1.25]).cycle
    table = call(pva, "JACOBIAN", outputs=["size", "CAM:Image:ArrayData"], inputs=["Q1.k1", "Q2.k1"])
    assert table.labels == ["output", "Q1.k1", "Q2.k1"]
    assert table.value.output[0] == "size"
    assert (table.value.d0[0], table.value.d1[0]) == (2.0, 3.0)
    assert table.value.output[1] == "CAM:Image:ArrayData[0,0]"
    assert table.value.d0[1:].tolist() == [1.0] * 600
    assert (table.cycle, table.runs) == (cycle, 0)
    assert dict(zip(table.point.names, table.point["values"], strict=True))["Q1.k1"] == 1.25
    assert not np.any(table.errors)


@pytest.mark.parametrize(
    "arguments, phrase",
    [
        ({"outputs": ["size"], "inputs": ["Q9.k1"]}, "Q9.k1"),
        ({"outputs": ["beam"], "inputs": ["Q1.k1"]}, "no derivative"),
        ({"outputs": ["size"], "inputs": ["Q1.k1"], "max_seconds": 0.0}, "given up"),
        ({"outputs": ["size"]}, "at least one"),
    ],
    ids=["unknown", "beam", "no time", "no inputs"],
)
def test_a_jacobian_that_cannot_be_had_says_why(pva: Any, arguments: dict[str, Any], phrase: str) -> None:
    from p4p.client.thread import RemoteError

    with pytest.raises(RemoteError, match=phrase):
        call(pva, "JACOBIAN", **arguments)


def test_what_is_saved_can_be_restored(pva: Any) -> None:
    pva.put("T:Q1.k1", 3.0, timeout=20.0)
    saved = call(pva, "SAVE")
    assert json.loads(saved.snapshot)["Q1.k1"] == 3.0
    pva.put("T:Q1.k1", -1.0, timeout=20.0)
    call(pva, "RESTORE", snapshot=saved.snapshot)
    assert pva.get("T:size").value == 6.0


def test_the_response_matrix_follows_the_inputs(pva: Any) -> None:
    cycle = call(pva, "SET", names=["Q1.k1"], values=[0.75]).cycle
    end = time.monotonic() + 20.0
    while (table := pva.get("T:SERVER:SENS")).cycle < cycle and time.monotonic() < end:
        time.sleep(0.05)
    assert table.labels == ["output", "Q1.k1", "Q2.k1"]
    assert (table.value.output, table.value.d0.tolist(), table.value.d1.tolist()) == (["size"], [2.0], [3.0])


# -- in front and behind ---------------------------------------------------------------------------------------


def test_a_read_only_gateway_in_front_reads_and_refuses(machine: Running, tmp_path: Path) -> None:
    from p4p.client.thread import Context, RemoteError

    port, udp = free_ports(2)
    behind = machine.settings
    client = {"name": "c", "provider": "pva", "addrlist": LOOPBACK, "autoaddrlist": False}
    client["bcastport"] = int(behind["EPICS_PVA_BROADCAST_PORT"])
    front = {"name": "s", "clients": ["c"], "interface": [LOOPBACK], "addrlist": LOOPBACK, "autoaddrlist": False}
    front.update(serverport=int(port), bcastport=int(udp))
    configuration = tmp_path / "gateway.json"
    configuration.write_text(json.dumps({"version": 2, "readOnly": True, "clients": [client], "servers": [front]}))
    gateway = Running([sys.executable, "-m", "p4p.gw", str(configuration)], tmp_path, {})
    conf = {"EPICS_PVA_ADDR_LIST": LOOPBACK, "EPICS_PVA_AUTO_ADDR_LIST": "NO", "EPICS_PVA_BROADCAST_PORT": udp}
    try:
        with Context("pva", conf={**conf, "EPICS_PVA_NAME_SERVERS": f"{LOOPBACK}:{port}"}, useenv=False) as through:
            assert through.get("T:size", timeout=30.0) == 0.0
            with pytest.raises(RemoteError):
                through.put("T:Q1.k1", 1.0, timeout=10.0)
    finally:
        gateway.process.terminate()
        gateway.end()


def test_clients_that_are_stopped_do_not_grow_the_server(tmp_path: Path) -> None:
    from p4p.client.thread import Context

    with serving(tmp_path, pixels=25_000) as server:  # 4 MB an image
        followers = [
            subprocess.Popen(
                [sys.executable, str(HERE / "clients" / "follow.py"), protocol],
                env={**os.environ, **server.settings},
                stdout=subprocess.PIPE,
            )
            for protocol in ("pva", "ca")
        ]
        try:
            conf = {key: value for key, value in server.settings.items() if key.startswith("EPICS_PVA_")}
            with Context("pva", conf=conf, useenv=False, nt=False) as context:
                for follower in followers:
                    assert follower.stdout is not None
                    assert follower.stdout.readline() == b"following\n"
                    follower.send_signal(signal.SIGSTOP)
                for number in range(15):
                    context.put("T:Q1.k1", 0.1 + 0.01 * number, timeout=20.0)
                before = server.memory()
                for number in range(60):
                    context.put("T:Q1.k1", 1.0 + 0.01 * number, timeout=20.0)
                assert server.memory() < before + 60.0  # 60 images would be 240 MB
        finally:
            for follower in followers:
                follower.kill()
                follower.communicate()
