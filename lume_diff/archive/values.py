"""Plain values of a run as bytes without pickle, and a key that is the same for the same run."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from lume_diff.errors import ValidationError

_SCALARS = (bool, np.bool_, int, np.integer, float, np.floating, str, type(None))
_GROUP_FIELDS = ("x", "px", "y", "py", "z", "pz", "t", "status", "weight", "id")


def _is_bunch(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("x", "pz", "weight", "species"))


def _array(value: Any) -> np.ndarray | None:
    """Return an array, or lists, of numbers as an array; None for anything else."""
    if isinstance(value, (list, tuple)):
        try:
            value = np.array(value)
        except ValueError:  # lists of different lengths
            return None
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None


def can_keep(value: Any) -> bool:
    """Tell whether ``pack`` takes a value."""
    return isinstance(value, _SCALARS) or _array(value) is not None or _is_bunch(value)


def pack(values: Mapping[str, Any]) -> bytes:
    """Return values as one NPZ file: arrays as they are, numbers and strings in a JSON header.

    Args:
        values: floats, integers, booleans, strings, None, numpy arrays and ``beamphysics.ParticleGroup``; lists of
            numbers, which become arrays.

    Raises:
        ValidationError: for anything else.
    """
    header: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if isinstance(value, (bool, np.bool_)):
            header[name] = {"bool": bool(value)}
        elif isinstance(value, (int, np.integer)):
            header[name] = {"int": int(value)}
        elif isinstance(value, (float, np.floating)):
            header[name] = {"float": float(value).hex()}
        elif isinstance(value, str) or value is None:
            header[name] = {"text": value}
        elif (array := _array(value)) is not None:
            header[name] = {"array": len(arrays)}
            arrays[f"a{len(arrays)}"] = array
        elif _is_bunch(value):
            members = {}
            for field in _GROUP_FIELDS:
                members[field] = len(arrays)
                arrays[f"a{len(arrays)}"] = np.asarray(getattr(value, field))
            header[name] = {"bunch": members, "species": str(value.species)}
        else:
            raise ValidationError(
                f"{name!r} is of type {type(value).__name__}, which an archive cannot keep; expected a number, a "
                "string, an array of numbers or a beamphysics.ParticleGroup"
            )
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(buffer, header=text, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """Return the values that ``pack`` was given."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes().decode())
        found: dict[str, Any] = {}
        for name, entry in header.items():
            if "float" in entry:
                found[name] = float.fromhex(entry["float"])
            elif "array" in entry:
                found[name] = file[f"a{entry['array']}"]
            elif "bunch" in entry:
                from beamphysics import ParticleGroup

                fields = {field: file[f"a{index}"] for field, index in entry["bunch"].items()}
                found[name] = ParticleGroup(data={**fields, "species": entry["species"]})
            else:
                (found[name],) = entry.values()
    return found


def run_key(identity: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of a run: a hash of the simulator's ``identity`` and of every bit of its ``inputs``."""
    digest = hashlib.sha256(identity.encode())
    for name in sorted(inputs):
        value = inputs[name]
        digest.update(b"\0" + name.encode() + b"\0")
        if isinstance(value, (float, np.floating)):
            digest.update(struct.pack("<d", float(value) + 0.0))  # -0.0 is 0.0
        elif isinstance(value, np.ndarray):
            digest.update(str((value.dtype.str, value.shape)).encode() + np.ascontiguousarray(value).tobytes())
        elif _is_bunch(value):
            digest.update(str(value.species).encode())
            for field in _GROUP_FIELDS:
                digest.update(np.ascontiguousarray(getattr(value, field)).tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for people and tables: numbers and strings as they are, the rest described."""
    short: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            short[name] = f"array {value.shape}"
        elif _is_bunch(value):
            short[name] = f"{len(value)} particles"
        else:
            short[name] = value.item() if isinstance(value, np.generic) else value
    return short
