"""MAD-X (cpymad) as a black box."""
