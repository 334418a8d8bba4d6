"""Submodule statistics as files, and picking from them. No torch in this room."""
