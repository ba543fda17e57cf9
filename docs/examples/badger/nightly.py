"""Let Badger optimise a served machine without a screen: ``python nightly.py PREFIX PROTOCOL STEPS``.

Prints JSON: how many points were measured, and the best of them. It needs ``pip install badger-opt``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
PLUGINS = Path(__file__).parent / "plugins"


def main(prefix: str, protocol: str, steps: int) -> None:
    """Run the optimisation."""
    import yaml
    from badger.settings import BadgerConfig, init_settings

    with tempfile.TemporaryDirectory() as folder:
        settings = BadgerConfig()
        settings.BADGER_PLUGIN_ROOT.value = str(PLUGINS)
        for place in (settings.BADGER_TEMPLATE_ROOT, settings.BADGER_LOGBOOK_ROOT, settings.BADGER_ARCHIVE_ROOT):
            place.value = folder
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(settings.model_dump(by_alias=True)), encoding="utf-8")
        init_settings(str(file))
        print(json.dumps(optimise(prefix, protocol, steps)))


def optimise(prefix: str, protocol: str, steps: int) -> dict[str, float]:
    """Bring the force of the magnet to its target and return the best point."""
    import pandas as pd
    from badger.core import run_routine
    from badger.errors import BadgerRunTerminated
    from badger.factory import get_env, get_intf
    from badger.routine import Routine
    from xopt import VOCS
    from xopt.generators import get_generator

    environment_class, _ = get_env("magnet")
    interface_class, _ = get_intf("process_variables")
    environment = environment_class(interface=interface_class(prefix=prefix, protocol=protocol))
    vocs = VOCS(variables=environment.variables, objectives={"miss": "MINIMIZE"})
    start = pd.DataFrame({"current": [1.0], "gap": [0.9]})
    routine = Routine(
        name="nightly",
        environment=environment,
        generator=get_generator("neldermead")(vocs=vocs),
        initial_points=start,
    )
    measured: list[pd.DataFrame] = []
    with contextlib.suppress(BadgerRunTerminated):
        run_routine(
            routine,
            active_callback=lambda: 2 if len(measured) >= steps else 0,
            generate_callback=lambda candidates: None,
            evaluate_callback=measured.append,
            states_callback=lambda states: None,
            verbose=0,
        )
    best = pd.concat(measured).sort_values("miss").iloc[0]
    return {"points": len(measured), **{name: float(best[name]) for name in ("current", "gap", "miss")}}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
