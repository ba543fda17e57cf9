"""LUME models as black boxes, and lume_diff models for LUME."""
