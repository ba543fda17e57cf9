"""What the Panel library needs to be told, once, before anything is shown."""

from __future__ import annotations

from functools import cache

from lume_diff.errors import MissingExtraError


def check_extension() -> None:
    """Tell how to install the Panel library if it is not there.

    Raises:
        MissingExtraError: with the pip line.
    """
    try:
        import panel  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the live view needs the package panel: pip install 'lume-diff[view]'") from error


@cache
def load_extension() -> None:
    """Load the Panel library in a notebook, with everything that the browser needs in the notebook itself.

    Raises:
        MissingExtraError: if it is not installed.
    """
    check_extension()
    import panel as pn

    pn.extension(inline=True)
