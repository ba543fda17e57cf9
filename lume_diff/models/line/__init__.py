"""A beamline as tensors: elements, maps, tracking, diagnostics."""
