"""Train the injector surrogate of the example machine on a simulation of ours, and write lume_diff/data/machine.

    python tools/make_injector_surrogate.py [FOLDER]

The injector is invented, in the manner of an S-band photoinjector: what leaves the gun follows from the laser spot and
the charge by the scaling laws below; a solenoid, a drift and an accelerating structure take it to the entrance of the
linac, tracked by CheetahModel with particles, so that the curvature of the RF is in the energy spread. Forces between
particles are in the laws of the gun only. The charge passes by the network: it stays what it was set to. A minute on
one core; the same numbers every time.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import cheetah
import torch
from torch import Tensor, nn

from lume_diff.models import BunchFromMoments, CheetahModel, StagedModel, TorchModel
from lume_diff.models.surrogates.transformers import Affine, Log10
from lume_diff.particles.constants import c_light
from lume_diff.variables import TorchScalarVariable
from lume_diff.variables.serialization import to_dict
from lume_diff.variables.text import dump_yaml

FOLDER = Path(__file__).parents[1] / "lume_diff" / "data" / "machine"
NAME = "surrogate"
N_PARTICLES, N_TRAINING, N_TEST = 1000, 5000, 2000
MARGIN = 0.08  # of the training beyond the ranges, over their half widths: a network is worst at its edge
WIDTH, ADAM_STEPS, LBFGS_STEPS = 48, 500, 3500

MASS = 510998.95069  # [eV]
GUN_ENERGY, GUN_SPREAD = 6.0e6, 5.0e3  # total energy and its spread [eV]
TYPICAL_SPOT, TYPICAL_CHARGE = 0.3e-3, 250e-12  # [m], [C]
THERMAL = 0.9e-3  # normalised emittance over the spot size [m/m]
SPACE_CHARGE = 0.36  # normalised emittance times the spot size, over the charge [m^2/C]
GUN_SIZE = 0.25e-3  # rms, of the beam that leaves the gun at the typical spot size [m]
DIVERGENCE = 2.5  # of the beam that leaves the gun, over its size [1/m]
FREQUENCY = 2.856e9  # [Hz]
BEFORE, SOLENOID, BETWEEN, STRUCTURE, BEHIND = 0.1, 0.2, 0.8, 3.0, 0.5  # lengths [m]

INPUTS = [
    TorchScalarVariable(name="solenoid_field", unit="T", default_value=0.11, value_range=(0.095, 0.14)),
    TorchScalarVariable(name="phase", unit="deg", default_value=0.0, value_range=(-20.0, 20.0)),
    TorchScalarVariable(name="voltage", unit="MV", default_value=58.0, value_range=(50.0, 66.0)),
    TorchScalarVariable(name="spot_size", unit="mm", default_value=0.3, value_range=(0.2, 0.5)),
    TorchScalarVariable(name="bunch_charge", unit="pC", default_value=250.0, value_range=(50.0, 500.0)),
]
OUTPUTS = {
    **{"mean_energy": "eV", "sigma_energy": "eV", "sigma_t": "s", "cov_t__energy": "s*eV"},
    **{"beta_x": "m", "alpha_x": "1", "norm_emit_x": "m", "beta_y": "m", "alpha_y": "1", "norm_emit_y": "m"},
}
POSITIVE = [i for i, name in enumerate(OUTPUTS) if name not in ("alpha_x", "alpha_y", "cov_t__energy")]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gun(inputs: Tensor) -> Tensor:
    """Return what leaves the gun, and the settings behind it, by the scaling laws of this invented injector."""
    field, phase, voltage, spot, charge = inputs.unbind(-1)
    spot, charge = 1e-3 * spot, 1e-12 * charge
    spot_ratio, charge_ratio = spot / TYPICAL_SPOT, charge / TYPICAL_CHARGE
    emittance = torch.hypot(THERMAL * spot, SPACE_CHARGE * charge / spot)
    size = GUN_SIZE * (0.4 + 0.6 * spot_ratio) * (1.0 + 0.15 * charge_ratio)
    duration = 2.5e-12 * (1.0 + 0.3 * charge_ratio / spot_ratio)
    momentum = (GUN_ENERGY**2 - MASS**2) ** 0.5
    beta = size**2 * momentum / MASS / emittance
    strength = field / (2.0 * momentum / c_light)
    return torch.stack([beta, -DIVERGENCE * beta, emittance, duration, charge, strength, phase, 1e6 * voltage], -1)


def simulation() -> StagedModel:
    """Return the injector from the laser to the entrance of the linac."""
    names = ("beta", "alpha", "emittance", "duration", "bunch_charge_in_C", "strength", "degrees", "volts")
    units = ("m", "1", "m", "s", "C", "1/m", "deg", "V")
    wider = [variable.replace(value_range=None) for variable in INPUTS]
    source = TorchModel(gun, wider, [TorchScalarVariable(name=n, unit=u) for n, u in zip(names, units, strict=True)])
    start = source.get(list(names))
    bunch = BunchFromMoments(
        N_PARTICLES,
        mean_energy=GUN_ENERGY,
        sigma_energy=GUN_SPREAD,
        charge=TYPICAL_CHARGE,
        **{f"{key}_{plane}": float(start[key]) for key in ("beta", "alpha") for plane in "xy"},
        **{f"norm_emit_{plane}": float(start["emittance"]) for plane in "xy"},
    )
    elements = [
        cheetah.Drift(number(BEFORE), name="D1"),
        cheetah.Solenoid(number(SOLENOID), number(0.0), name="SOL"),
        cheetah.Drift(number(BETWEEN), name="D2"),
        cheetah.Cavity(number(STRUCTURE), number(58e6), number(0.0), number(FREQUENCY), name="CAV"),
        cheetah.Drift(number(BEHIND), name="D3"),
    ]
    line = CheetahModel(cheetah.Segment(elements, name="injector"), bunch.get("final_particles"))
    links = {f"bunch/{key}_{plane}": f"gun/{key}" for key in ("beta", "alpha") for plane in "xy"}
    links |= {f"bunch/norm_emit_{plane}": "gun/emittance" for plane in "xy"}
    links |= {"bunch/sigma_t": "gun/duration", "bunch/charge": "gun/bunch_charge_in_C"}
    links |= {"line/SOL.k": "gun/strength", "line/CAV.phase": "gun/degrees", "line/CAV.voltage": "gun/volts"}
    return StagedModel({"gun": source, "bunch": bunch, "line": line}, links)


def simulated(count: int, seed: int, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return inputs all over their ranges, ``(count, 5)``, and what the simulation makes of them, ``(count, 10)``."""
    low, high = (number([v.value_range[end] for v in INPUTS]) for end in (0, 1))
    low, high = low - 0.5 * margin * (high - low), high + 0.5 * margin * (high - low)
    unit = torch.quasirandom.SobolEngine(len(INPUTS), scramble=True, seed=seed).draw(count, dtype=torch.float64)
    x = low + unit * (high - low)
    model, rows = simulation(), []
    for part in x.split(500):
        with torch.no_grad():
            settings = {v.name: column for v, column in zip(INPUTS, part.unbind(-1), strict=True)}
            bunch = model(settings, outputs=["final_particles"])["final_particles"]
        rows.append(torch.stack([bunch[_KEYS.get(name, name)] for name in OUTPUTS], -1))
    return x, torch.cat(rows)


