"""PVAccess, by p4p."""
