"""Fits: priors, parameters, optimisers, and what a result says."""
