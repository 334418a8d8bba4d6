"""Measuring gradients: what is large, where, and on which examples."""
