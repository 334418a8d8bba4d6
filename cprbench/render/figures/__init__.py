"""Figures: each function takes what judge/ says and returns a Drawing, which matplotlib draws only when it is saved."""
