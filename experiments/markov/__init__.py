"""Mixtures of Markov chains: the paper's first experiment (Figures 1 and 4), with exact bounds from the theory.

Run it with `python -m experiments.markov --workdir runs/markov`.
"""
