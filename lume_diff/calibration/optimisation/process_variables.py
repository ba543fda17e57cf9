"""A machine behind process variables, as what Xopt optimises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lume_diff.calibration.prior_mean.storing import loaded_module, packed, unpacked
from lume_diff.calibration.prior_mean.vocs import Quantity
from lume_diff.control import Severity, client_of
from lume_diff.errors import LumeDiffError


class Client(Protocol):
    """What is asked of a client of a control system; ``lume_diff.control.client.ControlClient`` is one."""

    def get(self, names: Sequence[str], timeout: float = ...) -> Mapping[str, Any]:
        """Return readings by name: objects with ``value``, ``severity`` and ``message``, or plain numbers."""

    def put(self, values: Mapping[str, Any], timeout: float = ...) -> None:
        """Write values and wait until the server has them."""


def pva_client() -> Client:
    """Return a client of PVAccess; see ``lume_diff.control.client_of``."""
    return client_of("pva")


class ProcessVariables(nn.Module):
    """Set a machine, wait, and read what it does: a module, so that Xopt's dump keeps it in a file.

    Args:
        setpoints: process variable by input, ``{"Q1.k1": "QUAD:1:BCTRL"}``; values go there in the input's unit.
        outputs: process variable by output.
        quantities: what objectives and constraints are made of.
        readbacks: process variable by input, recorded as ``"<input>_RBV"``.
        settle: how long to wait between setting and reading [s].
        timeout: for an answer [s].
        client: makes the client; PVAccess unless given.

    Raises:
        LumeDiffError: for outputs that no process variable gives.
    """

    def __init__(
        self,
        setpoints: Mapping[str, str],
        outputs: Mapping[str, str],
        quantities: Mapping[str, Quantity],
        readbacks: Mapping[str, str] | None = None,
        settle: float = 0.0,
        timeout: float = 5.0,
        client: Callable[[], Client] = pva_client,
    ) -> None:
        super().__init__()
        self._setpoints, self._outputs, self._readbacks = dict(setpoints), dict(outputs), dict(readbacks or {})
        self._quantities = dict(quantities)
        self._settle, self._timeout = settle, timeout
        self._make_client = client
        self._client: Client | None = None
        needed = dict.fromkeys(name for q in self._quantities.values() for name in q.outputs)
        if lacking := [name for name in needed if name not in self._outputs]:
            raise LumeDiffError(
                f"no process variable gives {lacking}, which the objective is made of: add them to pvs.outputs"
            )

    def connect(self) -> Client:
        """Return the client, made when first wanted.

        Raises:
            MissingExtraError: if there is none to be had.
        """
        if self._client is None:
            self._client = self._make_client()
        return self._client

    def settings(self) -> dict[str, float]:
        """Return where the set-points are, by input."""
        return self._read(self._setpoints)

    def put(self, settings: Mapping[str, float]) -> None:
        """Set inputs, ``{name: value}``."""
        self.connect().put({self._setpoints[name]: float(settings[name]) for name in self._setpoints}, self._timeout)

    def forward(self, settings: Mapping[str, Any]) -> dict[str, float]:
        """Set inputs, wait, and return the outputs of a VOCS and the readbacks."""
        self.put(settings)
        time.sleep(self._settle)
        found = {name: torch.tensor(v, dtype=torch.float64) for name, v in self._read(self._outputs).items()}
        made = {}
        for name, quantity in self._quantities.items():
            values = [found[output] for output in quantity.outputs]
            made[name] = float(values[0] if quantity.transform is None else quantity.transform(*values))
        return {**made, **{f"{name}_RBV": value for name, value in self._read(self._readbacks).items()}}

    def _read(self, names: Mapping[str, str]) -> dict[str, float]:
        """Return numbers by the model's names.

        Raises:
            LumeDiffError: for those that did not answer or are no numbers, all at once.
        """
        if not names:
            return {}
        readings = self.connect().get(list(names.values()), self._timeout)
        found, wrong = {}, []
        for name, pv in names.items():
            reading = readings[pv]
            value, severity = getattr(reading, "value", reading), getattr(reading, "severity", Severity.NO_ALARM)
            if severity >= Severity.INVALID or not isinstance(value, (int, float)) or not math.isfinite(value):
                wrong.append(f"{pv!r} is {value!r} {getattr(reading, 'message', '')}".rstrip())
            else:
                found[name] = float(value)
        if wrong:
            raise LumeDiffError("process variables without a valid number: " + "; ".join(wrong))
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = packed(self, ["_quantities", "_make_client"])
        return {**state, "_client": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpacked(state))


def evaluate_on_machine(settings: Mapping[str, Any], machine: ProcessVariables | str | None = None) -> dict[str, float]:
    """Return the outputs of a VOCS at settings of a machine; the function of an Xopt evaluator.

    Raises:
        LumeDiffError: without a machine, as after a dump that left it out, and for one that does not answer.
    """
    if machine is None:
        raise LumeDiffError(
            "the machine was not in the file that Xopt loaded: dump with Xopt(..., serialize_torch=True)"
        )
    found: ProcessVariables = loaded_module(machine) if isinstance(machine, str) else machine
    return found({name: settings[name] for name in found._setpoints})
