"""What one run of a chain consists of: the evaluations of its stages, and those of earlier runs that may still hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import forward_ad

from lume_diff.errors import LumeDiffError
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.transforms import in_transform


class StagedState(dict[str, Evaluation]):
    """The evaluations of the stages that have run, and those of an earlier run that may still hold."""

    def __init__(self, inputs: Mapping[str, Any], previous: StagedState | None, share_graphs: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.earlier: dict[str, Evaluation] = {} if previous is None else {**previous.earlier, **previous}
        self.share_graphs = share_graphs

    @property
    def freed(self) -> bool:
        """Whether a backward has freed the graph of any stage."""
        return any(evaluation.freed for evaluation in self.values())


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Say in an error's message in which stage it happened."""
    try:
        yield
    except LumeDiffError as error:
        error.args = (f"in stage {name!r}: {error}", *error.args[1:])
        raise


def is_equal(old: Any, new: Any) -> bool:
    """Tell whether two values are the same numbers, or the same text, and neither has a graph."""
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return isinstance(old, str) and old == new
    if old.requires_grad or new.requires_grad or old.dtype != new.dtype or old.device != new.device:
        return False
    return torch.equal(old, new)


def settled(checked: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked values, an equal one as the object that is known already: what depends on it is not run again.

    Under a transform all stay as they are.
    """
    if in_transform() or forward_ad._current_level >= 0:
        return dict(checked)
    return {name: known[name] if is_equal(known.get(name), value) else value for name, value in checked.items()}
