"""Scan: what data of any kind over a scan of settings have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lume_diff.calibration.data.history import Step
from lume_diff.calibration.data.selection import positions, split_positions
from lume_diff.calibration.data.settings import Settings

if TYPE_CHECKING:
    import torch


class Scan(ABC):
    """Hold what was set, what else was noted, and the steps that led here; immutable, every step gives new data."""

    _settings: Settings
    _metadata: dict[str, Any]
    _history: tuple[Step, ...]

    # -- what it holds ---------------------------------------------------------------------------------------

    @property
    def settings(self) -> Mapping[str, np.ndarray]:
        """What was set, by variable name, ``(n_settings,)``; copies."""
        return {name: array.copy() for name, array in self._settings.values.items()}

    @property
    def scanned(self) -> tuple[str, ...]:
        """Names of the settings that are not the same all along."""
        return self._settings.scanned

    @property
    def distinct_settings(self) -> int:
        """Number of settings that differ; one is no scan."""
        return self._settings.distinct

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else was noted; ``(value, unit)`` where there is a unit."""
        return MappingProxyType(self._metadata)

    @property
    def history(self) -> tuple[Step, ...]:
        """The steps that led here."""
        return self._history

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """Return the settings as a model takes them, ``(n_settings,)`` each, float64 unless asked otherwise."""
        import torch

        return {n: torch.tensor(a, dtype=dtype or torch.float64) for n, a in self._settings.values.items()}

    # -- parts -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._settings.count

    def __getitem__(self, index: Any) -> Self:
        """Return the settings that an index, a slice, a list or a mask ``(n_settings,)`` selects."""
        found = positions(index, len(self))
        return self._taken(found, Step("select", {"settings": found.tolist()}, f"{found.size} of {len(self)}"))

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def split(
        self, *, every: int | None = None, offset: int = 0, fraction: float | None = None, seed: int = 0
    ) -> tuple[Self, Self]:
        """Split the settings into a part to fit and a part to check the fit on.

        Args:
            every: leave out every n-th setting, the first of them at ``offset``.
            offset: see ``every``.
            fraction: instead of ``every``, the share to fit, drawn at random.
            seed: of the draw.

        Returns:
            To fit, and left out.

        Raises:
            ValidationError: neither or both ways, or a part without settings.
        """
        given = {"every": every, "offset": offset} if every is not None else {"fraction": fraction, "seed": seed}
        parts = split_positions(len(self), every, offset, fraction, seed)
        fit, check = (
            self._taken(index, Step("split", {**given, "settings": index.tolist()}, f"the part to {use}"))
            for use, index in zip(("fit", "check"), parts, strict=True)
        )
        return fit, check

    @abstractmethod
    def _taken(self, index: np.ndarray, step: Step) -> Self:
        """Return the settings at positions ``index``, with a step more."""
