"""How much `import lume_diff` adds to `import torch`: at most 0.3 s is wanted.

Each import runs in a fresh interpreter, the two in turn, and the best CPU time of several counts.
"""

from __future__ import annotations

import subprocess
import sys

from _rows import Row, note

REPEATS = 7
CODE = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


def seconds(statement: str) -> float:
    """Return the CPU time [s] that an import takes in a fresh interpreter."""
    command = [sys.executable, "-c", CODE.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print both times, the difference and the ratio."""
    pairs = [(seconds("torch"), seconds("torch, lume_diff")) for _ in range(REPEATS)]
    torch_alone, both = (min(times) for times in zip(*pairs, strict=True))
    note(Row("import", "import lume_diff adds to import torch", both - torch_alone, "s", wanted=0.3))
    print(f"import torch             {torch_alone:.3f} s")
    print(f"import torch, lume_diff  {both:.3f} s   ratio {both / torch_alone:.2f}")
    print(f"added                    {both - torch_alone:.3f} s   (wanted: at most 0.300 s)")


if __name__ == "__main__":
    main()
