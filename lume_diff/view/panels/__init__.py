"""The panels of the live view; a package of yours adds its own by the entry points ``lume_diff.panels``."""
