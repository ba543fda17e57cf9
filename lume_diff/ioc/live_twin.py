"""LiveTwin: a model that follows a machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from lume_diff.control.client import ControlClient, client_of
from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.control.saved_states import read_state
from lume_diff.errors import SimulatorError, ValidationError
from lume_diff.ioc.followed import Followed
from lume_diff.ioc.follower import Follower
from lume_diff.ioc.server import Server
from lume_diff.ioc.twin_links import check_links, links_of
from lume_diff.ioc.twin_report import TwinReport, followed_input, skew_of
from lume_diff.ioc.update_command import UpdateCommand
from lume_diff.ioc.watchdog import Watchdog
from lume_diff.ioc.write_back import WriteBack
from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable, IntVariable, TorchScalarVariable, Variable

#: Service variables of a twin.
SKEW, UNTRUSTED, UPDATE = "TWIN:SKEW", "TWIN:UNTRUSTED", "TWIN:UPDATE"


class LiveTwin:
    """Follow the process variables of a machine with a model, and serve it too if that is asked.

    A remote value that is stale, disconnected, INVALID or out of range is never used: its input keeps the last good
    value and is INVALID, and so is every output, with the reason, until a good value has been evaluated. Followed
    inputs cannot be written by the clients of the twin.

    Args:
        model: any model, under whose names the inputs go: those of a facility, with a mapping.
        remote: name of the remote variable by the name of the input; a list of inputs, or ``"same"`` for all of
            them, where the names are equal.
        mode: ``"monitor"``: follow every change. ``"snapshot"``: `update` reads all once, as does a client that
            writes True to ``TWIN:UPDATE``, and `load` takes a saved state.
        client: ``"pva"``, ``"ca"`` or another entry point of ``lume_diff.clients``, or a client.
        write_back: name of the remote variable by the name of the output; no other is ever written.
        max_age: oldest time stamp that is trusted [s]; set-points that are seldom changed have old ones.
        watch_every: time between looks at every remote variable [s].
        answer_timeout: for answers of the remote variables [s].
        prefix, protocols: the twin is served as `Server` does, by no protocol unless some are named.
        options: others of `Server`, such as the ``timeout`` of an evaluation. With ``isolation="process"`` the model in
            this process stays as it is: read the twin by `get`.

    Raises:
        ValidationError: with all that is wrong with ``remote`` and ``write_back``, for an unknown mode or client, or a
            time that is not positive.
        MissingExtraError: for a client or protocol whose package is not installed.

    Example:
        with LiveTwin(machine, remote={"QUAD:1:BCTRL": "QUAD:1:BCTRL"}) as twin:
            twin.wait_settled(10.0)
            print(twin.get("beam.sigma_x").value)
    """

    def __init__(
        self,
        model: LUMEModel,
        remote: Mapping[str, str] | Iterable[str],
        mode: Literal["monitor", "snapshot"] = "monitor",
        client: str | ControlClient = "pva",
        *,
        write_back: Mapping[str, str] | None = None,
        max_age: float | None = None,
        watch_every: float = 5.0,
        answer_timeout: float = 5.0,
        prefix: str = "",
        protocols: Sequence[str] = (),
        **options: Any,
    ) -> None:
        if mode not in ("monitor", "snapshot"):
            raise ValidationError(f"mode={mode!r}; expected 'monitor' or 'snapshot'")
        for name, seconds in (("watch_every", watch_every), ("answer_timeout", answer_timeout), ("max_age", max_age)):
            if seconds is not None and not seconds > 0.0:
                raise ValidationError(f"{name}={seconds}; expected a positive number of seconds")
        links = links_of(model.supported_variables, remote)
        own = prefix if protocols else None
        check_links(model.supported_variables, links, write_back or {}, options.get("names"), own)
        self.model, self.mode = model, mode
        status: list[tuple[Variable, Any]] = [
            (TorchScalarVariable(name=SKEW, unit="s", description="between time stamps", read_only=True), 0.0),
            (IntVariable(name=UNTRUSTED, description="followed inputs in alarm", read_only=True), len(links)),
        ]
        commands = {}
        if mode == "snapshot":
            command = UpdateCommand(self.update, lambda: self.server.runtime.cycle)
            status.append((BoolVariable(name=UPDATE, description="write True to read everything once"), False))
            commands[UPDATE] = command.ask
        self.server = Server(model, prefix, protocols, status=status, commands=commands, **options)
        variables, limits = self.server.runtime.variables, self.server.limits
        followed = [Followed(variables[name], other, limits, max_age) for name, other in links.items()]
        self._follower = Follower(self.server.runtime, followed, UNTRUSTED)
        self.remotes = list(dict.fromkeys(links.values()))  #: names of the remote variables
        self._timeout = answer_timeout
        self._owns_client = isinstance(client, str)
        self._client = client_of(client)
        self._watchdog = Watchdog(
            self._client, self.remotes, self._follower.take, self._look, watch_every, answer_timeout
        )
        self._write_back = WriteBack(self._client, write_back, answer_timeout) if write_back else None
        self._began = False

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to follow, and go online if the twin is served.

        Raises:
            SimulatorError: if it was started before.
        """
        if self._began:
            raise SimulatorError("this twin has been started before: make a new one")
        self._began = True
        try:
            self.server.start()
            self._follower.start()
            if self._write_back is not None:
                self.server.runtime.add(self._write_back)
                self._write_back.start()
            if self.mode == "monitor":
                self._watchdog.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Follow no more, and go offline; may be called again."""
        self._watchdog.stop()
        self._follower.stop()
        if self._write_back is not None:
            self._write_back.stop()
        self.server.stop()
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self if self._began else self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # -- states ----------------------------------------------------------------------------------------------

    def update(self, timeout: float | None = None) -> TwinReport:
        """Read all remote variables once, and evaluate the model.

        Args:
            timeout: for the model [s], None for ever.

        Returns:
            How the twin stands; what did not answer is in alarm.

        Raises:
            ValidationError: unless the mode is ``"snapshot"``.
            TimeoutError: if the model takes longer.
        """
        self._check_snapshot("update")
        return self._take(self._client.get(self.remotes, timeout=self._timeout), timeout)

    def load(self, state: str | os.PathLike[str] | Mapping[str, Reading], timeout: float | None = None) -> TwinReport:
        """Take a saved state, and evaluate the model; what is missing in it is in alarm.

        Args:
            state: a YAML or CSV file, see `read_state`, or readings by the name of the remote variable, such as
                `archived_state` returns.
            timeout: for the model [s], None for ever.

        Returns:
            How the twin stands.

        Raises:
            ValidationError: unless the mode is ``"snapshot"``, and for a file that is no saved state.
            TimeoutError: if the model takes longer.
        """
        self._check_snapshot("load")
        readings = state if isinstance(state, Mapping) else read_state(state)
        return self._take({name: readings.get(name, _missing(name)) for name in self.remotes}, timeout)

    def _check_snapshot(self, what: str) -> None:
        if self.mode != "snapshot":
            raise ValidationError(
                f"{what}() is for a twin with mode='snapshot'; this one follows every change by itself"
            )

    def _take(self, readings: Mapping[str, Reading], timeout: float | None) -> TwinReport:
        self._follower.take(readings)
        if not self._follower.wait(False, timeout):
            raise TimeoutError(f"the model is still busy after {timeout} s")
        self._look()
        return self.report()

    # -- looking ---------------------------------------------------------------------------------------------

    def wait_settled(self, timeout: float | None = None) -> TwinReport:
        """Wait until the model stands at the last values of all followed inputs, and all are trusted.

        Args:
            timeout: how long [s], None for ever.

        Raises:
            TimeoutError: if that takes longer; with what is the matter.
        """
        if not self._follower.wait(True, timeout):
            raise TimeoutError(f"the twin has not settled within {timeout} s: {self.report()}")
        return self.report()

    def report(self) -> TwinReport:
        """Return how the twin stands to what it follows."""
        runtime, follower, messages = self.server.runtime, self._follower, self._follower.untrusted()
        return TwinReport(
            {
                name: followed_input(one, runtime.reading(name), messages.get(name, ""))
                for name, one in follower.inputs.items()
            },
            skew_of(follower.inputs),
            runtime.cycle,
            follower.wait(True, 0.0),
            self._watchdog.renewed,
            "" if self._write_back is None else self._write_back.error,
        )

    def get(self, name: str) -> Reading:
        """Return what is shown of a variable: value, alarm and time."""
        return self.server.get(name)

    def set(self, values: Mapping[str, Any], timeout: float | None = None) -> int:
        """Write inputs that are not followed; see `Server.set`."""
        return self.server.set(values, timeout)

    def _look(self) -> None:
        """Show the skew, and look at ages."""
        self.server.runtime.show({SKEW: skew_of(self._follower.inputs)})
        self._follower.check()


def _missing(name: str) -> Reading:
    return Reading(None, time.time(), 0, Severity.INVALID, Condition.UNTRUSTED, f"{name} is not in the saved state")
