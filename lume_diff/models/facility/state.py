"""What one evaluation of a facility consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lume_diff.models.evaluation import Evaluation
from lume_diff.models.facility.inputs import Natives


class FacilityState:
    """The native inputs of one evaluation, and the evaluation of the model inside once something needs it.

    Attributes:
        natives: what the facility's inputs amount to.
        values: all inputs of the model inside.
        inner: its evaluation; None until an output needs it.
        earlier: one that may still hold.
        share_graphs: whether graphs of earlier evaluations may be used again.
    """

    def __init__(
        self, natives: Natives, values: Mapping[str, Any], earlier: Evaluation | None, share_graphs: bool
    ) -> None:
        self.natives, self.values, self.share_graphs = natives, values, share_graphs
        self.inner: Evaluation | None = None
        self.earlier = earlier

    @property
    def freed(self) -> bool:
        """Whether a backward has freed the graph inside."""
        return self.inner is not None and self.inner.freed