_KEYS = {f"{word}_{plane}": f"twiss_{word}_{plane}" for word in ("beta", "alpha") for plane in "xy"}


def transformers(x: Tensor, y: Tensor) -> tuple[Affine, Log10, Affine]:
    """Return what makes inputs run from -1 to 1, and outputs, logarithms of the positive ones, of the order of 1."""
    low, high = (number([v.value_range[end] for v in INPUTS]) for end in (0, 1))
    logarithm = Log10()
    logarithm.register_buffer("indices", torch.tensor(POSITIVE))
    logs = logarithm(y)
    made = []
    for offset, coefficient in ((0.5 * (low + high), 0.5 * (high - low)), (logs.mean(0), logs.std(0))):
        affine = Affine()
        affine.register_buffer("_offset", offset)
        affine.register_buffer("_coefficient", coefficient)
        made.append(affine)
    return made[0], logarithm, made[1]


def trained(x: Tensor, y: Tensor) -> nn.Sequential:
    """Return a network fitted to scaled inputs and outputs."""
    torch.manual_seed(0)
    sizes = (x.shape[-1], WIDTH, WIDTH, y.shape[-1])
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, dtype=torch.float64), nn.Tanh()]
    network = nn.Sequential(*layers[:-1])

    def loss() -> Tensor:
        return (network(x) - y).square().mean()

    adam = torch.optim.Adam(network.parameters(), 5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, ADAM_STEPS)
    for _ in range(ADAM_STEPS):
        adam.zero_grad()
        loss().backward()
        adam.step()
        decay.step()
    options = {"max_iter": LBFGS_STEPS, "history_size": 50, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    lbfgs = torch.optim.LBFGS(network.parameters(), **options, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        value = loss()
        value.backward()
        return value

    lbfgs.step(closure)
    return network


def described(network: nn.Sequential, before: Affine, after: Affine, accuracy: dict[str, str]) -> str:
    """Return the surrogate as YAML."""

    def affine(one: Affine) -> dict[str, object]:
        return {"Affine": {"offset": one._offset.tolist(), "coefficient": one._coefficient.tolist()}}

    outputs = [TorchScalarVariable(name=name, unit=unit) for name, unit in OUTPUTS.items()]
    layers = [
        {"Linear": [one.in_features, one.out_features]} if isinstance(one, nn.Linear) else "Tanh" for one in network
    ]
    data = {
        "model_class": "TorchModel",
        "description": "injector of the example machine, by tools/make_injector_surrogate.py",
        "accuracy": accuracy,
        "input_variables": [to_dict(variable) for variable in INPUTS],
        "output_variables": [to_dict(variable) for variable in outputs],
        "model": {"layers": layers, "weights": f"{NAME}.pt"},
        "input_transformers": [affine(before)],
        "output_transformers": [affine(after), {"Log10": {"indices": POSITIVE}}],
    }
    return dump_yaml(data)


def main() -> None:
    torch.set_num_threads(1)  # sums in one order only
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    x, y = simulated(N_TRAINING, 1, MARGIN)
    before, logarithm, after = transformers(x, y)
    network = trained(before(x), after(logarithm(y)))
    torch.save(network.state_dict(), folder / f"{NAME}.pt")
    (folder / f"{NAME}.yaml").write_text(described(network, before, after, {}), encoding="utf-8")

    model = TorchModel.from_file(folder / f"{NAME}.yaml")
    x, y = simulated(N_TEST, 2)
    found = model({v.name: column for v, column in zip(INPUTS, x.unbind(-1), strict=True)})
    accuracy = {}
    for index, name in enumerate(OUTPUTS):
        error = (found[name] - y[:, index]).abs() / (y[:, index].abs() if index in POSITIVE else y[:, index].std())
        of = "relative" if index in POSITIVE else "over the standard deviation"
        accuracy[name] = f"rms {float(error.square().mean().sqrt()):.1e}, largest {float(error.max()):.1e} ({of})"
        print(f"{name:16s} {accuracy[name]}")
    (folder / f"{NAME}.yaml").write_text(described(network, before, after, accuracy), encoding="utf-8")


if __name__ == "__main__":
    main()
