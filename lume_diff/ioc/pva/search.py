"""Which names other servers answer for on PVAccess."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lume_diff.control.pva import PVAClient
from lume_diff.control.readings import Condition
from lume_diff.ioc.served import Served


def answered(names: Sequence[str], served: Served, patience: float) -> set[str]:
    """Return the names for which a server answers.

    Looked for is where a client on this machine would look, and on the interface itself.

    Args:
        names: to look for, all at once.
        served: where we are about to listen.
        patience: how long to wait [s].
    """
    env = {**os.environ, **served.settings}
    port = env.get("EPICS_PVAS_BROADCAST_PORT", env.get("EPICS_PVA_BROADCAST_PORT"))
    places = env.get("EPICS_PVA_ADDR_LIST", "").split() + [served.interface] * (served.interface != "0.0.0.0")
    settings = {**served.settings, "EPICS_PVA_ADDR_LIST": " ".join(places)}
    if port is not None:
        settings["EPICS_PVA_BROADCAST_PORT"] = port
    with PVAClient(settings) as client:
        found = client.get(names, patience)
    return {name for name, reading in found.items() if reading.condition is not Condition.DISCONNECTED}
