"""``python -m lume_diff.cli`` is ``lume-diff``."""

from __future__ import annotations

from lume_diff.cli import main

if __name__ == "__main__":
    main()
