"""What the Panel library needs to be told, once, before anything is shown."""

from __future__ import annotations

from functools import cache

from lume_diff.errors import MissingExtraError


@cache
def load_extension() -> None:
    """Load the Panel library, with everything that a browser needs served from this computer.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import panel as pn
    except ImportError as error:
        raise MissingExtraError("the live view needs the package panel: pip install 'lume-diff[view]'") from error
    pn.extension(inline=True)
