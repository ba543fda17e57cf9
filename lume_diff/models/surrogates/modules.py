"""Pickled PyTorch modules, read by an allow-list of classes: no code of the file's choice runs."""

from __future__ import annotations

import threading
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lume_diff.errors import TrustWarning, ValidationError
from lume_diff.models.surrogates.transformers import Affine, Chained, Log10

Allowed = type | tuple[type, str]
"""A class that a file may hold, with the name it has there if that is another one."""

LAYERS = (
    *("Sequential", "ModuleList", "ModuleDict", "Identity", "Flatten", "Unflatten"),
    *("Linear", "Bilinear", "Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d", "Upsample", "PixelShuffle"),
    *("MaxPool1d", "MaxPool2d", "AvgPool1d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d"),
    *("Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "BatchNorm1d", "BatchNorm2d", "LayerNorm", "GroupNorm"),
    *("Tanh", "Sigmoid", "ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish"),
    *("Softplus", "Softsign", "Softmax", "LogSoftmax", "Hardtanh", "Hardsigmoid", "Hardswish", "LogSigmoid"),
    *("Tanhshrink", "Hardshrink", "Softshrink", "Threshold"),
)
_INPUT = "botorch.models.transforms.input"
_STAND_INS: tuple[tuple[type, str], ...] = (
    *((Affine, f"{_INPUT}.{name}") for name in ("AffineInputTransform", "Normalize", "InputStandardize")),
    (Log10, f"{_INPUT}.Log10"),
    (Chained, f"{_INPUT}.ChainedInputTransform"),
)
_LOADING = threading.Lock()  # torch's list of allowed classes is one for the process


def load_module(path: Path, allow: Iterable[Allowed] = (), allow_torchscript: bool = False) -> nn.Module:
    """Read a module that ``torch.save`` or ``torch.jit.save`` has written.

    Args:
        path: the file.
        allow: classes that the file may hold besides PyTorch's layers and BoTorch's input transforms. Their
            ``__setstate__`` runs.
        allow_torchscript: whether TorchScript, which is a program, may be loaded.

    Returns:
        The module, on the CPU.

    Raises:
        ValidationError: for a file that is missing, is not PyTorch's, or holds what is not allowed; with what to ask
            for.

    Gradient:
        None: it reads numbers.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "network.pt"
        >>> torch.save(nn.Linear(2, 1), path)
        >>> load_module(path)
        Linear(in_features=2, out_features=1, bias=True)
    """
    if not path.is_file():
        raise file_error(path, "does not exist")
    if not zipfile.is_zipfile(path):
        raise file_error(path, "is no file of torch.save, version 1.6 or later: load it there and save it again")
    if _is_torchscript(path):
        return _load_torchscript(path, allow_torchscript)
    layers = [getattr(nn, name) for name in LAYERS]
    with _LOADING, safe_globals([*layers, *_STAND_INS, *allow]):
        try:
            refused = sorted(get_unsafe_globals_in_checkpoint(path))
            module = None if refused else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes the reader stumble over
            raise file_error(path, f"cannot be read: {_first_line(error)}") from error
    if refused:
        raise file_error(
            path,
            f"holds {', '.join(refused)}, which is not among the classes that are read without running code; expected "
            "PyTorch's layers and BoTorch's input transforms. If you know these classes and trust the file, name them: "
            "allow=[TheClass]; or have the module written as TorchScript (lume-torch: dump(..., save_jit=True)) and "
            "read that with allow_torchscript=True",
        )
    if not isinstance(module, nn.Module):
        raise file_error(
            path, f"holds a {type(module).__name__}; expected a whole module, as torch.save(module, path) writes it"
        )
    return module


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_torchscript(path: Path, allowed: bool) -> nn.Module:
    if not allowed:
        raise file_error(
            path,
            "is TorchScript, a program that runs when the model does; read it with allow_torchscript=True if you trust "
            "it, or have the module written by torch.save",
        )
    warnings.warn(
        f"surrogate file {str(path)!r} is TorchScript, a program: it is loaded because allow_torchscript=True",
        TrustWarning,
        stacklevel=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module: Any = torch.jit.load(str(path), map_location="cpu")
        except Exception as error:
            raise file_error(path, f"cannot be read: {_first_line(error)}") from error
    return module


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"


def file_error(path: Path, problem: str) -> ValidationError:
    """Return an error that names the file of a surrogate."""
    return ValidationError(f"surrogate file {str(path)!r}: {problem}")
