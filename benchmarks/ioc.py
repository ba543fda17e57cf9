"""Time served models against p4p with nothing around it, and against lume-pva where it is on the path.

    python benchmarks/ioc.py [--only latency,latency1000,start,images,burst,busy] [--quick]

lume-pva and what it brings go into a folder of their own, which changes nothing here; with that folder on the path its
rows appear:

    pip install --no-deps --target lume-pva lume-pva==0.5.0 pcaspy==0.8.1 pvua==1.0.1
    PYTHONPATH=lume-pva python benchmarks/ioc.py

Clients are p4p on PVAccess and pyepics on Channel Access; every server is a process of its own on this machine, and
posts the same changed PVs. "x bare" is the ratio to p4p alone, after the model's own time is taken away. On a machine
that has other things to do, the processor time of server and client together tells more than the clock does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _ioc_clients import CA, PVA, Watch
from _rows import Row, note

SERVERS = Path(__file__).with_name("_ioc_servers.py")

# What is wanted, as multiples of p4p with nothing around it.
LATENCY, RATE = 2.0, 0.8
ONLINE = {"pva": 1.5, "both": 3.0}
BOTH = "processor time of server and client"


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings() -> dict[str, str]:
    """Return settings for a server and its clients that meet on this machine only."""
    pva, pva_udp, ca, repeater = (str(free_port()) for _ in range(4))
    here = "127.0.0.1"
    return {
        "OMP_NUM_THREADS": "1",
        "EPICS_PVAS_INTF_ADDR_LIST": here,
        "EPICS_PVAS_SERVER_PORT": pva,
        "EPICS_PVA_SERVER_PORT": pva,
        "EPICS_PVAS_BROADCAST_PORT": pva_udp,
        "EPICS_PVA_BROADCAST_PORT": pva_udp,
        "EPICS_PVA_ADDR_LIST": here,
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_NAME_SERVERS": f"{here}:{pva}",
        "EPICS_CA_SERVER_PORT": ca,
        "EPICS_CAS_BEACON_PORT": repeater,
        "EPICS_CA_ADDR_LIST": f"{here}:{ca}",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
    }


class Served:
    """A server in a process of its own, with ports and a prefix of its own."""

    count = 0

    def __init__(self, kind: str, shape: str, isolation: str = "thread") -> None:
        Served.count += 1
        self.kind, self.isolation = kind, isolation
        self.prefix, self.settings = f"B{Served.count}:", settings()
        command = [sys.executable, str(SERVERS), kind, shape, isolation, self.prefix]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **self.settings}
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready"):
                self.seconds = float(line.split()[1])
                break
        else:
            raise SystemExit(f"the server {kind} {shape} has not started")

    def __str__(self) -> str:
        return self.kind if self.kind in ("bare", "lume-pva") else f"{self.kind} {self.isolation}"

    def memory(self) -> float:
        """Return its memory [MB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def cpu(self) -> float:
        """Return the processor time that it and its children have taken [ms]."""
        return sum(map(_cpu, _family(self.process.pid)))

    def end(self) -> list[float]:
        """End it; returns how late its handlers were [ms]."""
        if self.process.returncode is not None:
            return []
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        late = [float(x) for line in self.process.stdout if line.startswith("late") for x in line.split()[1:]]
        self.process.wait(20.0)
        return late


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]
    return [pid, *(one for child in children for one in _family(child))]


