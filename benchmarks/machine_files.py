"""How long it takes to load and to check machine files of a thousand variables: at most 1 s is wanted.

Three files: limits and descriptions of 1000 native knobs, a mapping that spells 1000 control-system names out, and one
that makes them by templates from a table. A quarter of the names are setpoints in kG that go by the live energy. The
packages are imported before; times are those of the processor, and the best of several runs counts. `build` is what the
model takes without a file.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _rows import Row, note

from lume_diff.machine import check, load_model
from lume_diff.machine.nodes import parse
from lume_diff.models import CheetahModel

MAGNETS = 250
REPEATS = 3
HEAD = """\
model:
  backend: cheetah
  lattice: line.json
  beam: {mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 6, norm_emit_x: 1e-6, norm_emit_y: 1e-6}
"""
TEMPLATES = """\
mapping:
  templates:
    quad:
      BCTRL:
        {kind: setpoint, native: "{element}.k1", unit: kG, conversion: {kind: quadrupole_field}, value_range: [-90, 90]}
      BACT: {kind: readback, of: "{name}:BCTRL"}
      BMIN: {kind: limit, of: "{name}:BCTRL", end: low}
      BMAX: {kind: limit, of: "{name}:BCTRL", end: high}
  elements: {file: names.csv}
"""


def best(work: Callable[[], object]) -> float:
    """Return the shortest time [s] of several runs."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def write(folder: Path) -> dict[str, Path]:
    """Write lattice, table and machine files."""
    elements: dict[str, list[object]] = {}
    for n in range(MAGNETS):
        elements[f"Q{n}"] = ["Quadrupole", {"length": 0.1, "k1": 0.5 - n % 2}]
        elements[f"D{n}"] = ["Drift", {"length": 0.5}]
    lattice = {"root": "line", "elements": elements, "lattices": {"line": list(elements)}}
    (folder / "line.json").write_text(json.dumps(lattice))
    rows = "".join(f"Q{n},QUAD:L:{n},quad\n" for n in range(MAGNETS))
    (folder / "names.csv").write_text("element,name,class\n" + rows)
    limits = ["k1: {value_range: [-5, 5], alarm_range: [-4, 4]", "tilt: {value_range: [-1e-2, 1e-2]"]
    limits += [f"misalignment_{plane}: {{value_range: [-1e-3, 1e-3]" for plane in "xy"]
    native = [f"  Q{n}.{text}, description: knob of magnet {n}}}" for n in range(MAGNETS) for text in limits]
    names = []
    for n in range(MAGNETS):
        field = "conversion: {kind: quadrupole_field}, value_range: [-90, 90]"
        names.append(f'    "QUAD:L:{n}:BCTRL": {{kind: setpoint, native: Q{n}.k1, unit: kG, {field}}}')
        names.append(f'    "QUAD:L:{n}:BACT": {{kind: readback, of: "QUAD:L:{n}:BCTRL"}}')
        names += [
            f'    "QUAD:L:{n}:{name}": {{kind: limit, of: "QUAD:L:{n}:BCTRL", end: {end}}}'
            for name, end in (("BMIN", "low"), ("BMAX", "high"))
        ]
    texts = {
        "limits of native names": "variables:\n" + "\n".join(native),
        "mapping, spelt out": "mapping:\n  variables:\n" + "\n".join(names),
        "mapping, by templates": TEMPLATES,
    }
    files = {}
    for number, (title, text) in enumerate(texts.items()):
        files[title] = folder / f"machine{number}.yaml"
        files[title].write_text(f"{HEAD}{text}\n")
    return files


def main() -> None:
    """Print the time of every step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = write(folder)
        beam = load_model(files["limits of native names"]).get("initial_particles")
        build = best(lambda: CheetahModel.from_file(folder / "line.json", beam))
        print(f"line of {2 * MAGNETS} elements without a file: build {build:.3f} s")
        for title, path in files.items():
            text = path.read_text()
            problems = check(path)
            assert not problems, problems[:3]
            count = len(load_model(path).supported_variables)
            parsed, checked = best(lambda text=text: parse(text, [])), best(lambda path=path: check(path))
            loaded = best(lambda path=path: load_model(path))
            note(
                Row("machine files", f"load {title}, {count} variables, over building", loaded - build, "s", wanted=1.0)
            )
            note(Row("machine files", f"check {title}, {count} variables", checked, "s"))
            print(
                f"{title:24} {count:6} variables: YAML {parsed:.3f} s, check {checked:.3f} s, load {loaded:.3f} s "
                f"({loaded - build:.3f} s over building the line; wanted: at most 1 s)"
            )


if __name__ == "__main__":
    main()
