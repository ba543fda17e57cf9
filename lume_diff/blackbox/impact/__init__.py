"""IMPACT-T as a black box."""
