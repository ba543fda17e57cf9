"""Measured data: images of screens and numbers over a scan, with what a fit needs to know about them."""
