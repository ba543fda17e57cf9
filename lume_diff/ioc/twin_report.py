"""TwinReport: how a twin stands to what it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lume_diff.control.readings import Reading
from lume_diff.ioc.followed import Followed


@dataclass(frozen=True, slots=True)
class FollowedInput:
    """One followed input.

    Attributes:
        name, remote: of the input and of what it follows.
        value: that the model has; None before the first.
        time: stamp of the last good value [s since 1970], None before the first.
        message: why it must not be trusted; empty if it may.
    """

    name: str
    remote: str
    value: Any
    time: float | None
    message: str


@dataclass(frozen=True, slots=True)
class TwinReport:
    """How a twin stands to what it follows.

    Attributes:
        inputs: by name.
        skew: between the oldest and the newest time stamp of the last good values [s].
        cycle: number of the last evaluation.
        settled: whether the model stands at the last values of all inputs, and all are trusted.
        renewed: subscriptions that had gone dead and were made anew.
        write_back: why results could not be written back; empty if they could.
    """

    inputs: Mapping[str, FollowedInput]
    skew: float
    cycle: int
    settled: bool
    renewed: int = 0
    write_back: str = ""

    @property
    def untrusted(self) -> dict[str, str]:
        """What is the matter, by the name of the input."""
        return {one.name: one.message for one in self.inputs.values() if one.message}

    def __str__(self) -> str:
        state = "settled" if self.settled else f"not settled, {len(self.untrusted)} in alarm"
        lines = [f"{len(self.inputs)} inputs followed, {state}; cycle {self.cycle}, time skew {self.skew:.3f} s"]
        lines += [f"  {name}: {message}" for name, message in self.untrusted.items()]
        if self.renewed:
            lines.append(f"  subscriptions made anew: {self.renewed}")
        if self.write_back:
            lines.append(f"  not written back: {self.write_back}")
        return "\n".join(lines)


def skew_of(inputs: Mapping[str, Followed]) -> float:
    """Return the time between the oldest and the newest last good value [s]."""
    times = [one.good.time for one in inputs.values() if one.good is not None]
    return max(times) - min(times) if times else 0.0


def followed_input(one: Followed, shown: Reading, message: str) -> FollowedInput:
    """Return what is to be told of an input."""
    time = None if one.good is None else one.good.time
    return FollowedInput(one.name, one.remote, shown.value, time, message)
