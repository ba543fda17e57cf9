"""Processes of our own: an interpreter that does what its parent asks, and dies with it."""
