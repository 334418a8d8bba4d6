"""What is measured on a model and kept as a file: blueprints, scores of examples. The parent meters, a child works."""
