"""What runs would take, from a config alone: parameters, activations, bytes, FLOPs, hours. No torch."""
