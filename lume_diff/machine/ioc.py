"""What a machine file says about the server of a model; nothing is served here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lume_diff.machine.sections import OutFile, Positive, Section

Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class AllowSection(Section):
    """``{hosts: [10.0.0.5], users: [operator]}``: who may write; a guard against mistakes, not against attackers."""

    hosts: Names | None = None
    users: Names | None = None


class SettlingSection(Section):
    """``{rate: 0.5, delay: 0.2}``: how the machine follows a set-point.

    Attributes:
        rate: fastest change [unit of the set-point/s]; at once if it is not given.
        delay: before it begins to change [s].
    """

    rate: Positive | None = None
    delay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0


class IocSection(Section):
    """``{prefix: "VA:", protocols: [pva, ca], isolation: process, timeout: 60}``.

    Attributes:
        prefix: before the name of every variable.
        protocols: that are spoken.
        interface: address that the server listens on.
        isolation: whether the model runs in a process of its own.
        timeout: how long an evaluation may take [s]; needs a process.
        ordered: whether every put is evaluated in turn, none overtaken.
        read_only: whether no write is taken at all.
        allow: who may write.
        autosave: file that keeps the set-points.
        restore: what the server starts from, these or the set-points of this file.
        write_log: file of accepted and refused writes.
        writable_limits: whether DRVL and DRVH can be written.
        rate_hz: of a shot clock that redraws noise.
        settling: how set-points are reached, by name, where that takes time.
        largest_array: elements of an array that is written.
        sensitivity: whether the live response matrix is served.
        health_port: of a probe by HTTP.
    """

    prefix: str = ""
    protocols: Annotated[list[Literal["pva", "ca"]], Field(min_length=1)] = Field(default=["pva"])
    interface: str = "127.0.0.1"
    isolation: Literal["process", "thread"] = "process"
    timeout: Positive | None = None
    ordered: bool = False
    read_only: bool = False
    allow: AllowSection | None = None
    autosave: OutFile | None = None
    restore: Literal["last", "default"] = "default"
    write_log: OutFile | None = None
    writable_limits: bool = False
    rate_hz: Positive | None = None
    settling: dict[str, SettlingSection] | None = None
    largest_array: Annotated[int, Field(ge=1)] = 10_000_000
    sensitivity: bool = False
    health_port: Annotated[int, Field(ge=1, le=65535)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> IocSection:
        if self.timeout is not None and self.isolation == "thread":
            raise ValueError("'timeout' needs 'isolation: process': a thread cannot be ended")
        if self.restore == "last" and self.autosave is None:
            raise ValueError("'restore: last' needs 'autosave', a file to restore from")
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError("'protocols' names one twice")
        return self
