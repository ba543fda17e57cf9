"""The example machine, served from its file as a user does, looks like a machine to clients of both protocols."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lume_diff as ld
from tests.system.ioc.conftest import Place

p4p = pytest.importorskip("p4p.client.thread")
caproto = pytest.importorskip("caproto")

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit")]

FIELD, READBACK, SIZE = "QUAD:DIAG0:190:BCTRL", "QUAD:DIAG0:190:BACT", "OTRS:DIAG0:420:XRMS"
CORRECTOR, ORBIT, BEHIND = "XCOR:IN20:221:BCTRL", "BPMS:IN20:425:X", "BPMS:DIAG0:470:X"
IMAGE, SCREEN = "OTRS:DIAG0:420:IMAGE", "OTRS:DIAG0:420:PNEUMATIC"
PIXELS, CHARGE = (360, 480), 250e-12
STRENGTHS = 0.5, 0.9  # [kG]
MAJOR, INVALID = 2, 3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Return where the machine is served; clients of this process find it too."""
    place = Place(tmp_path_factory.mktemp("served"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.settings.items():
            patch.setenv(name, value)
        place.ready(place.start(str(ld.example_machine())))
        yield place
    place.end()


@pytest.fixture(scope="module")
def sizes() -> list[float]:
    """Return the beam sizes at the strengths, by the model in this process [um]."""
    model = ld.load_model(ld.example_machine())
    return [float(model({FIELD: strength}, outputs=[SIZE])[SIZE]) for strength in STRENGTHS]


@pytest.fixture
def pva(served: Place) -> Iterator[Any]:
    """Return a p4p client that gives whole structures; the machine is at its baseline."""
    with p4p.Context("pva", nt=False) as context:
        context.put("VA:SERVER:RESET", True, timeout=20.0)
        yield context


def test_by_pv_access(pva: Any, sizes: list[float]) -> None:
    def show(name: str) -> Any:
        return pva.get("VA:" + name, timeout=20.0)

    field = show(FIELD)
    assert field.display.units == "kG"
    assert (field.control.limitLow, field.control.limitHigh) == (-6.0, 6.0)
    for strength, size in zip(STRENGTHS, sizes, strict=True):
        pva.put("VA:" + FIELD, strength, timeout=20.0)
        assert show(SIZE).value == pytest.approx(size, rel=1e-9)
        assert show(READBACK).value == pytest.approx(strength, abs=1e-3)
    assert sizes[0] != pytest.approx(sizes[1], rel=0.01)
    with pytest.raises(p4p.RemoteError, match="outside"):
        pva.put("VA:" + FIELD, 6.1, timeout=20.0)
    with pytest.raises(p4p.RemoteError, match="output"):
        pva.put("VA:" + READBACK, 0.0, timeout=20.0)
    assert show(FIELD).value == STRENGTHS[1]

    image = show(IMAGE)
    assert tuple(part.size for part in reversed(image.dimension)) == PIXELS
    assert float(np.sum(image.value)) == pytest.approx(CHARGE)

    assert show(ORBIT).alarm.severity == 0
    assert show(BEHIND).alarm.severity == INVALID  # the screen before it is in
    pva.put("VA:" + CORRECTOR, 0.006, timeout=20.0)
    assert show(ORBIT).value > 5.0
    assert show(ORBIT).alarm.severity == MAJOR
    pva.put("VA:" + CORRECTOR, 0.0, timeout=20.0)
    pva.put("VA:" + SCREEN, {"value.index": 0}, timeout=20.0)
    assert show(BEHIND).alarm.severity == 0
    assert float(np.abs(show(IMAGE).value).sum()) == 0.0


def test_by_channel_access(pva: Any, sizes: list[float]) -> None:
    from caproto.threading.client import Context

    context = Context()
    names = FIELD, READBACK, SIZE, IMAGE, ORBIT, BEHIND, CORRECTOR, SCREEN
    pvs = dict(zip(names, context.get_pvs(*("VA:" + name for name in names)), strict=True))
    for pv in pvs.values():
        pv.wait_for_connection(timeout=20.0)

    def show(name: str, kind: str = "time") -> Any:
        return pvs[name].read(data_type=kind, timeout=20.0)

    try:
        field = show(FIELD, "control").metadata
        assert field.units == b"kG"
        assert (field.lower_ctrl_limit, field.upper_ctrl_limit) == (-6.0, 6.0)
        for strength, size in zip(STRENGTHS, sizes, strict=True):
            pvs[FIELD].write([strength], wait=True, timeout=20.0)
            assert show(SIZE).data[0] == pytest.approx(size, rel=1e-9)
            assert show(READBACK).data[0] == pytest.approx(strength, abs=1e-3)
        assert not pvs[FIELD].write([6.1], wait=True, timeout=20.0).status.success
        assert not pvs[READBACK].access_rights & caproto.AccessRights.WRITE
        assert show(FIELD).data[0] == STRENGTHS[1]
        image = np.reshape(show(IMAGE).data, PIXELS)
        assert float(image.sum()) == pytest.approx(CHARGE)
        assert show(BEHIND).metadata.severity == INVALID
        pvs[CORRECTOR].write([0.006], wait=True, timeout=20.0)
        assert show(ORBIT).metadata.severity == MAJOR
        pvs[CORRECTOR].write([0.0], wait=True, timeout=20.0)
        pvs[SCREEN].write([0], wait=True, timeout=20.0)
        assert show(BEHIND).metadata.severity == 0
        assert float(np.abs(show(IMAGE).data).sum()) == 0.0
    finally:
        context.disconnect()
