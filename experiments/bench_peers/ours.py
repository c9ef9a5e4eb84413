"""The side of this library: `python -m experiments.bench_peers.ours {scan,list} BASE ADAPTERS`.

The requests are those of `torch_side`. The first argument says whether the layers of the base are scanned.

`make` writes the base and the adapters that both sides load.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcl_jax as mcl
from experiments.bench_peers.config import Config
from mcl_jax import interop, language_model
from mcl_jax.generation import BeamSearch, Greedy, decode
from mcl_jax.hypotheses import select
from mcl_jax.models import Llama, LlamaConfig, save_pretrained


def make(config: Config, folder: Path) -> dict[str, Any]:
    """Writes the base, and adapters of as many hypotheses as any cell needs, in Hugging Face's formats.

    Returns:
      A description of the base, and its number of tokens.
    """
    module, params = base_of(config)
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=config.rank, alpha=2.0 * config.rank, targets=targets))
    save_pretrained(folder / "base", module, params)
    interop.save_peft(folder / "adapters", model, random_adapters(model, params, max(config.ks)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"family": type(module).__name__, "parameters": size, "vocab": module.vocab_size, "targets": targets}


def base_of(config: Config) -> tuple[Any, Any]:
    """Returns the base and its parameters: the one that was asked for, or a random Llama of these sizes."""
    if config.base is not None:
        return mcl.models.from_pretrained(_found(config.base), scan=config.scan)[:2]
    module = Llama(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            tie_word_embeddings=True,
            scan=config.scan,
        )
    )
    return module, jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def _found(base: str) -> Path:
    if base != "smollm2":
        return Path(base)
    from experiments.common.smollm2 import smollm2  # needs all that experiments need

    return smollm2()


def random_adapters(model: mcl.Hypotheses, params: Any, num_hypotheses: int) -> Any:
    """Makes adapters that all differ, with a nonzero B."""
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=num_hypotheses)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(adapters))))
    return jax.tree.map(lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype), adapters)


def first_step_only(learning_rate: float) -> optax.GradientTransformation:
    """Makes AdamW that changes the adapters in the first step only, so that all later steps do the same work."""
    return optax.adamw(lambda count: jnp.where(count == 0, learning_rate, 0.0), weight_decay=0.01)


class Server:
    """Answers requests about one model."""

    def __init__(self, layers: str, base: str, adapters: str):
        module, self.params, _ = mcl.models.from_pretrained(base, scan=layers == "scan")
        self.model, self.adapters = interop.load_peft(adapters, module)
        self.trainings = {}

    def begin(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Begins to train, and takes two steps."""
        tokens, optimizer = jnp.asarray(asked["tokens"]), first_step_only(asked["learning_rate"])
        batch = {"tokens": tokens, "target_mask": jnp.ones((len(tokens), tokens.shape[1] - 1), bool)}
        log_likelihood = language_model.log_likelihood_fn(self.model)
        step = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optimizer, asked["way"])
        adapters = select(self.adapters, slice(asked["hypotheses"]))
        state = mcl.TrainState.create(params=self.params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(0))
        self.trainings[asked["cell"]] = step, state, batch
        return {"losses": [self.step(asked)["loss"], self.step(asked)["loss"]]}

    def step(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Takes one more step."""
        step, state, batch = self.trainings[asked["cell"]]
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds = time.perf_counter() - started
        self.trainings[asked["cell"]] = step, state, batch
        return {"seconds": seconds, "loss": float(metrics["loss"])}

    def decode(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Decodes with all hypotheses at once; returns all tokens, and the time in seconds."""
        prompts = {"tokens": np.array(asked["tokens"]), "mask": np.array(asked["mask"], bool)}
        decoder = Greedy() if asked["num_beams"] == 1 else BeamSearch(asked["num_beams"])
        adapters = select(self.adapters, slice(asked["hypotheses"]))
        started = time.perf_counter()
        generation = decode(self.model, self.params, adapters, prompts, decoder, asked["new_tokens"])
        jax.block_until_ready(generation)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": generation.tokens[:, :, 0].tolist()}

    def about(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Names versions and threads."""
        versions = {name: version(name) for name in ("jax", "flax")}
        return {"versions": versions, "threads": _cores()}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answers a request."""
        return getattr(self, asked["do"])(asked)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    server = Server(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), flush=True)
