"""Make the lattices of the example machine, linac and diagnostic line, and tune their quadrupoles by gradient.

    python tools/make_example_lattices.py [FOLDER]

The layout is that of the table below; the tuning takes the beam that the injector's surrogate makes through both lines,
to a round beam with a beta of 8 m on the first screen and a smooth way there. FOLDER holds surrogate.yaml already. A
quarter of a minute; the same numbers every time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cheetah
import torch
from torch import Tensor

from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel, TorchModel
from lume_diff.models.line.lattice_writing import write_json

FOLDER = Path(__file__).parents[1] / "lume_diff" / "data" / "machine"

Row = tuple[str, type, float]  # name, class and the centre, from the exit of the injector [m]
LINAC: list[Row] = [
    ("QIN01", cheetah.Quadrupole, 0.3),
    ("QIN02", cheetah.Quadrupole, 0.9),
    ("XCIN01", cheetah.HorizontalCorrector, 1.175),
    ("YCIN01", cheetah.VerticalCorrector, 1.225),
    ("BPMIN01", cheetah.BPM, 1.4),
    ("L0B", cheetah.Cavity, 3.3),
    ("BPMIN02", cheetah.BPM, 5.1),
]
DIAG0: list[Row] = [
    ("QDG01", cheetah.Quadrupole, 5.5),
    ("QDG02", cheetah.Quadrupole, 6.1),
    ("XCDG01", cheetah.HorizontalCorrector, 6.375),
    ("YCDG01", cheetah.VerticalCorrector, 6.425),
    ("QDG03", cheetah.Quadrupole, 6.7),
    ("BPMDG01", cheetah.BPM, 6.9),
    ("QDG04", cheetah.Quadrupole, 7.3),
    ("BPMDG02", cheetah.BPM, 7.6),
    ("OTRDG02", cheetah.Screen, 9.3),
    ("WSDG01", cheetah.Marker, 9.8),
    ("BPMDG03", cheetah.BPM, 10.4),
    ("OTRDG04", cheetah.Screen, 11.3),
]
LINAC_END, DIAG0_END = 5.2, 11.5  # [m]
LENGTHS = {
    **{cheetah.Quadrupole: 0.1, cheetah.Cavity: 3.0},
    **{cheetah.HorizontalCorrector: 0.05, cheetah.VerticalCorrector: 0.05},
}
PIXELS, PIXEL_SIZE = (480, 360), 10e-6  # columns and rows, [m]
VOLTAGE, FREQUENCY = 71e6, 2.856e9  # [V], [Hz]

#: Where the tuning starts [1/m^2], and what it aims at.
START = {"QIN01.k1": 12.0, "QIN02.k1": -8.0, "QDG01.k1": 2.0, "QDG02.k1": -2.0, "QDG03.k1": 2.0, "QDG04.k1": -1.0}
ROUND_BETA, CALM_BETA = 8.0, 12.0  # on the screen; along the line [m]
STEPS = 60


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def element(name: str, kind: type) -> cheetah.Element:
    """Return one element, without a field."""
    if kind is cheetah.Cavity:
        return kind(number(LENGTHS[kind]), number(VOLTAGE), number(0.0), number(FREQUENCY), name=name)
    if kind is cheetah.Screen:
        size = torch.full((2,), PIXEL_SIZE, dtype=torch.float64)
        return kind(PIXELS, size, is_active=name == "OTRDG02", name=name)
    if kind is cheetah.BPM:
        return kind(is_active=True, name=name)
    return kind(name=name) if kind is cheetah.Marker else kind(number(LENGTHS[kind]), number(0.0), name=name)


def segment(name: str, rows: Sequence[Row], start: float, end: float) -> cheetah.Segment:
    """Return a line with drifts between its elements."""
    elements: list[cheetah.Element] = []
    here = start
    for index, (own, kind, centre) in enumerate([*rows, ("", cheetah.Marker, end)]):
        half = 0.5 * LENGTHS.get(kind, 0.0)
        elements.append(cheetah.Drift(number(round(centre - half - here, 9)), name=f"D{name}{index:02d}"))
        here = centre + half
        elements += [element(own, kind)] if own else []
    return cheetah.Segment(elements, name=name)


def machine(folder: Path) -> StagedModel:
    """Return the injector's surrogate and both lines."""
    surrogate = TorchModel.from_file(folder / "surrogate.yaml")
    start = {name: float(surrogate.get(name)) for name in surrogate.output_names}
    stages: dict[str, LUMEModel] = {
        "surrogate": surrogate,
        "bunch": BunchFromMoments(1000, charge=float(surrogate.get("bunch_charge")) * 1e-12, **start),
    }
    for name, rows, begin, end in (("linac", LINAC, 0.0, LINAC_END), ("diag0", DIAG0, LINAC_END, DIAG0_END)):
        beam = list(stages.values())[-1].get("final_particles")
        stages[name] = CheetahModel(segment(name, rows, begin, end), beam)
    return StagedModel(stages, {f"bunch/{name}": f"surrogate/{name}" for name in start})


def cost(found: dict[str, Tensor]) -> Tensor:
    """Return how far the beam is from round on the screen, and how large it gets on its way."""
    on_screen = torch.stack([torch.log(found[f"OTRDG02.beta_{plane}"] / ROUND_BETA) for plane in "xy"])
    slopes = torch.stack([found[f"OTRDG02.alpha_{plane}"] for plane in "xy"])
    along = torch.cat([found[f"{stage}/line.beta_{plane}"] for stage in ("linac", "diag0") for plane in "xy"])
    return (
        on_screen.square().sum()
        + 0.1 * slopes.square().sum()
        + 3e-3 * torch.log(along / CALM_BETA).relu().square().sum()
    )


def tuned(model: StagedModel) -> dict[str, float]:
    """Return the strengths of all quadrupoles [1/m^2]."""
    names = list(START)
    strengths = torch.tensor(list(START.values()), dtype=torch.float64, requires_grad=True)
    outputs = [f"OTRDG02.{word}_{plane}" for word in ("beta", "alpha") for plane in "xy"]
    outputs += [f"{stage}/line.beta_{plane}" for stage in ("linac", "diag0") for plane in "xy"]
    optimiser = torch.optim.LBFGS([strengths], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = cost(model(dict(zip(names, strengths, strict=True)), outputs=outputs))
        value.backward()
        return value

    optimiser.step(closure)
    print(f"cost {float(closure().detach()):.3g}")
    found = {name: round(value, 3) for name, value in zip(names, strengths.tolist(), strict=True)}
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    model = machine(folder)
    strengths = tuned(model)
    for name in ("linac", "diag0"):
        line = model.stages[name].simulator
        for magnet in line.elements:
            if (key := f"{magnet.name}.k1") in strengths:
                magnet.k1 = number(strengths[key])
                print(f"{key} = {strengths[key]:.3f} 1/m^2")
        write_json(line, folder / f"{name}.json")


if __name__ == "__main__":
    main()
