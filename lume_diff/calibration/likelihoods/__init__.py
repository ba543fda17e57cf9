"""Likelihoods: how predictions are compared with what was measured; one file each, found by entry points."""
