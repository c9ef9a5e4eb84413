"""Mixtures of Markov chains: the paper's first experiment (Figures 1 and 4), with exact theory lines.

python -m experiments.markov --workdir runs/markov
"""
