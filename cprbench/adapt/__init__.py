"""What happens to a model: data, models, methods, the training loop and scores.

data.py and checkpoints.py (sources, pinned and hashed) and the method files import no torch at the top;
models.py, training.py and scoring.py do, and are imported only in the child process that trains.
"""
