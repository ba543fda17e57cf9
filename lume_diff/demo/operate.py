"""The example machine by its control-system names: gradients by kG and MV, and a quadrupole scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lume_diff.models import LUMEModel

MACHINE_SCREEN = "OTRS:DIAG0:420"
SCANNED = "QUAD:DIAG0:260:BCTRL"
#: What is changed, and by how much for a difference [unit of the variable].
_KNOBS = {
    "CAMR:IN20:186:R_DIST": 1.0,
    "SOLN:IN20:121:BCTRL": 2e-4,
    "QUAD:IN20:121:BCTRL": 5e-3,
    "ACCL:IN20:400:L0B_ADES": 0.1,
    "QUAD:DIAG0:190:BCTRL": 5e-3,
    SCANNED: 5e-3,
}
_POINTS = 61


@dataclass(frozen=True)
class Scan:
    """Sizes on the screen while one quadrupole is scanned.

    Attributes:
        field: of the quadrupole [kG].
        sizes: rms, horizontal and vertical [um], ``(2, n)``.
    """

    field: Tensor
    sizes: Tensor

    @property
    def waists(self) -> Tensor:
        """The fields with the smallest beam in x and y [kG], ``(2,)``."""
        return self.field[self.sizes.argmin(-1)]

    @property
    def passes_both(self) -> bool:
        """Whether both waists lie inside the scan."""
        at = self.sizes.argmin(-1)
        return bool(((at > 0) & (at < len(self.field) - 1)).all())


def spot_size(image: Tensor, resolution: Tensor) -> Tensor:
    """Return the rms radius of an image [um].

    Args:
        image: ``(ny, nx)``.
        resolution: side of a pixel [um].

    Gradient:
        Exact.
    """
    square = torch.zeros((), dtype=image.dtype)
    for axis in (0, 1):
        profile = image.sum(1 - axis) / image.sum()
        pixel = torch.arange(len(profile), dtype=image.dtype)
        square = square + (profile * (pixel - (profile * pixel).sum()).square()).sum()
    return resolution * square.sqrt()


def slopes_of_spot(machine: LUMEModel) -> dict[str, tuple[float, float]]:
    """Differentiate the size of the beam's image by settings of all stages.

    Returns:
        For each variable the derivative [um per its unit], by backpropagation through the image, and by a difference of
        the size that the particles have, which is the image's but for its pixels.
    """
    image, resolution = f"{MACHINE_SCREEN}:IMAGE", f"{MACHINE_SCREEN}:RESOLUTION"
    leaves = {name: machine.get(name).detach().clone().requires_grad_() for name in _KNOBS}
    found = machine(leaves, outputs=[image, resolution])
    spot_size(found[image], found[resolution]).backward()
    names = [f"{MACHINE_SCREEN}:{plane}RMS" for plane in "XY"]
    slopes = {}
    for name, step in _KNOBS.items():
        with torch.no_grad():
            at = leaves[name] + step * torch.tensor([-1.0, 1.0], dtype=torch.float64)
            low, high = torch.stack(list(machine({name: at}, outputs=names).values())).norm(dim=0).tolist()
        gradient = leaves[name].grad
        slopes[name] = (0.0 if gradient is None else float(gradient), (high - low) / (2.0 * step))
    return slopes


@torch.no_grad()
def scan_quadrupole(machine: LUMEModel) -> Scan:
    """Scan the last quadrupole before the screen over all of its range."""
    low, high = machine.supported_variables[SCANNED].value_range  # type: ignore[attr-defined]
    field = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    names = [f"{MACHINE_SCREEN}:{plane}RMS" for plane in "XY"]
    return Scan(field, torch.stack(list(machine({SCANNED: field}, outputs=names).values())))


@torch.no_grad()
def write_scan(machine: LUMEModel, scan: Scan, path: Path) -> None:
    """Draw a scan: the sizes, and the images at both waists and at the setting of the machine.

    Args:
        machine: the machine.
        scan: of its quadrupole.
        path: of the picture.
    """
    from lume_diff.plotting.lattice import new_figure

    figure = new_figure(9.0, 6.0)
    panels = figure.subplot_mosaic([["scan"] * 3, [0, 1, 2]], height_ratios=[1.3, 1.0])
    axes = panels["scan"]
    for sizes, label in zip(scan.sizes.numpy(), ("x", "y"), strict=True):
        axes.plot(scan.field.numpy(), sizes, label=label)
    now = float(machine.get(SCANNED))
    axes.axvline(now, color="0.6", linestyle=":")
    axes.set(xlabel=f"{SCANNED} [kG]", ylabel="rms size [µm]", title=f"Quadrupole scan on {MACHINE_SCREEN}")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False)
    size = float(machine.get(f"{MACHINE_SCREEN}:RESOLUTION")) * 1e-3
    for number, field in enumerate(sorted([*scan.waists.tolist(), now])):
        panel = panels[number]
        image = _image(machine, {SCANNED: field})
        edges = (0.5 * size * image.shape[1], 0.5 * size * image.shape[0])
        extent = (-edges[0], edges[0], -edges[1], edges[1])
        panel.imshow(image.numpy(), origin="lower", extent=extent, cmap="viridis", interpolation="nearest")
        panel.set(title=f"{field:.2f} kG", xlabel="x [mm]", ylabel="y [mm]", xlim=(-1.2, 1.2), ylim=(-0.9, 0.9))
    figure.savefig(path)


def _image(machine: LUMEModel, settings: Mapping[str, float]) -> Tensor:
    name = f"{MACHINE_SCREEN}:IMAGE"
    image: Tensor = machine(settings, outputs=[name])[name]
    return image
