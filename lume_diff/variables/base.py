"""The contract of every variable: a description of a value that never holds one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import pydantic
import torch
from pydantic import BaseModel, ConfigDict, field_validator, model_serializer

from lume_diff.errors import LumeDiffError, UnitError, ValidationError, nearest_names, shortened
from lume_diff.variables.limits import Policy, check_policy
from lume_diff.variables.units import parse_unit


class Variable(BaseModel, ABC):
    """Describe one value of a model: its name, unit, type, shape and limits.

    Variables are immutable, compare by content and pickle. Definitions written for LUME load as they are: the
    deprecated ``is_constant`` means ``read_only``, and an element ``dtype`` is checked and dropped, because
    values are cast to the model's.

    Args:
        name: any non-empty text; dots, slashes and colons are fine.
        description: free text.
        unit: of the value, such as ``"1/m^2"``; ``""`` or None for a pure number.
        read_only: True for an output.
        default_value: the value that a model starts from, None where it has none.
        default_validation_config: what happens to a value outside its limits where the caller does not say:
            ``"error"`` (default for inputs), ``"warn"`` (default where ``read_only``) or ``"none"``.

    Raises:
        ValidationError: a field is unknown, missing or wrong.
        UnitError: the unit is not known.
        ShapeError: the default value does not have the declared shape.
    """

    # Building a class's validator takes milliseconds: the first instance pays, not the import.
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)

    upstream_names: ClassVar[tuple[str, ...]] = ()
    """Other names under which a definition file may know the class."""

    upstream_fields: ClassVar[dict[str, str]] = {"is_constant": "read_only"}
    """Fields of LUME with another name here."""

    upstream_dtype: ClassVar[bool] = False
    """Whether LUME's class has a ``dtype``."""

    name: str
    description: str = ""
    unit: str = ""
    read_only: bool = False
    default_value: Any = None
    default_validation_config: Policy = "error"

    def __init__(self, **data: Any) -> None:
        data = _from_upstream(type(self), data)
        try:
            super().__init__(**data)
        except pydantic.ValidationError as error:
            raise _translate(type(self), data, error) from None
        try:
            parse_unit(self.unit)
        except UnitError as error:
            raise UnitError(f"variable {self.name!r}: {error}") from None
        if self.read_only and "default_validation_config" not in self.model_fields_set:
            self._keep(default_validation_config="warn")
        self._complete()

    # What a subclass writes

    @abstractmethod
    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Any:
        """Return the value as the model uses it, or raise.

        Args:
            value: what was received, in the variable's unit.
            dtype: the dtype that floats are cast to.
            device: where tensors go; None leaves them where they are.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a value outside its limits; None for the variable's own.

        Returns:
            The coerced value; a tensor of the right dtype and device is returned as it is.

        Raises:
            ValidationError: the value is of the wrong kind, not finite, or outside its limits.
            ShapeError: its shape does not fit.

        Gradient: exact. Inside torch.func transforms numbers cannot be read, and only shapes are checked.
        """

    @property
    @abstractmethod
    def is_differentiable(self) -> bool:
        """Whether values are float tensors, or made of them, and so carry a gradient."""

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the leading dimensions of a validated value that are not part of one value."""
        return torch.Size(())

    def _complete(self) -> None:
        """Check fields against each other and keep what `validate_value` needs at hand."""

    # Life cycle

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked like a new one.

        Args:
            changes: field names and their new values.

        Returns:
            The new variable; what was derived from other fields, such as ``scale``, is derived again.

        Raises:
            ValidationError: a field is unknown or wrong.

        Example:
            >>> from lume_diff.variables import TorchScalarVariable
            >>> TorchScalarVariable(name="Q1.k1", unit="1/m^2").replace(name="QUAD:1:K").name
            'QUAD:1:K'
        """
        return type(self)(**(self._given() | changes))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields changed and checked; the same as `replace`."""
        return self.replace(**(update or {}))

    @classmethod
    def model_validate(cls, obj: Any, **kwargs: Any) -> Self:
        """Return a variable made from a mapping of its fields, with this package's errors."""
        if isinstance(obj, Mapping):
            return cls(**obj)
        return super().model_validate(obj, **kwargs)

    @model_serializer(mode="plain")
    def _serialize(self) -> dict[str, Any]:
        from lume_diff.variables.serialization import to_dict

        return to_dict(self)

    def _given(self) -> dict[str, Any]:
        """Return the fields that were given, in the order of declaration."""
        return {field: getattr(self, field) for field in type(self).model_fields if field in self.model_fields_set}

    def _policy(self, config: str | None) -> str:
        """Return the policy to use, or raise ValidationError for one that there is not."""
        policy = self.default_validation_config if config is None else config
        check_policy(self.name, policy)
        return policy

    def _check_default(self) -> None:
        """Replace a default value by what `validate_value` makes of it, whatever the policy."""
        if self.default_value is None:
            return
        try:
            self._keep(default_value=self.validate_value(self.default_value, config="error"))
        except LumeDiffError as error:
            raise type(error)(f"{error} (given as default_value)") from None

    def _keep(self, **derived: Any) -> None:
        """Store derived things past the frozen fields; they are no part of a dump."""
        self.__dict__.update(derived)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ValidationError(
            f"variable {self.name!r}: {name!r} cannot be set, variables are immutable; use variable.replace({name}=...)"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise ValidationError(f"variable {self.name!r}: {name!r} cannot be deleted, variables are immutable")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._given())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Variable) or type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, f), getattr(other, f)) for f in type(self).model_fields)

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for field, value in self._given().items():
            is_array = isinstance(value, np.ndarray) and value.size > 8
            yield field, f"<array of shape {value.shape}>" if is_array else value

    # Fields

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError("expected a non-empty string")
        return str(value)

    @field_validator("description", "unit", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> str:
        if value is not None and not isinstance(value, str):
            raise ValueError("expected a string")
        return value or ""


def _rebuild(cls: type[Variable], fields: dict[str, Any]) -> Variable:
    return cls(**fields)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _from_upstream(cls: type[Variable], data: dict[str, Any]) -> dict[str, Any]:
    """Return fields in this package's names where LUME has others."""
    data = dict(data)
    name = data.get("name")
    declared = data.pop("variable_class", None)
    if declared is not None and str(declared) not in (cls.__name__, *cls.upstream_names):
        raise ValidationError(
            f"variable {name!r}: variable_class={declared!r} given to {cls.__name__}; use lume_diff.variables.from_dict"
        )
    for theirs, ours in cls.upstream_fields.items():
        if theirs in data:
            data.setdefault(ours, data.pop(theirs))
    if data.get("default_validation_config", "") is None:
        del data["default_validation_config"]
    config = data.get("default_validation_config")
    if isinstance(config, str):  # upstream's enumeration is a str too
        data["default_validation_config"] = str(getattr(config, "value", config))
    if cls.upstream_dtype and "dtype" in data:
        _check_dtype(name, data.pop("dtype"))
    return data


def _check_dtype(name: Any, dtype: Any) -> None:
    """Refuse an element dtype that is not one of real numbers; others are the model's business."""
    if dtype is None:
        return
    text = str(dtype).removeprefix("torch.")
    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype) or found is torch.bool or found.is_complex:
        raise ValidationError(
            f"variable {name!r}: dtype={text!r} is not a dtype of real numbers; leave it out, the model's dtype is used"
        )


