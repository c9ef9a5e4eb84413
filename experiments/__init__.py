"""Experiments: each is a module, `python -m experiments.NAME --help`. See README.md beside this file."""
