"""Which names other servers answer for on PVAccess."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lume_diff.control.pva import PVAClient
from lume_diff.control.readings import Condition


def answered(names: Sequence[str], interface: str, patience: float) -> set[str]:
    """Return the names for which a server answers.

    Looked for is where a client on this machine would look, and on the interface itself.

    Args:
        names: to look for, all at once.
        interface: address that we are about to listen on.
        patience: how long to wait [s].
    """
    env = os.environ
    ports = {"EPICS_PVA_BROADCAST_PORT": env.get("EPICS_PVAS_BROADCAST_PORT", env.get("EPICS_PVA_BROADCAST_PORT"))}
    places = f"{env.get('EPICS_PVA_ADDR_LIST', '')} {'' if interface == '0.0.0.0' else interface}"
    settings = {"EPICS_PVA_ADDR_LIST": places.strip(), **{key: port for key, port in ports.items() if port}}
    with PVAClient(settings) as client:
        found = client.get(names, patience)
    return {name for name, reading in found.items() if reading.condition is not Condition.DISCONNECTED}
