"""Experiments. Each is a module: run `python -m experiments.NAME --help`. See README.md in this folder."""

from mcl_jax.extras import tell_without_traceback

tell_without_traceback("running an experiment", "experiments")
