"""ImpactX as a black box."""
