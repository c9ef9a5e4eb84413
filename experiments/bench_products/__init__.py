"""How much of the time of a training step and of decoding is matrix products."""
