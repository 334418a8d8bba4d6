"""Measurements of cprbench itself: interleaved, medians, one JSON line last. Never part of the tests."""
