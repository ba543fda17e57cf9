"""A durable store of simulator runs."""

from lume_diff.archive.store import Run, RunArchive
from lume_diff.archive.values import can_keep, run_key

__all__ = ["Run", "RunArchive", "can_keep", "run_key"]
