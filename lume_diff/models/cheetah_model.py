"""CheetahModel: a beamline from Cheetah as a model with named knobs and diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lume_diff.errors import LatticeError, ShapeError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.models.line.apertures import Losses
from lume_diff.models.line.beams import as_beam
from lume_diff.models.line.bunch import TrackedBunch
from lume_diff.models.line.elements import is_number, read_segment, structure, without_graphs
from lume_diff.models.line.incoming import IncomingBeam
from lume_diff.models.line.knobs import (
    GROUP,
    MOMENTS,
    REFERENCES,
    beam_variables,
    check_names,
    knob_values,
    knob_variables,
    switch_values,
)
from lume_diff.models.line.maps import LineMaps
from lume_diff.models.line.outputs import OutputTable
from lume_diff.models.line.plan import Plan, plan_of
from lume_diff.models.line.readings import read
from lume_diff.models.line.screen_maps import ScreenMaps, screen_maps
from lume_diff.models.line.tracking import LineRun, Upstream
from lume_diff.models.report import GradientReport
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import BoolVariable

if TYPE_CHECKING:
    import cheetah


class CheetahModel(LUMEModel):
    """Track a beam along a Cheetah segment, with gradients that are right at every setting.

    Knobs are called ``"<element>.<attribute>"`` (``Q1.k1``, ``BPM1.misalignment_x``, ``SCR1.is_active``), readings
    ``BPM1.x``, ``SCR1.image``, ``<element>.sigma_x`` and so on behind any element, ``final.sigma_x`` at the end, and
    ``line.beta_x`` as an array along the line. Any scalar statistic of openPMD-beamphysics can be named behind an
    element. Pieces of a split element (``Q1#1``, ``Q1#2``) act as one.

    The reference energy and time are inputs of their own; they start as the incoming bunch's and then stay, so that
    an energy error of the bunch acts in the magnets.

    Linear stretches are one matrix each (``plan`` shows them), what nothing changes is computed once, and a knob at the
    end costs no tracking of what lies before it. Statistics that mean and covariance say exactly (sizes, centroids,
    Twiss, emittances) follow from those before the stretch, unless a gradient of the bunch itself is asked for.

    An ``nn.Parameter`` in the segment stays its owner's and is a parameter of the model too: an optimiser's step is
    seen at once, also through ``get``. A write to ``.data`` leaves no trace: calls see it, ``get`` after ``refresh``.

    With ``engine="cheetah"`` Cheetah's own ``Segment.track``, screens and monitors give everything instead, as slow and
    as differentiable as they are: no ``vmap``, and a derivative at zero strength raises, because there it is NaN.

    Args:
        segment: a ``cheetah.Segment``; it is read, never changed.
        beam: the incoming beam: a ``TorchParticleGroup``, ``TorchMoments``, ``beamphysics.ParticleGroup``, a Cheetah
            beam, or the path of an openPMD or Astra file. Moments give moments only: no images, no particles.
        controls: names of the knobs that are inputs; None for all. The bunch and its reference always are.
        outputs: names of what can be read; None for everything.
        engine: ``"auto"``, maps of our own wherever they cover the line and Cheetah elsewhere (``plan`` tells where and
            why), or ``"cheetah"``.
        losses: ``"hard"`` cuts at apertures as Cheetah does; then a gradient of the beam behind warns with the lost
            fraction, and a gradient of the transmission, or to the size of an aperture, raises. ``"soft"`` lets the
            survival probability fall smoothly; ``gradient_report`` tells how far the transmission is off for it.
        loss_width: width of the soft edge as a share of the aperture's half size: the survival probability is one half
            at the edge, 0.27 one width outside and 0.73 one width inside. A smaller width has less bias, and a gradient
            that rests on fewer particles.
        dtype, device, validation: see ``LUMEModel``.

    Raises:
        UnknownVariableError: for a control or an output that does not exist.
        LatticeError: for an empty segment, a number in it that is not finite, or an element called ``final`` or
            ``line``.
        ValidationError: for another engine or other losses, and for soft losses with ``engine="cheetah"``.

    Gradient:
        Exact, at zero strength too, of any order, forward and reverse. None through a ``histogram`` screen. With
        ``engine="cheetah"`` Cheetah's: of first order, and none at zero strength.

    Source:
        Cheetah, J. Kaiser et al., Phys. Rev. Accel. Beams 27, 054601 (2024),
        doi:10.1103/PhysRevAccelBeams.27.054601.

    Example:
        >>> import cheetah, torch
        >>> q1 = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(0.0), name="Q1")
        >>> line = cheetah.Segment([q1, cheetah.Drift(torch.tensor(1.0), name="D1")], name="line1")
        >>> beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=torch.tensor(1e8))
        >>> model = CheetahModel(line, beam, controls=["Q1.k1"], outputs=["final.sigma_x"])
        >>> k1 = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        >>> model({"Q1.k1": k1})["final.sigma_x"].backward()
        >>> bool(k1.grad.isfinite())
        True
    """

    def __init__(
        self,
        segment: cheetah.Segment,
        beam: Any,
        controls: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        *,
        engine: str = "auto",
        losses: str = "hard",
        loss_width: float = 0.02,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        if engine not in ("auto", "cheetah"):
            raise ValidationError(
                f"engine is {engine!r}; expected 'auto' (maps of our own wherever they cover the line, Cheetah "
                "elsewhere) or 'cheetah' (its own tracking for everything)"
            )
        if losses == "soft" and engine == "cheetah":
            raise ValidationError("losses='soft' with engine='cheetah': Cheetah has hard edges only, use engine='auto'")
        if losses == "difference":
            raise ValidationError(
                "losses='difference' needs finite differences over the whole line, which are not part of this version: "
                "use losses='soft', or wrap the line as a black box"
            )
        if losses not in ("hard", "soft"):
            raise ValidationError(f"losses is {losses!r}; expected 'hard' or 'soft'")
        if not 0.0 < loss_width < 1.0:
            raise ValidationError(f"loss_width is {loss_width}; expected a share of the aperture between 0 and 1")
        for word, names in (("controls", controls), ("outputs", outputs)):
            if isinstance(names, str):
                raise ValidationError(f"{word} must be a list of names, got the string {names!r}: write [{names!r}]")
        place = torch.device(device) if device is not None else torch.device("cpu")
        elements = read_segment(segment, dtype, place, engine == "cheetah")
        check_names(element.name for element in elements)
        bunch = as_beam(beam, dtype, place)
        line = LineMaps(elements, dtype, place)
        has_particles = isinstance(bunch, TorchParticleGroup)
        table = OutputTable(elements, has_particles)
        readings = table.everything() if outputs is None else [table.named(name) for name in outputs]
        if outputs is not None:
            known = {reading.variable.name for reading in readings}
            hand_over = ("final_moments", "final_particles") if has_particles else ("final_moments",)
            readings += [table.named(name) for name in hand_over if name not in known]
        knobs, initial = knob_variables(line, controls)
        beam_name = GROUP if has_particles else MOMENTS
        variables = [*knobs, *beam_variables(bunch, beam_name), *(reading.variable for reading in readings)]
        initial |= {
            beam_name: bunch,
            "reference_energy": bunch.reference_energy.detach(),
            "reference_time": bunch.reference_time.detach(),
        }
        super().__init__(variables, initial=initial, dtype=dtype, device=place, validation=validation)
        self._native = (segment,)
        self._by_cheetah = engine == "cheetah"
        self._line = line
        self._readings = {reading.variable.name: reading for reading in readings}
        self._losses = Losses(losses, loss_width)
        self._beam_name = beam_name
        self._incoming = IncomingBeam()
        self._upstream = Upstream()
        self._adopted: dict[str, tuple[int, str, nn.Parameter]] = {}
        self._adopt_parameters()

    def _adopt_parameters(self) -> None:
        """Make the segment's own trainable parameters those of the model, and the values of their knobs."""
        for key in self._adopted:
            self._parameters.pop(key, None)
        self._adopted = {}
        for position, element in enumerate(self._line.elements):
            for feature, parameter in element.parameters():
                key = f"{element.name}__{feature}".replace(".", "_")
                if self._parameters.get(key, parameter) is not parameter:  # pieces, or names that differ by a dot
                    key = f"{key}__{position}"
                self.register_parameter(key, parameter)
                self._adopted[key] = (position, feature, parameter)
        for name, value in knob_values(self._line).items():
            attribute, positions = self._line.knobs[name]
            is_trained = attribute.name in self._line.elements[positions[0]].trained
            if name in self._input_names and name not in self._rebased and is_trained:
                if self._setpoints[name] is self._baseline[name]:
                    self._setpoints = {**self._setpoints, name: value}
                self._baseline = {**self._baseline, name: value}

    # -- running ---------------------------------------------------------------------------------------------

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> LineRun:
        changed, active = self._changes(inputs)
        shapes = {value.shape for value in inputs.values() if isinstance(value, Tensor) and value.dim()}
        shapes |= {inputs[self._beam_name].batch_shape, self._line.batch_shape}
        shapes.discard(torch.Size())
        batch = tuple(torch.broadcast_shapes(*shapes)) if len(shapes) > 1 else tuple(*shapes)
        beam = self._incoming.tracked([inputs[self._beam_name], *(inputs[name] for name in REFERENCES)])
        run = LineRun(self._line, beam, changed, active, self._losses, batch, self._upstream, self._by_cheetah)
        run.before(max((self._readings[name].place for name in outputs), default=self._line.count))
        return run

    def _swapped(self) -> dict[str, Tensor]:
        """Return the knobs whose parameter ``torch.func.functional_call`` has put something else in place of."""
        found: dict[str, Tensor] = {}
        for key, (position, feature, parameter) in self._adopted.items():
            value = self._parameters[key]
            if value is None or value is parameter:
                continue
            element = self._line.elements[position]
            for attribute in element.attributes:
                if attribute.feature == feature:
                    part = value if attribute.component is None else value[..., attribute.component]
                    found[f"{element.name}.{attribute.name}"] = part
        return found

    def _changes(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, bool]]:
        """Return the knobs and the switches that are not as the segment has them."""
        changed: dict[str, Tensor] = self._swapped() if self._adopted else {}
        active: dict[str, bool] = {}
        baseline, knobs = self._baseline, self._line.knobs
        for name, value in inputs.items():
            if value is baseline[name] and name not in self._rebased:
                continue
            if name in knobs:
                changed[name] = value
            elif isinstance(self._variables[name], BoolVariable):
                if isinstance(value, Tensor) and value.numel() != 1:
                    raise ShapeError(f"{name!r} has shape {tuple(value.shape)}; a switch is one for the whole batch")
                active[name.rpartition(".")[0]] = bool(value)
        return changed, active

    def _read(self, state: LineRun, outputs: Sequence[str]) -> dict[str, Any]:
        state.along(sorted({self._readings[name].place for name in outputs}))
        return {name: read(state, self._readings[name], self._input_names) for name in outputs}

    def screen_maps(self, screen: str, inputs: Mapping[str, Any]) -> ScreenMaps | None:
        """Return how a cloud-in-cell screen sees the bunch, None where more than constant maps lies between.

        Args:
            screen: name of its image.
            inputs: values by name, ``(settings,)`` or ``()``, without the bunch.
        """
        return screen_maps(self._run(self._merged(self._checked_inputs(inputs)), ()), self._readings[screen])

    @property
    def engine(self) -> str:
        """What tracks the beam: ``"auto"`` or ``"cheetah"``."""
        return "cheetah" if self._by_cheetah else "auto"

    def plan(self) -> Plan:
        """Return how the beam passes the line at the set-points: which elements as one matrix, which alone, and why.

        Each stretch has ``engine``, ``"maps"`` or ``"cheetah"``, and the ``reason``.

        Example:
            >>> import cheetah, torch
            >>> line = cheetah.Segment([cheetah.Drift(torch.tensor(1.0), name="D1"), cheetah.Marker(name="M1")])
            >>> beam = cheetah.ParticleBeam.from_parameters(num_particles=10)
            >>> print(CheetahModel(line, beam).plan())
            1  D1 ... M1  2 elements as one matrix
        """
        with self._lock:
            changed, active = self._changes(self._setpoints)
        return plan_of(self._line, changed, active, self._losses, self._by_cheetah)

    def gradient_report(self) -> GradientReport:
        """Return how good the gradients are; with soft losses also how far these are off at the set-points.

        The notes give the width of the soft edges, and the transmission that they and hard edges leave at the
        set-points: their difference is the bias of the transmission, and says how much the soft edges change the bunch.
        """
        report = super().gradient_report()
        if self._losses.mode == "soft":
            report.notes = self._notes_on_losses()
        return report

    def _notes_on_losses(self) -> list[str]:
        with self._lock:
            inputs = self._setpoints
        if inputs[self._beam_name] is None:
            return []
        with torch.no_grad():
            bunch = self._run(inputs, ()).before(self._line.count)
            if not isinstance(bunch, TrackedBunch) or bunch.sharp is None:
                return []
            soft, hard = bunch.survival, bunch.passed(bunch.reference, alive=bunch.sharp).survival
            bias = (soft - hard).reshape(-1)
            worst = int(bias.abs().argmax())
        return [
            f"losses are soft over {self._losses.width:g} of each aperture's half size: transmission "
            f"{soft.expand(hard.shape).reshape(-1)[worst]:.6g}, with hard edges {hard.reshape(-1)[worst]:.6g}, "
            f"bias {bias[worst]:+.2g}" + (" (largest of the batch)" if bias.numel() > 1 else "")
        ]

    # -- the rest --------------------------------------------------------------------------------------------

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``(*batch,)``, without tracking.

        Raises:
            UnknownVariableError: for an element that is not in the line.

        Gradient:
            Exact.
        """
        checked = {**self._setpoints, **self._checked_inputs(inputs or {})}
        changed, _ = self._changes(checked)
        beam = checked[self._beam_name]
        energies = self._line.energies(checked["reference_energy"], changed, beam.charge_number)
        first: dict[str, int] = {}
        for position, element in enumerate(self._line.elements):
            first.setdefault(element.name, position)
        found = {}
        for name in elements:
            if name not in first:
                raise UnknownVariableError(f"there is no element {name!r} in the line{nearest_names(name, first)}")
            found[name] = energies[..., 0] if energies.shape[-1] == 1 else energies[..., first[name]]
        return found

    @property
    def simulator(self) -> cheetah.Segment:
        """The segment that the model was built from; call ``refresh()`` after changing it."""
        return self._native[0]

    def refresh(self) -> None:
        """Read the segment again: what was changed on it becomes the baseline, and knobs that were not set follow.

        A baseline that ``make_baseline`` has made stays.

        Raises:
            LatticeError: if elements were added, removed or renamed; build a new model then.
        """
        elements = read_segment(self.simulator, self.dtype, self.device, self._by_cheetah)
        if list(map(structure, elements)) != list(map(structure, self._line.elements)):
            raise LatticeError("the segment's elements are not those the model was built from: build a new model")
        line = LineMaps(elements, self.dtype, self.device)
        with self._lock:
            fresh = {**{n: v if is_number(v) else None for n, v in knob_values(line).items()}, **switch_values(line)}
            read_again = {
                name: None if fresh[name] is None else self._checked_input(name, fresh[name])
                for name in self._input_names
                if name in fresh and name not in self._rebased
            }
            untouched = [name for name in read_again if self._setpoints[name] is self._baseline[name]]
            self._setpoints = {**self._setpoints, **{name: read_again[name] for name in untouched}}
            self._baseline = {**self._baseline, **read_again}
            self._line, self._upstream = line, Upstream()
            super().refresh()
            self._adopt_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> CheetahModel:
        super()._apply(fn, recurse)
        for element in self._line.elements:
            element.convert(fn)
        self._line = LineMaps(self._line.elements, self.dtype, self.device)
        self._incoming, self._upstream = IncomingBeam(), Upstream()
        self._adopt_parameters()
        return self

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_incoming": IncomingBeam(), "_upstream": Upstream(), "_native": (without_graphs(self.simulator),)}
        return {**super().__getstate__(), **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._adopt_parameters()

    @classmethod
    def from_file(cls, lattice: str | Path, beam: Any, **options: Any) -> CheetahModel:
        """Build a model from a lattice file and a beam.

        Args:
            lattice: LatticeJSON (``.json``), Bmad (``.bmad``), Elegant (``.lte``), PALS (``.pals.yaml``), NX table
                (``.csv``) or Ocelot (``.py``, with ``trust=True`` because it is run) file.
            beam, **options: see ``CheetahModel``; and ``name`` of the line, ``trust`` and ``format``.

        Raises:
            LatticeError: for a file that does not parse, with its name and, where known, the line.
        """
        from lume_diff.models.line.files import read_lattice

        reading = {key: options.pop(key) for key in ("name", "trust", "format") if key in options}
        beam = as_beam(beam, torch.float64, torch.device("cpu"))
        return cls(read_lattice(Path(lattice), beam=beam, **reading), beam, **options)
