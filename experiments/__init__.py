"""Experiments. Each is a module: run `python -m experiments.NAME --help`. See README.md in this folder."""

import os

from mcl_jax.extras import tell_without_traceback

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no warning that torch is not installed
tell_without_traceback("running an experiment", "experiments")
