"""Optimisation of a machine by Xopt with a model as the prior mean, from a file."""