def _translate(cls: type[Variable], data: Mapping[str, Any], error: pydantic.ValidationError) -> LumeDiffError:
    """Return pydantic's findings as one error of this package."""
    name = data.get("name")
    found: list[str] = []
    kind: type[LumeDiffError] = ValidationError
    for detail in error.errors(include_url=False):
        field = str(detail["loc"][0]) if detail["loc"] else "fields"
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, LumeDiffError):
            kind = type(cause)
        if detail["type"] == "extra_forbidden":
            found.append(f"{field!r} is not a field of {cls.__name__}{nearest_names(field, cls.model_fields)}")
        elif detail["type"] == "missing":
            found.append(f"field {field!r} of {cls.__name__} is missing; give it")
        else:
            words = str(cause) if cause is not None else detail["msg"][:1].lower() + detail["msg"][1:]
            found.append(f"{field}={_short(detail['input'])}: {words}")
    return kind(f"variable {name!r}: " + "; ".join(dict.fromkeys(found)))


def _short(value: Any) -> str:
    return shortened(" ".join(repr(value).split()), 80)


def subclasses(cls: type[Variable] = Variable) -> Iterable[type[Variable]]:
    """Yield every concrete class of variable that has been imported."""
    for sub in cls.__subclasses__():
        if not getattr(sub, "__abstractmethods__", None):
            yield sub
        yield from subclasses(sub)
