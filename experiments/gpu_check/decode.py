"""Decoding of a model of SmolLM2-135M's size against K, and beside transformers and peft where they are installed."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gpu_check import models
from experiments.gpu_check.timing import summary
from mcl_jax import generation, interop
from mcl_jax.hypotheses import select
from mcl_jax.models import save_pretrained

PEER = Path(__file__).parents[1] / "bench_peers" / "torch_side.py"


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows measured so far."""
    sizes, ks = (models.TINY, (1, 3)) if quick else (models.SMOLLM2_135M, (1, 2, 3, 5, 8))
    size, length, new, repeats = (2, 8, 4, 1) if quick else (8, 128, 64, 5)
    module, params = models.base(sizes, jnp.bfloat16)
    model, adapters = models.hypotheses(module, params, max(ks))
    tokens = np.asarray(models.batch_of(sizes, size, length)["tokens"][:, :length])
    result: dict[str, Any] = {"batch": size, "prompt": length, "new_tokens": new, "dtype": "bfloat16", "rows": []}
    for k, decoder in [(k, generation.Greedy()) for k in ks] + [(ks[-2], generation.BeamSearch(num_beams=3))]:
        first, times = select(adapters, slice(k)), []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            found = generation.decode(model, params, first, tokens, decoder, new)
            jax.block_until_ready(found)
            times.append(time.perf_counter() - started)
        seconds = summary(times[1:])
        row = {"k": k, "decoder": type(decoder).__name__, "seconds": round(seconds.median, 4)}
        row |= {"least": round(seconds.least, 4), "most": round(seconds.most, 4), "first_call": round(times[0], 1)}
        row["tokens_per_second"] = round(k * size * new / seconds.median)
        row["relative_to_k1"] = round(seconds.median / result["rows"][0]["seconds"], 2) if result["rows"] else 1.0
        result["rows"].append(row)
        yield result
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        result["peer"] = f"n/a: {', '.join(missing)} not installed"
    else:
        result["peer"] = peer(module, params, model, adapters, tokens, new, 3, 1 if quick else 3)
    yield result


def peer(module, params, model, adapters, tokens, new: int, k: int, repeats: int) -> dict[str, Any]:
    """Decodes greedily in turns with transformers and peft, in float32 on both sides."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    module = module.clone(config=module.config.__class__(**{**vars(module.config), "dtype": jnp.float32}))
    model = type(model)(module, model.config)
    first = select(adapters, slice(k))
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder) / "base", module, wide)
        interop.save_peft(Path(folder) / "adapters", model, first)
        command = [sys.executable, str(PEER), f"{folder}/base", f"{folder}/adapters"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        asked = {"tokens": tokens.tolist(), "mask": np.ones(tokens.shape, int).tolist()}
        asked |= {"new_tokens": new, "num_beams": 1, "hypotheses": k}
        ours, theirs = [], []
        try:
            for _ in range(repeats + 1):
                started = time.perf_counter()
                with jax.default_matmul_precision("highest"):  # as torch; jax's own default is TF32
                    found = np.asarray(generation.generate(model, wide, first, tokens, max_new_tokens=new))
                ours.append(time.perf_counter() - started)
                print(json.dumps(asked), file=process.stdin, flush=True)
                answer = json.loads(process.stdout.readline())
                theirs.append(answer["seconds"])
        finally:
            process.kill()
    same = float((found[:, :, 0] == np.asarray(answer["tokens"])).mean())
    mine, others = summary(ours[1:]), summary(theirs[1:])
    return {
        "k": k,
        "ours": mine,
        "theirs": others,
        "speedup": round(others.median / mine.median, 2),
        "same_tokens": same,
    }
