"""What every piece of a facility mapping is: immutable plain data with no field that nobody reads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A piece of a mapping; unknown keys are refused, and a schema for editors comes with it."""

    # Building a class's validator takes milliseconds: the first instance pays, not the import.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def model_post_init(self, _: Any) -> None:
        """Count ``kind`` as given, so that a dump of what was given can be read again."""
        if "kind" in type(self).model_fields:
            self.model_fields_set.add("kind")
