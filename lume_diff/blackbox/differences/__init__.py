"""Difference quotients: how noisy an output is, which step suits it, which runs give the derivative."""
