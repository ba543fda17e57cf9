"""Plug-ins for Badger."""
