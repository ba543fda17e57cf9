"""Transformers as lume-torch dumps them, without the packages that they were made with.

The classes stand in for those of BoTorch when a file is read: they take over the numbers of the pickled objects, and
nothing else of them is used. Unlike BoTorch's they change nothing when they are called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """Shift and scale columns: ``(x - offset) / coefficient``.

    Stands in for BoTorch's ``AffineInputTransform``, ``Normalize`` and ``InputStandardize``.
    """

    _coefficient: Tensor
    _offset: Tensor
    reverse = False
    """Whether the way forward is the way back."""

    def forward(self, x: Tensor) -> Tensor:
        return self._back(x) if self.reverse else self._there(x)

    def untransform(self, x: Tensor) -> Tensor:
        """Undo the transformation."""
        return self._there(x) if self.reverse else self._back(x)

    def _there(self, x: Tensor) -> Tensor:
        return _placed(self, x, (_chosen(self, x) - self._offset) / self._coefficient)

    def _back(self, x: Tensor) -> Tensor:
        return _placed(self, x, self._coefficient * _chosen(self, x) + self._offset)


class Log10(nn.Module):
    """Take the decimal logarithm of columns; stands in for BoTorch's class of that name."""

    reverse = False

    def forward(self, x: Tensor) -> Tensor:
        return self._back(x) if self.reverse else self._there(x)

    def untransform(self, x: Tensor) -> Tensor:
        """Undo the transformation."""
        return self._there(x) if self.reverse else self._back(x)

    def _there(self, x: Tensor) -> Tensor:
        return _placed(self, x, _chosen(self, x).log10())

    def _back(self, x: Tensor) -> Tensor:
        return _placed(self, x, 10.0 ** _chosen(self, x))


class Chained(nn.ModuleDict):
    """Apply transformers in a row; stands in for BoTorch's ``ChainedInputTransform``.

    It cannot be undone: lume-torch applies it to outputs as it stands, other than a transform alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        for step in self.values():
            x = step(x)
        return x


class UndoneLinear(nn.Module):
    """Undo a linear layer, which lume-torch does with one that transforms outputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, y: Tensor) -> Tensor:
        shifted = y if self.linear.bias is None else y - self.linear.bias
        return shifted @ torch.linalg.inv(self.linear.weight.T)


def _chosen(transformer: nn.Module, x: Tensor) -> Tensor:
    """Return the columns that a transformer is for."""
    indices = transformer._buffers.get("indices")
    return x if indices is None else x.index_select(-1, indices)


def _placed(transformer: nn.Module, x: Tensor, columns: Tensor) -> Tensor:
    """Return all columns, with new ones in the places of those that a transformer is for."""
    indices = transformer._buffers.get("indices")
    return columns if indices is None else x.index_copy(-1, indices, columns)
