"""What TorchParticleGroup and TorchMoments share: an immutable bundle of float tensors that is a torch pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Static:
    """What a bundle carries besides tensors: species, ids and notes.

    Equality decides whether two pytrees have the same structure; it compares ids by value and leaves the
    notes out.
    """

    __slots__ = ("charge_number", "id", "mass", "notes", "species")

    def __init__(
        self, species: str, mass: float, charge_number: float, id: Tensor | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self.species = species
        self.mass = mass
        self.charge_number = charge_number
        self.id = id
        self.notes = notes

    def replace(self, **changes: Any) -> Static:
        """Return a copy with some entries changed."""
        return Static(**({name: getattr(self, name) for name in self.__slots__} | changes))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static):
            return NotImplemented
        if (self.species, self.mass, self.charge_number) != (other.species, other.mass, other.charge_number):
            return False
        if self.id is other.id:
            return True
        if self.id is None or other.id is None or self.id.device != other.id.device:
            return False
        return torch.equal(self.id, other.id)

    def __hash__(self) -> int:
        return hash((self.species, self.mass, self.charge_number))

    def __reduce__(self) -> tuple[Any, ...]:
        return Static, (self.species, self.mass, self.charge_number, self.id, self.notes)


class TensorBundle:
    """Base of the immutable bundles; a subclass names its tensors in ``_leaf_names``.

    Laws: leaves are float tensors only, the rest is static; rebuilding from leaves (`_from_leaves`) checks
    nothing, because vmap and jacfwd rebuild with placeholders; copies and pickles hold detached values.
    """

    __slots__ = ("_static",)
    _leaf_names: ClassVar[tuple[str, ...]] = ()
    _static: Static

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pytree.register_pytree_node(
            cls,
            lambda bundle: ([getattr(bundle, name) for name in bundle._leaf_names], bundle._static),
            cls._from_leaves,
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda bundle: (
                [(pytree.GetAttrKey(name), getattr(bundle, name)) for name in bundle._leaf_names],
                bundle._static,
            ),
        )

    @classmethod
    def _from_leaves(cls, leaves: Iterable[Any], static: Static) -> Self:
        bundle = object.__new__(cls)
        for name, leaf in zip(cls._leaf_names, leaves, strict=True):
            object.__setattr__(bundle, name, leaf)
        object.__setattr__(bundle, "_static", static)
        return bundle

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: use .replace({name}=...) to get a changed copy")

    def _leaves(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._leaf_names}

    def _map(self, function: Callable[[Tensor], Tensor], static: Static | None = None) -> Self:
        return self._from_leaves(map(function, self._leaves().values()), self._static if static is None else static)

    def _with(self, static: Static | None = None, **leaves: Tensor) -> Self:
        """Return a copy with some leaves replaced by tensors of the right shape, unchecked."""
        return self._from_leaves((self._leaves() | leaves).values(), self._static if static is None else static)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a dtype or device, with the arguments of `torch.Tensor.to`.

        Returns:
            A copy, or as of a tensor the same object where nothing changes; ids move with the device and stay integers.

        Gradient: exact.
        """
        moved = self._map(lambda tensor: tensor.to(*args, **kwargs))
        if all(getattr(moved, name) is getattr(self, name) for name in self._leaf_names):
            return self
        if self._static.id is None:
            return moved
        return moved._with(static=self._static.replace(id=self._static.id.to(device=moved.device)))

    def detach(self) -> Self:
        """Return the same values without gradient history."""
        return self._map(lambda tensor: tensor.detach())

    def clone(self) -> Self:
        """Return a copy in new memory that keeps the gradient history."""
        return self._map(lambda tensor: tensor.clone())

    @property
    def species(self) -> str:
        """The species name."""
        return self._static.species

    @property
    def mass(self) -> float:
        """The rest energy of one particle [eV]."""
        return self._static.mass

    @property
    def charge_number(self) -> float:
        """The charge of one particle [elementary charges]."""
        return self._static.charge_number

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the values on the way here, in words."""
        return self._static.notes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all tensors."""
        return getattr(self, self._leaf_names[0]).dtype

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return getattr(self, self._leaf_names[0]).device

    @property
    def requires_grad(self) -> bool:
        """Whether any tensor carries a gradient."""
        return any(tensor.requires_grad for tensor in self._leaves().values())

    def __copy__(self) -> Self:
        return self._map(lambda tensor: tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self._map(lambda tensor: tensor.detach().clone())
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), [tensor.detach() for tensor in self._leaves().values()], self._static)


def _rebuild(cls: type[TensorBundle], leaves: list[Tensor], static: Static) -> TensorBundle:
    return cls._from_leaves(leaves, static)
