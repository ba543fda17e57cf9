"""A staged accelerator in a minute: gradients through all of it, checked, then used.

The line and its bunch are files of ``lume_diff.data``; ``lume-diff demo`` runs the functions of this package in turn.
"""

from lume_diff.demo.calibrate import find_errors, hidden_errors, measure_screens, worst_pull
from lume_diff.demo.check import GradientCheck, KnobCheck, check_gradient
from lume_diff.demo.line import KNOBS, STAGES, as_found, build_line, loss_on_image, sizes_on_image, stage_of
from lume_diff.demo.match import Iteration, Matching, match_round
from lume_diff.demo.operate import SCANNED, Scan, scan_quadrupole, slopes_of_spot, write_scan
from lume_diff.demo.pictures import take_shot, trace_envelope, write_pictures

__all__ = [
    "KNOBS",
    "SCANNED",
    "STAGES",
    "GradientCheck",
    "Iteration",
    "KnobCheck",
    "Matching",
    "Scan",
    "as_found",
    "build_line",
    "check_gradient",
    "find_errors",
    "hidden_errors",
    "loss_on_image",
    "match_round",
    "measure_screens",
    "scan_quadrupole",
    "sizes_on_image",
    "slopes_of_spot",
    "stage_of",
    "take_shot",
    "trace_envelope",
    "worst_pull",
    "write_pictures",
    "write_scan",
]
