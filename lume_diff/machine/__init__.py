"""Machine files: a model, its settings and its server described by one YAML file that runs nothing."""

from lume_diff.machine.backend import Backend
from lume_diff.machine.checking import check
from lume_diff.machine.description import Machine
from lume_diff.machine.example import example_machine
from lume_diff.machine.ioc import IocSection
from lume_diff.machine.json_schema import schema
from lume_diff.machine.loading import build, load_model
from lume_diff.machine.problems import Problem
from lume_diff.machine.reading import read_machine as read
from lume_diff.machine.saving import save_model

__all__ = [
    "Backend",
    "IocSection",
    "Machine",
    "Problem",
    "build",
    "check",
    "example_machine",
    "load_model",
    "read",
    "save_model",
    "schema",
]
