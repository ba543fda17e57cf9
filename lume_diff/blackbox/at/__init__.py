"""pyAT as a black box."""
