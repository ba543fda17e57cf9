"""SessionSource: a source as one page sees it, which may write only after its token was given."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self, final

from lume_diff.errors import ReadOnlyError
from lume_diff.ioc.limits import PVLimits
from lume_diff.models import LUMEModel
from lume_diff.variables import Variable
from lume_diff.view.background import Background
from lume_diff.view.frame import Frame
from lume_diff.view.history import History
from lume_diff.view.shelf import Shelf
from lume_diff.view.source import Source, Told


@final
class SessionSource(Source):
    """Share a source with other pages, and write to it once unlocked.

    Args:
        source: of all pages, which stays open when this one is closed.
        token: that unlocks writing.
        client: who writes, for the log of writes.
    """

    def __init__(self, source: Source, token: str, client: str) -> None:
        super().__init__(sensitivity=source.sensitivity)
        self._source, self._token, self._client = source, token, client

    def unlock(self, token: str) -> bool:
        """Allow writing if the token is the right one, in the same time for every wrong one; tells whether it is."""
        if self._source.writable:
            self.writable = hmac.compare_digest(token.strip().encode(), self._token.encode())
        return self.writable

    def lock(self) -> None:
        """Allow no more writing until it is unlocked again."""
        self.writable = False

    @property
    def title(self) -> str:
        """What is shown, in a few words."""
        return self._source.title

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the readings are of."""
        return self._source.variables

    @property
    def model(self) -> LUMEModel | None:
        """The model, where there is one."""
        return self._source.model

    def limits(self, name: str) -> PVLimits:
        """Return the limits of a variable as they are now."""
        return self._source.limits(name)

    def served_derivatives(self) -> Mapping[str, Any] | None:
        """Return the response matrix that a server works out by itself."""
        return self._source.served_derivatives()

    def start(self) -> Self:
        """Nothing to do: the source is started."""
        return self

    def close(self) -> None:
        """Allow no more writing; the source goes on for others."""
        self.lock()

    def latest(self) -> Frame:
        """Return the newest frame."""
        return self._source.latest()

    def wait(self, version: int, timeout: float) -> int:
        """Wait until there is something newer than a version."""
        return self._source.wait(version, timeout)

    @cached_property
    def background(self) -> Background:
        """Shared by all pages."""
        return self._source.background

    @cached_property
    def history(self) -> History:
        """Shared by all pages."""
        return self._source.history

    @cached_property
    def shelf(self) -> Shelf:
        """Shared by all pages."""
        return self._source.shelf

    def _check_writable(self) -> None:
        if self._source.writable and not self.writable:
            raise ReadOnlyError("this page is read-only until the token is given at its top")
        super()._check_writable()

    def _write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        self._source.write(values, self._client, done)

    def _restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        self._source.restore(setpoints, self._client, done)
