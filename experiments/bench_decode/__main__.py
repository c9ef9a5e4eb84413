"""Benchmark of decoding, `python -m experiments.bench_decode`: cost of K answers by K and length.

`experiments.bench_peers` compares with transformers and peft. Keep the machine idle.
"""

import dataclasses
import statistics
import time
from dataclasses import field
from pathlib import Path
from typing import Any

import jax

import mcl_jax as mcl
from experiments.bench_peers.measure import make_prompts
from experiments.bench_peers.ours import random_adapters
from experiments.common.options import COUNT, Options, parse
from experiments.common.smollm2 import smollm2
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import table
from mcl_jax.generation import BeamSearch, Decoder, Greedy, decode
from mcl_jax.json_io import to_json, write_json


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Seconds and tokens per second of decoding, K hypotheses at once."""

    base: Path | None = None
    """Hugging Face folder or GGUF file of the base model; SmolLM2-135M by default."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Numbers K of hypotheses to measure, with --new-tokens tokens."""
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    """Numbers of new tokens to measure, with --num-hypotheses hypotheses."""
    num_hypotheses: int = field(default=5, metadata=COUNT)
    """Hypotheses of the rows for --lengths."""
    new_tokens: int = field(default=32, metadata=COUNT)
    """New tokens of the rows for --ks."""
    num_beams: int = field(default=1, metadata=COUNT)
    """Beams of each hypothesis; 1 is greedy."""
    batch: int = field(default=4, metadata=COUNT)
    """Prompts that are answered at once."""
    prompt: int = field(default=32, metadata=COUNT)
    """Longest prompt in tokens; the shortest is half as long."""
    rank: int = field(default=8, metadata=COUNT)
    """Rank of the adapters."""
    repeats: int = field(default=5, metadata=COUNT)
    """Times that each row is measured, after a warm-up."""
    scan: bool = False
    """Scan the layers. On a CPU this copies the weights of each layer at every token."""
    json: Path | None = None
    """File for the rows."""

    def __post_init__(self):
        self.check()

    @property
    def decoder(self) -> Decoder:
        """Decoder of every hypothesis."""
        return Greedy() if self.num_beams == 1 else BeamSearch(self.num_beams)

    def cells(self) -> list[tuple[int, int]]:
        """Returns (K, new tokens) of every row; that of both defaults comes first."""
        cells = [(self.num_hypotheses, self.new_tokens)]
        cells += [(k, self.new_tokens) for k in self.ks] + [(self.num_hypotheses, n) for n in self.lengths]
        return list(dict.fromkeys(cells))


def timed(model, params, adapters, prompts, config: Config, new_tokens: int) -> float:
    """Times one call without early ends, in seconds."""
    started = time.perf_counter()
    generation = decode(model, params, adapters, prompts, config.decoder, new_tokens)
    jax.block_until_ready(generation)
    return time.perf_counter() - started


def row(config: Config, k: int, new_tokens: int, seconds: list[float]) -> dict[str, Any]:
    """Makes a row with median and range of the repeats."""
    median = statistics.median(seconds)
    return {
        "k": k,
        "new_tokens": new_tokens,
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "tokens_per_second": k * config.batch * new_tokens / median,
    }


def measure(config: Config) -> dict[str, Any]:
    """Measures all rows."""
    module, params, _ = mcl.models.from_pretrained(config.base or smollm2(), scan=config.scan)
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=config.rank, alpha=2 * config.rank, targets=targets))
    most = max([config.num_hypotheses, *config.ks])
    adapters = random_adapters(model, params, most)
    prompts = make_prompts(config.batch, config.prompt, module.config.vocab_size)

    def first(k: int) -> Any:
        return mcl.hypotheses.select(adapters, slice(k))

    rows = []
    for k, new_tokens in config.cells():
        calls = [timed(model, params, first(k), prompts, config, new_tokens) for _ in range(config.repeats + 1)]
        rows.append(row(config, k, new_tokens, calls[1:]))
    return {"rows": rows}


def main(config: Config) -> None:
    """Measures, writes --json, and prints the table.

    Raises:
      ValueError: if --json cannot be written; before anything is measured.
    """
    if config.json is not None and not config.json.absolute().parent.is_dir():
        raise ValueError(f"--json must be a file in an existing folder, got {config.json}")
    results = measure(config)
    if config.json is not None:
        with attempt(str(config.json)):
            write_json(config.json, {"config": to_json(config, "config"), **results})
    rows = [
        [
            r["k"],
            r["new_tokens"],
            f"{r['seconds']:.2f}",
            f"{r['least']:.2f} to {r['most']:.2f}",
            f"{r['tokens_per_second']:.0f}",
        ]
        for r in results["rows"]
    ]
    device = jax.devices()[0]
    title = f"{config.batch} prompts of up to {config.prompt} tokens, {config.num_beams} beam(s), {device.device_kind}"
    table(title, ["K", "new tokens", "seconds", "range", "tokens/s"], rows)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(Config))
