"""Reconstruction: the bunch whose images were measured, as particles."""
