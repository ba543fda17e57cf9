"""A field of a mapping that takes a plug-in of any kind."""

from __future__ import annotations

from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler

from lume_diff.registry import every_plugin


class Installed:
    """Make a field take any plug-in of a group that an installed package offers, told apart by ``kind``.

    Args:
        group: of entry points, without ``lume_diff.`` before it.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(_union(self.group))


@lru_cache
def _union(group: str) -> Any:
    return Annotated[reduce(or_, every_plugin(group)), Field(discriminator="kind")]
