"""The JSON Schema of machine files, for editors that complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from lume_diff.machine.backend import backend_class
from lume_diff.machine.description import Machine
from lume_diff.registry import plugins

_REF = "#/$defs/{model}"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of machine files, with every backend that is installed.

    Returns:
        The schema (draft 2020-12) as plain data. An editor finds it by a first line
        ``# yaml-language-server: $schema=machine.schema.json``.

    Example:
        >>> "stages" in schema()["properties"]
        True
    """
    whole = TypeAdapter(Machine).json_schema(ref_template=_REF)
    defs = whole.setdefault("$defs", {})
    names = []
    for name in plugins("models"):
        found = TypeAdapter(backend_class(name)).json_schema(ref_template=_REF)
        defs.update(found.pop("$defs", {}))
        found["properties"]["backend"] = {"const": name, "description": "which code"}
        defs[f"backend {name}"] = found
        names.append({"$ref": _REF.format(model=f"backend {name}")})
    defs["Backend"] = {
        "description": "a model: a section with its backend, or another machine file",
        "oneOf": [{"type": "string"}, *names],
    }
    fields = whole["properties"]
    chain = defs["backend staged"]["properties"]
    fields |= {
        "model": {"$ref": _REF.format(model="Backend")},
        "stages": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"$ref": _REF.format(model="Backend")},
            "description": "models in the order of the beam",
        },
        "links": chain["links"],
    }
    chain["stages"] = fields["stages"]
    whole.pop("required", None)
    whole["oneOf"] = [{"required": ["model"]}, {"required": ["stages"]}]
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    whole["title"] = "lume_diff machine file"
    return whole
