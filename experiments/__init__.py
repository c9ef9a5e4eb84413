"""Experiments: each is a module, `python -m experiments.NAME --help`. See README.md beside this file."""

import os

from mcl_jax.extras import tell_without_traceback

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that there is no torch, which is so
tell_without_traceback("running an experiment", "experiments")
