"""Experiments: each is a module, `python -m experiments.NAME --help`. See README.md beside this file."""

import os

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that there is no torch, which is so
