"""The laws that every model must keep; run them on your own with ``check_model``.

Each law is a function of its own and says in its first line what it demands. They use only the public interface, so
they hold for networks, tracked lines, black boxes and chains alike.
"""

from lume_diff.testing.check import LAWS, check_model
from lume_diff.testing.trial import LawViolation, Trial

__all__ = ["LAWS", "LawViolation", "Trial", "check_model"]
