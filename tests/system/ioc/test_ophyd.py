"""The ophyd-async device of a model connects to the model that is served, and drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lume_diff.ioc.generate.ophyd import ophyd_device
from tests.system.ioc.conftest import PREFIX
from tests.system.ioc.magnet import Magnet

pytestmark = pytest.mark.system

PLAN = """\
import asyncio, json
from device import Machine, Polarity

async def main():
    machine = Machine("pva://T:", name="machine")
    await machine.connect(timeout=20.0)
    await machine.current.set(2.5, timeout=20.0)
    await machine.polarity.set(Polarity.REVERSED, timeout=20.0)
    await machine.lamp.set(True, timeout=20.0)
    image = await machine.image.get_value()
    refused = ""
    try:
        await machine.current.set(11.0, timeout=20.0)
    except Exception as error:
        refused = str(error)
    print(json.dumps({
        "field": float(await machine.field.get_value()),
        "polarity": (await machine.polarity.get_value()).value,
        "lamp": bool(await machine.lamp.get_value()),
        "shape": image.shape,
        "pixel": float(image[3, 4]),
        "unit": (await machine.current.describe())["machine-current"]["units"],
        "refused": refused,
    }))

asyncio.run(main())
"""


def test_a_device_connects_reads_and_drives(place, tmp_path):
    pytest.importorskip("ophyd_async")
    (tmp_path / "device.py").write_text(ophyd_device(Magnet(), PREFIX))
    (tmp_path / "plan.py").write_text(PLAN)
    place.serve("--isolation", "thread")
    done = subprocess.run(
        [sys.executable, "plan.py"],
        cwd=tmp_path,
        env={**os.environ, **place.settings},
        capture_output=True,
        text=True,
        timeout=100.0,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["field"], told["polarity"], told["lamp"], told["unit"]) == (-5.0, "reversed", True, "A")
    assert (told["shape"], told["pixel"]) == ([500, 500], 2.5)
    assert "outside" in told["refused"]
