"""Training: the epochs of a reconstruction, shape first and pointing after, kept on disk as they go."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lume_diff.calibration.reconstruction.member import Member
from lume_diff.errors import CalibrationError, ValidationError
from lume_diff.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction

_MACHINE_RATE = 5.0  # times the rate of the shape
_POINTING = 0.1  # of the epochs, ...
_FEWEST = 40  # ... at least
_POINTING_RATE = 10.0  # times the rate of the shape
_KEPT = 10  # states over the epochs of a member
_AGAIN = 0.15  # of the epochs of the first member, for each that goes on from it


#: Told after every epoch: member, epoch, loss.
Listener = Callable[[int, int, float], None]


class Options(NamedTuple):
    """How to fit; see ``BeamReconstruction.run``."""

    epochs: int
    ensemble: int = 5
    rate: float = 1e-2
    size_weight: float = 0.3
    entropy_weight: float = 0.0
    pointing: bool = True
    fresh: bool = True


class Epoch(NamedTuple):
    """One epoch: of which member, what was fitted, and the mean distances of images."""

    member: int
    part: str
    loss: float
    aligned: float
    image: float


def optimiser_of(member: Member, rate: float, shape: bool) -> torch.optim.Optimizer:
    """Return an optimiser of the shape of a member's bunch and of the machine, or else of its pointing.

    Gradients are to be set to zero, not to None.
    """
    member.generator.requires_grad_(shape)
    member.coordinates.requires_grad_(shape)
    member.offset.requires_grad_(not shape)
    groups: list[dict[str, Any]] = [{"params": [member.offset], "lr": _POINTING_RATE * rate}]
    if shape:
        groups = [{"params": joined(member.generator), "lr": rate}]
        # These are in widths of their priors, which may have to be crossed.
        groups += [{"params": [member.coordinates], "lr": _MACHINE_RATE * rate}] * bool(len(member.coordinates))
    return torch.optim.Adam(groups, fused=True)


def joined(module: nn.Module) -> list[nn.Parameter]:
    """Return all parameters of a module as one for each precision, so that a step of an optimiser is one operation.

    Their gradients become one as well, which is to be set to zero, not to None.
    """
    found = []
    for dtype in dict.fromkeys(parameter.dtype for parameter in module.parameters()):
        parts = [parameter for parameter in module.parameters() if parameter.dtype is dtype]
        whole = nn.Parameter(torch.cat([part.detach().flatten() for part in parts]))
        whole.grad = torch.zeros_like(whole)
        places = itertools.pairwise(itertools.accumulate((part.numel() for part in parts), initial=0))
        for part, (start, stop) in zip(parts, places, strict=True):
            part.data = whole.data[start:stop].view_as(part)
            part.grad = whole.grad[start:stop].view_as(part)
        found.append(whole)
    return found


class Training:
    """Fit the members of an ensemble one after the other.

    Args:
        task: what is fitted.
        options: of the fit.
        checkpoint, progress: see ``BeamReconstruction.run``.

    Attributes:
        history: every epoch.
        finished: False where Ctrl-C has stopped it.
    """

    def __init__(
        self,
        task: BeamReconstruction,
        options: Options,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Listener = False,
    ) -> None:
        self._task = task
        self._options = options
        self._file = None if checkpoint is None else Path(checkpoint)
        self._progress = progress
        self._bar: Any = None
        self.history: list[Epoch] = []
        self.finished = False
        self._identity = "" if self._file is None else self._identified()
        self._state = self._stored()

    def _identified(self) -> str:
        """Return a text that changes with what the fit depends on, but for how its design bunch was drawn."""
        task, entrance = self._task, self._task.entrance
        numbers = (entrance.energy, entrance.sigma_energy, entrance.sigma_t)
        design = [f"{float(number):.{digits}g}" for number, digits in zip(numbers, (4, 2, 2), strict=True)]
        digests = [screen.data.digest for screen in task.screens]
        fixed = (digests, task.n_particles, task.seed, task.dimensions, task.variant, entrance.scale.tolist())
        made = task.generator(task.seed)
        model = fingerprint(task.model, without=("initial_particles",))
        return repr((*fixed, design, self._options, task.parameters, made, model))

    # -- epochs ----------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Fit the members and return them; after Ctrl-C the first as it is, and those others that are finished."""
        found: list[Member] = []
        options = self._options
        epochs = [options.epochs] + [max(round(_AGAIN * options.epochs), 1)] * (options.ensemble - 1)
        fewest = [_FEWEST] + [round(_AGAIN * _FEWEST)] * (options.ensemble - 1)
        extra = [max(round(_POINTING * n), few) * options.pointing for n, few in zip(epochs, fewest, strict=True)]
        self._show_bar(sum(epochs) + sum(extra))
        try:
            for index in range(options.ensemble):
                member = self._task.new_member(index, found[0] if found else None)
                if not found:
                    found.append(member)
                self._fit(member, index, "shape", epochs[index])
                self._fit(member, index, "pointing", extra[index])
                if index:
                    found.append(member)
            self.finished = True
        except KeyboardInterrupt:
            if not self.history:
                raise
        finally:
            if self._bar is not None:
                self._bar.stop()
        return found

    def _fit(self, member: Member, index: int, part: str, epochs: int) -> None:
        known = self._state.get(f"{index} {part}")
        options, shape = self._options, part == "shape"
        optimiser = optimiser_of(member, options.rate, shape)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(epochs, 1))
        first = 0
        if known is not None:
            member.load_state_dict(known["member"])
            optimiser.load_state_dict(known["optimiser"])
            schedule.load_state_dict(known["schedule"])
            first = known["epoch"]
            self.history += [Epoch(*row) for row in known["history"]]
        begun = len(self.history) - first
        for epoch in range(first, epochs):
            optimiser.zero_grad(set_to_none=False)
            if shape:
                points = member.other_points(self._task.seed + 7919 * index + epoch + 1) if options.fresh else None
                loss, distance = self._task.loss(member, options.size_weight, options.entropy_weight, points)
            else:
                distance = self._task.distances(member)
                loss = distance.image.dot(member.shares.to(distance.image.dtype))
            if not bool(torch.isfinite(loss)):
                raise CalibrationError(
                    f"the loss is not finite at epoch {epoch}: lower the rate "
                    f"({self._options.rate:g}) or check the model's range"
                )
            loss.backward()
            optimiser.step()
            schedule.step()
            numbers = (loss, distance.aligned.mean(), distance.image.mean())
            self.history.append(Epoch(index, part, *(float(number.detach()) for number in numbers)))
            self._tell(index, epoch)
            if (epoch + 1) % max(epochs // _KEPT, 1) == 0 or epoch + 1 == epochs:
                state = {
                    "member": member.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "epoch": epoch + 1,
                    "history": [list(row) for row in self.history[begun:]],
                }
                self._keep(f"{index} {part}", state)

    # -- progress --------------------------------------------------------------------------------------------

    def _show_bar(self, total: int) -> None:
        if self._progress is not True:
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, disable=not console.is_terminal)
        self._task_id = self._bar.add_task("reconstruction", total=total)
        self._bar.start()

    def _tell(self, index: int, epoch: int) -> None:
        row = self.history[-1]
        if callable(self._progress):
            self._progress(index, epoch, row.loss)
        elif self._bar is not None:
            self._bar.update(self._task_id, advance=1, description=f"{row.part} {index + 1}: images {row.image:.3f}")

    # -- checkpoint ------------------------------------------------------------------------------------------

    def _stored(self) -> dict[str, Any]:
        if self._file is None or not self._file.exists():
            return {}
        try:
            stored = torch.load(self._file, weights_only=True)
        except Exception as error:
            raise ValidationError(f"{str(self._file)!r} is no checkpoint of a reconstruction: {error}") from error
        if stored.get("identity") != self._identity:
            raise ValidationError(
                f"checkpoint {str(self._file)!r} is of a fit with another model, other data or options; "
                "name another file, or remove it"
            )
        return dict(stored["states"])

    def _keep(self, name: str, state: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._state[name] = copy.deepcopy(state)
        part = self._file.with_name(self._file.name + ".part")
        torch.save({"identity": self._identity, "states": self._state}, part)
        os.replace(part, self._file)
