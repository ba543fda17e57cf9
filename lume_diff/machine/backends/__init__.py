"""The backends of lume_diff: one section each."""
