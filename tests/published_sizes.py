"""Names and shapes of all tensors of published models (golden/make_full_size.py)."""

import json
import re
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "golden" / "full_size").iterdir())
# Others have the same layers in other sizes, and are tested with `make test-slow`.
QUICK = (
    "gemma-3-27b-text",
    "llama-2-7b",
    "llama-3.1-405b",
    "llava-v1.6-mistral-7b",
    "llava-v1.6-vicuna-7b",
    "mistral-7b-v0.1",
    "phi-4-mini",
    "qwen2-7b",
    "qwen2-audio-7b-instruct",
    "qwen3-8b",
    "smollm3-3b",
    "smolvlm-256m",
    "vicuna-7b-v1.5",
)
ALL = [pytest.param(f.stem, marks=() if f.stem in QUICK else pytest.mark.slow) for f in FILES]


def config_of(name):
    return json.loads(lines_of(name)[0])


def shapes_of(name):
    """{name of a tensor: shape}."""
    shapes = {}
    for line in lines_of(name)[1:]:
        pattern, sizes = line.split()
        shape = tuple(map(int, sizes.split("x")))
        if layers := re.search(r"\{0\.\.(\d+)\}", pattern):
            shapes |= {pattern.replace(layers[0], str(i)): shape for i in range(int(layers[1]) + 1)}
        else:
            shapes[pattern] = shape
    return shapes


def lines_of(name):
    return next(file for file in FILES if file.stem == name).read_text().splitlines()
