"""Submissions: packed, read as hostile input, recomputed from their raw files, put together to a board. No torch."""
