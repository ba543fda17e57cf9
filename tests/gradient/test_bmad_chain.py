"""A differentiable line, a Bmad line and a differentiable line again: one gradient through all three."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.bmad.session import check_installed
from lume_diff.errors import MissingExtraError

try:
    check_installed()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.gradient

MIDDLE = ("Q5.k1", "Q6.k1")
LINE = """
parameter[geometry] = open
parameter[particle] = electron
beginning[e_tot] = 1e8
beginning[beta_a] = 3
beginning[beta_b] = 2
q5: quadrupole, l = 0.2, k1 = 3
d5: drift, l = 0.5
s1: sextupole, l = 0.1, k2 = 100
d6: drift, l = 0.3
q6: quadrupole, l = 0.2, k1 = -3
d7: drift, l = 0.2
middle: line = (q5, d5, s1, d6, q6, d7)
use, middle
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, screen_chain: Any) -> Iterator[Any]:
    deck = tmp_path_factory.mktemp("chain") / "middle.bmad"
    deck.write_text(LINE)
    made = screen_chain(
        lambda beam: BmadModel(deck, controls=list(MIDDLE), outputs=["S1.beta_x", "final_particles"], beam=beam)
    )
    with made.linac:
        yield made


def test_gradient_of_a_screen_with_respect_to_all_stages(chain: Any) -> None:
    chain.check_gradient()


def test_all_particles_come_out(chain: Any) -> None:
    chain.check_particles()
