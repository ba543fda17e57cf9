"""Bmad's Tao as a black box."""
