"""The response matrix that a server works out is shown as it is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("p4p")

from lume_diff.control.pva import PVAClient
from lume_diff.errors import GradientError
from lume_diff.ioc import Server
from lume_diff.view.panels.beamline import Beamline
from lume_diff.view.panels.optics import Optics
from lume_diff.view.panels.phase_space import PhaseSpace
from lume_diff.view.panels.response_matrix import ResponseMatrix
from lume_diff.view.pv_source import PVSource
from tests.system.ioc.conftest import free_ports, settings_of
from tests.unit.ioc.conftest import Magnet
from tests.unit.view.conftest import eventually


def test_the_table_of_a_server_is_the_jacobian():
    settings = settings_of(free_ports())
    made = Server(Magnet(), "M:", ("pva",), settings=settings, search=0.0, response_matrix=True)
    with made as server, PVAClient(settings) as client:
        server.wait_ready(60.0)
        with PVSource("M:", client, timeout=20.0) as source:
            assert eventually(lambda: ResponseMatrix.suits(source))
            assert not any(kind.suits(source) for kind in (Beamline, Optics, PhaseSpace))  # the model is elsewhere
            panel = ResponseMatrix(source, way="per unit")
            panel.view()
            assert eventually(lambda: panel._derivatives(source.latest()) is not None)
            panel.update(source.latest())
            cells = panel._cells.data
            pairs = zip(cells["output"], cells["knob"], strict=True)
            shown = dict(zip(pairs, cells["value"], strict=True))
            assert shown["field", "current"] == pytest.approx(2.0)
            assert shown["force", "current"] == pytest.approx(10.0)
            assert not np.isnan(list(shown.values())).any()
            server.response._done(GradientError("given up"))
            assert eventually(lambda: bool(panel._derivatives(source.latest()).error))
            panel.update(source.latest())
            assert panel._veil._box.visible
            assert "of earlier settings: given up" in panel._notice._shown
            assert ResponseMatrix.suits(source)
