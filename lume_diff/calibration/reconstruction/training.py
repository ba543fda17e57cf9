"""Training: the epochs of a reconstruction, shape first and pointing after, kept on disk as they go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lume_diff.calibration.reconstruction.member import Member
from lume_diff.errors import CalibrationError, ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction

_POINTING = 0.2  # of the epochs
_POINTING_RATE = 10.0  # times the rate of the shape
_KEPT = 10  # states over the epochs of a member


class Epoch(NamedTuple):
    """One epoch: of which member, what was fitted, and the mean distances of images."""

    member: int
    part: str
    loss: float
    aligned: float
    image: float


class Training:
    """Fit the members of an ensemble one after the other.

    Args:
        task: what is fitted.
        epochs, ensemble, rate, size_weight, checkpoint, progress: see ``BeamReconstruction.run``.

    Attributes:
        history: every epoch.
        finished: False where Ctrl-C has stopped it.
    """

    def __init__(
        self,
        task: BeamReconstruction,
        epochs: int,
        ensemble: int,
        rate: float,
        size_weight: float,
        checkpoint: str | os.PathLike[str] | None,
        progress: Any,
    ) -> None:
        self._task = task
        self._epochs, self._ensemble, self._rate, self._size_weight = epochs, ensemble, rate, size_weight
        self._file = None if checkpoint is None else Path(checkpoint)
        self._progress = progress
        self._bar: Any = None
        self.history: list[Epoch] = []
        self.finished = False
        identity = (task.data.digest, task.n_particles, task.seed, task.dimensions, epochs, ensemble, rate, size_weight)
        self._identity = repr((*identity, [repr(p) for p in task.parameters], task.frame.scale.tolist()))
        self._state = self._stored()

    # -- epochs ----------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Fit all members and return those that were at least begun."""
        found: list[Member] = []
        pointing = max(round(_POINTING * self._epochs), 1)
        self._show_bar(self._ensemble * (self._epochs + pointing))
        try:
            for index in range(self._ensemble):
                member = self._task.new_member(index)
                found.append(member)
                self._fit(member, index, "shape", self._epochs)
                self._fit(member, index, "pointing", pointing)
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
        shape = part == "shape"
        fitted = [*member.generator.parameters(), member.coordinates] if shape else [member.offset]
        rate = self._rate if shape else _POINTING_RATE * self._rate
        optimiser = torch.optim.Adam(fitted, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        first = 0
        if known is not None:
            member.load_state_dict(known["member"])
            optimiser.load_state_dict(known["optimiser"])
            schedule.load_state_dict(known["schedule"])
            first = known["epoch"]
            self.history += [Epoch(*row) for row in known["history"]]
        begun = len(self.history) - first
        for epoch in range(first, epochs):
            optimiser.zero_grad()
            if shape:
                loss, distance = self._task.loss(member, self._size_weight)
            else:
                distance = self._task.distances(member)
                loss = distance.image[member.settings].mean()
            if not bool(torch.isfinite(loss)):
                raise CalibrationError(
                    f"the loss is not finite at epoch {epoch}: lower the rate ({self._rate:g}) or check the model's range"
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
                f"checkpoint {str(self._file)!r} is of a fit with other data or options; name another file, or remove it"
            )
        return dict(stored["states"])

    def _keep(self, name: str, state: dict[str, Any]) -> None:
        self._state[name] = state
        if self._file is None:
            return
        part = self._file.with_name(self._file.name + ".part")
        torch.save({"identity": self._identity, "states": self._state}, part)
        os.replace(part, self._file)
