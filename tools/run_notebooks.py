"""Run notebooks and keep what they print and draw: `make notebooks`, after a change that shows in them."""

from __future__ import annotations

import base64
import io
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

#: What a run leaves behind that says nothing to a reader and differs from machine to machine.
_METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def run(path: Path) -> None:
    """Execute a notebook in a folder that goes away, and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": folder}})
        client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    notebook.metadata = nbformat.from_dict({**_METADATA, "language_info": {"name": "python"}})
    nbformat.write(notebook, path)


def _smaller(picture: str) -> str:
    """Return a plot in 256 colours, which it can do with: a third of the size in the repository."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    stream = io.BytesIO()
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(stream, "png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def main() -> None:
    """Run the notebooks that are named on the command line."""
    os.environ.pop("MPLBACKEND", None)  # pictures go into the notebook
    os.environ["OMP_NUM_THREADS"] = "1"  # on such small tensors threads wait for each other, three times as long
    for path in map(Path, sys.argv[1:]):
        began, before = time.perf_counter(), _cpu_of_kernels()
        run(path)
        wall, spent = time.perf_counter() - began, _cpu_of_kernels() - before
        print(f"{path.name}: {wall:.1f} s, {spent:.1f} s of CPU, {path.stat().st_size / 1e3:.0f} kB")


def _cpu_of_kernels() -> float:
    """Return the CPU time of all processes that have ended [s]."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
