"""A live view of models and servers in the browser; the package panel is needed when it is used.

The package itself can be called: ``lume_diff.view(machine)`` makes a `LiveView`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel
    from lume_diff.view.live_view import LiveView
    from lume_diff.view.source import Source


def view(source: Source | LUMEModel, **options: Any) -> LiveView:
    """Show a model or a source in the browser.

    Args:
        source: what to show; a model is followed from then on.
        options: those of `LiveView`, such as ``writable=True``.

    Returns:
        What ``servable()`` shows in a notebook or by ``panel serve``, and ``start()`` serves from this process.

    Raises:
        MissingExtraError: if the package panel is not installed.

    Example:
        >>> import lume_diff as ld
        >>> ld.view(machine).servable()  # doctest: +SKIP
    """
    from lume_diff.view.live_view import LiveView

    return LiveView(source, **options)


class _Callable(ModuleType):
    """A package that is a function too."""

    def __call__(self, source: Source | LUMEModel, **options: Any) -> LiveView:
        return view(source, **options)


sys.modules[__name__].__class__ = _Callable
