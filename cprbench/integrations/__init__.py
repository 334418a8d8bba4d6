"""Doors for loops and tools that are not ours."""
