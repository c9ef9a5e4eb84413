"""Benchmark of decoding, `python -m experiments.bench_decode`: cost of K answers by K and length.

With `--torch PYTHON` (an interpreter with torch, transformers and peft) it also compares with Hugging Face: each repeat
runs both sides in turn, on the same weights, adapters and prompts, and their greedy tokens are compared. Keep the
machine idle.
"""

import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from dataclasses import field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mcl_jax as mcl
from experiments.common.options import COUNT, Options, parse
from experiments.common.smollm2 import smollm2
from mcl_jax import interop
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.console import say, table
from mcl_jax.generation import BeamSearch, Decoder, Greedy, decode
from mcl_jax.json_io import to_json, write_json
from mcl_jax.models.pretrained import save_pretrained

SCRIPT = Path(__file__).with_name("hugging_face.py")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Seconds and tokens per second of decoding, K hypotheses at once."""

    torch: Path | None = None
    """Python interpreter with torch, transformers and peft, to run Hugging Face in turn with this library. By default
    Hugging Face is not run."""
    base: Path | None = None
    """Hugging Face folder or GGUF file of the base model; SmolLM2-135M by default."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    """Numbers K of hypotheses to measure, with --new-tokens tokens."""
    lengths: tuple[int, ...] = (16, 32, 64, 128)
    """Numbers of new tokens to measure, with --num-hypotheses hypotheses."""
    num_hypotheses: int = field(default=5, metadata=COUNT)
    """Hypotheses of the rows for --lengths, and of the comparison with Hugging Face."""
    new_tokens: int = field(default=32, metadata=COUNT)
    """New tokens of the rows for --ks, and of the comparison with Hugging Face."""
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
    json: Path | None = None
    """File for the rows."""

    def __post_init__(self):
        self.check()

    @property
    def decoder(self) -> Decoder:
        """Decoder of every hypothesis."""
        return Greedy() if self.num_beams == 1 else BeamSearch(self.num_beams)

    def cells(self) -> list[tuple[int, int]]:
        """Returns (K, new tokens) of every row; the one compared with Hugging Face comes first."""
        cells = [(self.num_hypotheses, self.new_tokens)]
        cells += [(k, self.new_tokens) for k in self.ks] + [(self.num_hypotheses, n) for n in self.lengths]
        return list(dict.fromkeys(cells))


class HuggingFace:
    """Runs `hugging_face.py` in a separate process, with the same base and adapters. Use it as a context manager."""

    def __init__(self, python: Path, module: Any, params: Any, model: mcl.Hypotheses, adapters: Any):
        self.folder = tempfile.TemporaryDirectory()
        base, peft = Path(self.folder.name) / "base", Path(self.folder.name) / "adapters"
        save_pretrained(base, module, params)
        interop.save_peft(peft, model, adapters)
        command = [str(python), str(SCRIPT), str(base), str(peft)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, prompts: dict[str, np.ndarray], config: Config) -> tuple[float, np.ndarray]:
        """Decodes with Hugging Face; returns seconds and tokens [K, B, T].

        Raises:
          RuntimeError: if the process has died; its errors are on stderr.
        """
        asked = {name: x.tolist() for name, x in prompts.items()}
        asked |= {"new_tokens": config.new_tokens, "num_beams": config.num_beams, "hypotheses": config.num_hypotheses}
        try:
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{SCRIPT.name} stopped with {self.process.wait()}; see its message above")
        answer = json.loads(line)
        return answer["seconds"], np.array(answer["tokens"])

    def __enter__(self) -> "HuggingFace":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()


def make_prompts(config: Config, vocab_size: int) -> dict[str, np.ndarray]:
    """Random tokens [B, P] of unequal lengths, padded on the left."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(config.prompt, max(config.prompt // 2, 1), config.batch).astype(int)
    mask = np.arange(config.prompt)[None] >= config.prompt - lengths[:, None]
    return {"tokens": np.where(mask, rng.integers(10, vocab_size, mask.shape), 0), "mask": mask}


def random_adapters(model: mcl.Hypotheses, params: Any, num_hypotheses: int) -> Any:
    """Makes adapters that all differ, with a nonzero B."""
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=num_hypotheses)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(adapters))))
    return jax.tree.map(lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype), adapters)


def timed(model, params, adapters, prompts, config: Config, new_tokens: int) -> tuple[float, np.ndarray]:
    """Times one call without early ends; returns seconds and tokens [K, B, T]."""
    started = time.perf_counter()
    generation = decode(model, params, adapters, prompts, config.decoder, new_tokens)
    jax.block_until_ready(generation)
    return time.perf_counter() - started, np.asarray(generation.tokens[:, :, 0])


def row(config: Config, side: str, k: int, new_tokens: int, seconds: list[float]) -> dict[str, Any]:
    """Makes a row with median and range of the repeats."""
    median = statistics.median(seconds)
    return {
        "side": side,
        "k": k,
        "new_tokens": new_tokens,
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "tokens_per_second": k * config.batch * new_tokens / median,
    }


def compare(config: Config, module, params, model, adapters, prompts) -> tuple[list[dict[str, Any]], float]:
    """Times both sides in turn after a warm-up; returns their rows, and the share of equal tokens."""
    ours, theirs = [], []
    with HuggingFace(config.torch, module, params, model, adapters) as other:
        for repeat in range(config.repeats + 1):
            seconds, tokens = timed(model, params, adapters, prompts, config, config.new_tokens)
            other_seconds, other_tokens = other.ask(prompts, config)
            if repeat:
                ours.append(seconds)
                theirs.append(other_seconds)
    k, n = config.num_hypotheses, config.new_tokens
    rows = [row(config, "mcl_jax", k, n, ours), row(config, "transformers + peft", k, n, theirs)]
    return rows, float((tokens == other_tokens).mean())


def measure(config: Config) -> dict[str, Any]:
    """Measures all rows, and the comparison if there is one."""
    module, params, _ = mcl.models.from_pretrained(config.base or smollm2())
    targets = mcl.models.lora_targets(module)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=config.rank, alpha=2 * config.rank, targets=targets))
    most = max([config.num_hypotheses, *config.ks])
    adapters, prompts = random_adapters(model, params, most), make_prompts(config, module.config.vocab_size)

    def first(k: int) -> Any:
        return mcl.hypotheses.select(adapters, slice(k))

    results: dict[str, Any] = {"rows": []}
    if config.torch is not None:
        rows, same = compare(config, module, params, model, first(config.num_hypotheses), prompts)
        results = {"rows": rows, "same_tokens": same, "speedup": rows[1]["seconds"] / rows[0]["seconds"]}
    for k, new_tokens in config.cells()[config.torch is not None :]:
        calls = [timed(model, params, first(k), prompts, config, new_tokens)[0] for _ in range(config.repeats + 1)]
        results["rows"].append(row(config, "mcl_jax", k, new_tokens, calls[1:]))
    return results


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
            r["side"],
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
    table(title, ["", "K", "new tokens", "seconds", "range", "tokens/s"], rows)
    if "speedup" in results:
        share = f"{results['same_tokens']:.2%} of the tokens are equal"
        say(f"{results['speedup']:.2f} times as fast as transformers + peft; {share}.")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse(Config))
