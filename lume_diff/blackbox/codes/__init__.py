"""What the backends of all codes share: names, variables, plain bunches, the model that they build."""
