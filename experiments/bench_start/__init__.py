"""How long a run takes to its first training step, with and without JAX's compilation cache."""