def _cpu(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return 1e3 * (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(*wanted: tuple[str, str, str]) -> Iterator[list[Served]]:
    """Serve several side by side; pyepics, which looks only once, is told of all of them."""
    found = [Served(*one) for one in wanted]
    repeater = str(free_port())
    addresses = " ".join(one.settings["EPICS_CA_ADDR_LIST"] for one in found if one.kind in ("ca", "both"))
    os.environ.update(EPICS_CA_ADDR_LIST=addresses, EPICS_CA_AUTO_ADDR_LIST="NO", EPICS_CA_REPEATER_PORT=repeater)
    os.environ.update(EPICS_CA_MAX_ARRAY_BYTES="20000000")
    try:
        yield found
    finally:
        for one in found:
            one.end()


def client_of(one: Served) -> PVA | CA:
    """Return a client of a server, by its protocol."""
    return (CA if one.kind == "ca" else PVA)(one.settings, one.prefix)


def p(values: list[float] | np.ndarray, percent: float) -> float:
    """Return a percentile."""
    return float(np.percentile(values, percent))


OURS = [(protocol, isolation) for protocol in ("pva", "ca") for isolation in ("thread", "process")]


def latency(count: int, rounds: int) -> None:
    """Time from a put to the last of the output monitors, the servers in turns."""
    wanted = [("bare", str(count), ""), *((kind, str(count), isolation) for kind, isolation in OURS), *lume_pva(count)]
    print(f"put -> {count} output monitors [ms]     median      p99   model   x bare (median, p99)       CPU   x bare")
    with served(*wanted) as servers:
        trips = [RoundTrips(one, [f"y{number}" for number in range(count)]) for one in servers]
        for number in range(rounds):
            for trip in trips:
                if trip.one.kind != "lume-pva" or number < 23:  # 0.1 s each
                    trip.go()
        for trip in trips:
            times, model = trip.times[3:], trip.model[3:]
            rest = np.array(times) - np.array(model)
            ratios = [p(rest, q) / p(trips[0].times[3:], q) for q in (50, 99)]
            if trip is not trips[0]:
                title = f"put to {count} output monitors, without the model's time"
                goal = LATENCY if trip.one.kind != "lume-pva" else None
                for q in (50, 99):
                    note(Row(title, f"{trip.one}, {q} %", p(rest, q), "ms", "bare p4p", p(trips[0].times[3:], q), goal))
                note(Row(title, f"{trip.one}, {BOTH}", trip.cpu(), "ms", "bare p4p", trips[0].cpu()))
            print(
                f"  {trip.one!s:<32} {p(times, 50):10.2f} {p(times, 99):8.2f} {p(model, 50):7.2f} "
                f"{ratios[0]:8.2f} {ratios[1]:6.2f} {trip.cpu():16.2f} {trip.cpu() / trips[0].cpu():8.2f}"
            )
            trip.client.close()
        ours, theirs = trips[2], trips[-1]
        if theirs.one.kind == "lume-pva":
            times = [p(trip.times[3:], 50) for trip in (ours, theirs)]
            note(Row(f"put to {count} output monitors", str(ours.one), times[0], "ms", "lume-pva", times[1]))


def lume_pva(count: int) -> list[tuple[str, str, str]]:
    """Return the line of lume-pva where it can be imported."""
    found = subprocess.run([sys.executable, "-c", "import lume_pva.runner"], capture_output=True, check=False)
    return [("lume-pva", str(count), "")] if found.returncode == 0 else []


class RoundTrips:
    """Put, and wait for the last monitor; keeps the times, and what the model took of them [ms]."""

    def __init__(self, one: Served, names: list[str]) -> None:
        self.one, self.client = one, client_of(one)
        self.times: list[float] = []
        self.model: list[float] = []
        self._watch = Watch(len(names))
        self.client.follow(names, self._watch)
        time.sleep(0.5 + 1e-3 * len(names))
        self._before, self._client_cpu = one.cpu(), 0.0

    def cpu(self) -> float:
        """Return the processor time of server and client in each, less the model's [ms]."""
        taken = self.one.cpu() - self._before + 1e3 * self._client_cpu
        return taken / len(self.times) - min(self.model)

    def go(self) -> None:
        """Do it once."""
        value = len(self.times) + 1.0
        self._watch.expect(value)
        begun, cpu = time.perf_counter(), time.process_time()
        self.client.put("x", value)
        self._watch.wait()
        self.times.append(1e3 * (time.perf_counter() - begun))
        self._client_cpu += time.process_time() - cpu
        is_ours = self.one.kind in ("pva", "ca")
        seconds = self.client.get("SERVER:CYCLE_TIME" if is_ours else "other")
        self.model.append(1e3 * seconds if is_ours else 0.0)


def start(count: int, rounds: int) -> None:
    """Time until all PVs are online."""
    print(f"{count} PVs online [s], best of {rounds}           x bare")
    found: dict[str, float] = {}
    for kind in ("bare", "pva", "both") * rounds:
        with served((kind, str(count), "thread")) as (one,):
            found[kind] = min(one.seconds, found.get(kind, one.seconds))
    for kind, seconds in found.items():
        if kind != "bare":
            note(Row(f"{count} PVs online", kind, seconds, "s", "bare p4p", found["bare"], ONLINE[kind]))
        print(f"  {kind:<32} {seconds:10.2f} {seconds / found['bare']:6.2f}", flush=True)


def images(rounds: int) -> None:
    """Time images of a million floats, a put each, the servers in turns."""
    print("1-Mpixel images [Hz]                   rate   x bare   x bare without the model's time   CPU [ms]   x bare")
    with served(("bare", "image", ""), *((kind, "image", isolation) for kind, isolation in OURS)) as servers:
        trips = [RoundTrips(one, ["image"]) for one in servers]
        for _ in range(rounds):
            for trip in trips:
                trip.go()
        rates = [[1e3 / p(times, 50) for times in (t.times, np.array(t.times) - np.array(t.model))] for t in trips]
        for trip, (rate, own) in zip(trips, rates, strict=True):
            if trip is not trips[0]:
                title = "1-Mpixel images, without the model's time"
                note(Row(title, str(trip.one), own, "Hz", "bare p4p", rates[0][0], RATE, more=True))
                note(Row(title, f"{trip.one}, {BOTH}", trip.cpu(), "ms", "bare p4p", trips[0].cpu()))
            print(
                f"  {trip.one!s:<32} {rate:10.1f} {rate / rates[0][0]:8.2f} {own / rates[0][0]:8.2f} "
                f"{trip.cpu():34.2f} {trip.cpu() / trips[0].cpu():8.2f}"
            )
            trip.client.close()


def burst(seconds: int) -> None:
    """Put 1000 times a second, and count the answers."""
    print(f"1000 puts/s for {seconds} s              answered        in  last value wins  memory [MB] before, after")
    for protocol in ("pva", "ca"):
        with served((protocol, "10", "process")) as (one,):
            client, asked = client_of(one), 1000 * seconds
            client.put("x", 0.5)
            answers: list[object] = []
            before, begun = one.memory(), time.perf_counter()
            for number in range(1, asked + 1):
                client.send("x", float(number), answers.append)
                time.sleep(max(0.0, begun + 1e-3 * number - time.perf_counter()))
            while len(answers) < asked and time.perf_counter() < begun + seconds + 20.0:
                time.sleep(0.01)
            took = time.perf_counter() - begun
            wrong = sum(isinstance(answer, Exception) for answer in answers)
            good = client.get("y0") == client.get("x") == asked
            title = f"1000 puts/s for {seconds} s"
            note(Row(title, f"{one}, answered", 100.0 * (len(answers) - wrong) / asked, "%", wanted=100.0, more=True))
            note(Row(title, f"{one}, memory added", one.memory() - before, "MB"))
            print(
                f"  {one!s:<20} {len(answers) - wrong:10d} of {asked} {took:7.2f} s {good!s:>10} {before:12.1f} "
                f"{one.memory():8.1f}",
                flush=True,
            )
            client.close()


def busy(seconds: float) -> None:
    """Time gets, and the acceptance of puts, while the model computes for 3 s."""
    print(f"model busy for {seconds:g} s [ms]        get p50     p99   put accepted p50     p99")
    wanted = [("bare", "10", ""), ("pva", "10", "process"), ("ca", "10", "process")]
    with served(*wanted) as servers:
        for one in servers:
            client, other = client_of(one), client_of(one)
            client.put("x", 1.0)
            other.get("y0")
            long = threading.Thread(target=client.put, args=("x", 2.0 if one.kind == "bare" else -seconds))
            end, gets = time.monotonic() + seconds, []
            long.start()
            while time.monotonic() < end - 0.1:
                begun = time.perf_counter()
                other.get("y0")
                gets.append(1e3 * (time.perf_counter() - begun))
                other.send("other", time.monotonic(), lambda _: None)
                time.sleep(0.005)
            long.join()
            time.sleep(0.3)
            late = one.end()
            for what, times in (("get", gets), ("put accepted", late)):
                note(Row(f"model busy for {seconds:g} s", f"{one}, {what}, 99 %", p(times, 99), "ms", wanted=10.0))
            print(f"  {one!s:<24} {p(gets, 50):10.2f} {p(gets, 99):7.2f} {p(late, 50):15.2f} {p(late, 99):10.2f}")
            client.close()
            other.close()


def main() -> None:
    """Run the parts that are asked for, each in a process of its own."""
    parts: dict[str, Callable[[bool], None]] = {
        "latency": lambda quick: latency(10, 50 if quick else 400),
        "latency1000": lambda quick: latency(1000, 10 if quick else 60),
        "start": lambda quick: start(2000 if quick else 10_000, 1 if quick else 3),
        "images": lambda quick: images(10 if quick else 60),
        "burst": lambda quick: burst(2 if quick else 10),
        "busy": lambda quick: busy(1.0 if quick else 3.0),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(parts), help="parts, with commas between them")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if len(wanted) == 1:
        parts[wanted[0]](options.quick)
        return
    for name in wanted:
        command = [sys.executable, __file__, "--only", name, *(["--quick"] if options.quick else [])]
        subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
