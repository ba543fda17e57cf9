"""Values that a protocol cannot carry, and limits with one end: what else is served stays right, and nothing lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("p4p")
pytest.importorskip("caproto")

from lume_diff.control.client import ControlClient
from lume_diff.control.readings import Severity
from lume_diff.errors import ControlError, ValidationError
from lume_diff.ioc import Server
from lume_diff.models import LUMEModel
from lume_diff.variables import EnumVariable, IntVariable, StrVariable, TorchScalarVariable
from tests.system.ioc.conftest import free_ports, settings_of

LONGEST = 100  # [bytes] of a text
INVALID, FINE = Severity.INVALID, Severity.NO_ALARM


class Odd(LUMEModel):
    """Give a text and a count that are odd when they are asked to be, and fail in odd words."""

    def __init__(self) -> None:
        super().__init__(
            [
                TorchScalarVariable(name="x", default_value=0.0, value_range=(-10.0, 10.0)),
                IntVariable(name="turns", default_value=3, value_range=(0, 100)),
                IntVariable(name="pulses", default_value=0),
                IntVariable(name="seen", default_value=3, value_range=(0, 100)),
                IntVariable(name="unseen", default_value=3, value_range=(0, 100)),
                StrVariable(name="kind", default_value="plain"),
                EnumVariable(name="mode", options=["low", "größer"], default_value="low"),
                IntVariable(name="count", value_range=(0, 10), read_only=True),
                StrVariable(name="note", read_only=True),
                TorchScalarVariable(name="y", read_only=True),
            ]
        )

    def _run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        kind, x = inputs["kind"], inputs["x"]
        if kind == "fail":
            raise RuntimeError("no \udcff such \0 thing")
        note = {"broken": "a\udcff", "cut": "one\0two", "long": "n" * 2 * LONGEST}.get(kind, f"at {float(x):g}")
        return {"count": torch.tensor(2**40 if kind == "large" else 4), "note": note, "y": 2.0 * x}


class Place:
    """A server of it, and a client of each protocol."""

    def __init__(self, clients: dict[str, ControlClient]) -> None:
        self.clients = clients

    def shown(self, name: str) -> list[tuple[Any, Severity]]:
        """Return what each client reads."""
        found = [client.get([f"O:{name}"])[f"O:{name}"] for client in self.clients.values()]
        return [(reading.value, reading.severity) for reading in found]


@pytest.fixture(scope="module")
def server() -> Iterator[Place]:
    """Serve it once for all tests."""
    from lume_diff.control.ca import CAClient
    from lume_diff.control.pva import PVAClient

    settings = settings_of(free_ports())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        options: dict[str, Any] = {"changeable_limits": ["x", "seen", "unseen"], "longest_text": LONGEST}
        served = Server(Odd(), "O:", settings=settings, search=0.0, **options)
        with served, PVAClient(settings) as pva, CAClient() as ca:
            served.wait_ready(30.0)
            yield Place({"pva": pva, "ca": ca})


@pytest.fixture
def place(server: Place) -> Place:
    """Return the server as it begins."""
    server.clients["pva"].put({"O:SERVER:RESET": True})
    return server


@pytest.mark.parametrize(
    "kind, name, can_carry",
    [("broken", "note", []), ("cut", "note", []), ("long", "note", ["pva", "ca"]), ("large", "count", ["pva"])],
    ids=["not a character", "NUL", "long", "more than 32 bits"],
)
def test_what_cannot_be_carried_is_invalid_and_the_rest_is_right(
    place: Place, kind: str, name: str, can_carry: list[str]
) -> None:
    pva = place.clients["pva"]
    for client in place.clients.values():
        client.get([f"O:{one}" for one in ("y", "note", "count", "kind")])
    pva.put({"O:x": 2.0})
    last = place.shown(name)
    values = {"broken": "a\udcff", "long": "n" * 2 * LONGEST, "large": 2**40}
    pva.put({"O:kind": kind})
    for (shown, severity), (before, _), protocol in zip(place.shown(name), last, place.clients, strict=True):
        expected = (values[kind], FINE) if protocol in can_carry else (before, INVALID)
        assert (shown, severity) == expected
    assert place.shown("kind") == [(kind, FINE)] * 2
    pva.put({"O:x": 3.0})
    assert place.shown("y") == [(6.0, FINE)] * 2
    pva.put({"O:kind": "plain"})
    assert place.shown("note") == [("at 3", FINE)] * 2
    assert place.shown("count") == [(4, FINE)] * 2


def test_an_error_in_odd_words_is_told_and_the_server_serves_on(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    pva = place.clients["pva"]
    pva.put({"O:x": 2.0})
    with pytest.raises(ControlError, match=r"no \? such \? thing"):
        pva.put({"O:kind": "fail"})
    assert place.shown("y") == [(4.0, INVALID)] * 2
    assert all("no ? such ? thing" in text for text, _ in place.shown("SERVER:LAST_ERROR"))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("lume_diff.ioc")]
    assert [text for text in told if "no ? such ? thing" in text]
    assert "".join(told).encode()  # a file takes it
    pva.put({"O:kind": "plain"})
    assert place.shown("y") == [(4.0, FINE)] * 2


@pytest.mark.parametrize("name", ["seen", "unseen"])
def test_one_end_of_the_limits_of_a_whole_number_can_be_set(place: Place, name: str) -> None:
    ca = place.clients["ca"]
    if name == "seen":
        assert ca.get(["O:seen"])["O:seen"].severity is FINE
    place.clients["pva"].put({f"O:{name}.HIHI": 2.5})
    assert place.shown(name) == [(3, Severity.MAJOR)] * 2
    ca.put({f"O:{name}": 2})
    assert place.shown(name) == [(2, FINE)] * 2


def test_a_whole_number_with_more_digits_than_a_double_is_no_other_number_on_channel_access(place: Place) -> None:
    number = 2**60 + 1
    place.clients["ca"].get(["O:pulses"])
    place.clients["pva"].put({"O:pulses": number})
    assert place.shown("pulses") == [(number, FINE), (0.0, INVALID)]


def test_words_with_other_letters_are_the_same_on_both_protocols(place: Place) -> None:
    for client in place.clients.values():
        client.put({"O:mode": "größer", "O:kind": "Größe µ 日"})
        assert place.shown("mode") == [("größer", FINE)] * 2
        assert place.shown("kind") == [("Größe µ 日", FINE)] * 2
        client.put({"O:mode": "low", "O:kind": "plain"})


def test_a_text_is_as_long_as_is_allowed_on_both_protocols(place: Place) -> None:
    for client in place.clients.values():
        with pytest.raises(ControlError):
            client.put({"O:kind": "k" * (LONGEST + 1)})
        client.put({"O:kind": "k" * LONGEST})
        client.put({"O:kind": "plain"})


@pytest.mark.parametrize("value", [1.5, float("nan")])
@pytest.mark.parametrize("name", ["turns", "mode"])
def test_clients_cut_nothing_off_a_number(place: Place, name: str, value: float) -> None:
    before = place.shown(name)
    for client in place.clients.values():
        with pytest.raises(ControlError):
            client.put({f"O:{name}": value})
    assert place.shown(name) == before


@pytest.mark.parametrize(
    "snapshot, phrase",
    [({"x": 3.0}, "drive limits"), ({"y": 1.0}, "output"), ({"z": 1.0}, "'z'"), ({"kind": 3}, "string")],
    ids=["limits that are now", "output", "unknown", "type"],
)
def test_a_snapshot_is_refused_on_arrival_like_any_write(place: Place, snapshot: dict[str, Any], phrase: str) -> None:
    pva = place.clients["pva"]
    pva.put({"O:x": 1.0})
    pva.put({"O:x.DRVH": 2.0})
    with pytest.raises(ControlError, match=phrase):
        pva.put({"O:SERVER:SNAPSHOT": json.dumps({"turns": 7, **snapshot})})
    assert place.shown("x") == [(1.0, FINE)] * 2
    assert place.shown("turns") == [(3, FINE)] * 2
    assert place.shown("y") == [(2.0, FINE)] * 2
    pva.put({"O:SERVER:SNAPSHOT": json.dumps({"x": 2.0, "turns": 7})})
    assert place.shown("turns") == [(7, FINE)] * 2
    pva.put({"O:x.DRVH": 10.0})


def test_one_name_that_nobody_serves_holds_up_no_other(place: Place) -> None:
    for client in place.clients.values():
        found = client.get(["O:nothing", "O:x", "O:y"], timeout=0.7)
        assert [reading.severity for reading in found.values()] == [INVALID, FINE, FINE]
        with pytest.raises(ControlError, match="1 of 2"):
            client.put({"O:nothing": 1.0, "O:x": 1.0}, timeout=0.7)
        assert client.get(["O:x"])["O:x"].value == 1.0
        client.put({"O:x": 0.0})


@pytest.mark.parametrize(
    "options, phrase",
    [([f"{number}" for number in range(17)], "17 choices"), (["in", "w" * 26], "'w{26}'.* 25 bytes")],
    ids=["many", "long"],
)
def test_choices_that_channel_access_has_not_are_refused_at_start(options: list[str], phrase: str) -> None:
    from lume_diff.ioc.ca.channels import is_carried

    assert is_carried(EnumVariable(name="mode", options=["in", "w" * 25], default_value="in"))
    with pytest.raises(ValidationError, match=phrase):
        is_carried(EnumVariable(name="mode", options=options, default_value=options[0]))
