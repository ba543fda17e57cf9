"""Channel Access, by caproto."""
