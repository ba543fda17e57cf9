"""Pictures of beamlines and beams: no window, no pyplot, matplotlib loaded when a picture is made."""

from lume_diff.plotting.beams import Shot, plot_beams
from lume_diff.plotting.envelope import Envelope, plot_envelopes
from lume_diff.plotting.lattice import LineElement, draw_lattice, elements_along
from lume_diff.plotting.sensitivity import Sensitivity, plot_sensitivities
from lume_diff.plotting.units import prefixed, pretty_unit, quantity

__all__ = [
    "Envelope",
    "LineElement",
    "Sensitivity",
    "Shot",
    "draw_lattice",
    "elements_along",
    "plot_beams",
    "plot_envelopes",
    "plot_sensitivities",
    "prefixed",
    "pretty_unit",
    "quantity",
]
