"""The training that is disturbed: everything that a resume could forget is in it.

It reads a base in two shards and a file of records, has dropout, accumulated batches, adam's moments, a balanced
objective with its state and batches with a place, and keeps its best checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import mcl_jax as mcl
from experiments.soak import model
from mcl_jax import stored_state
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.json_io import to_json, write_json
from mcl_jax.models import tensors

RECORDS = 131
BASE, DATA, END = "base", "records.jsonl", "end.json"
EVAL_EVERY = 4  # steps between evaluations, each of which is followed by a checkpoint

Report = Callable[[str], None]


class Letters:
    """A tokenizer: one token for each letter; 0 ends a text."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the letters."""
        return [1 + ord(letter) % (model.VOCABULARY - 1) for letter in text]


def prepare(folder: Path) -> None:
    """Writes the base, in two shards, and the records."""
    rng, shapes = np.random.default_rng(3), flatten_dict(model.shapes(), sep="/")
    params = {path: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    (folder / BASE).mkdir()
    tensors.write_weights(folder / BASE, params, "{}", sum(array.nbytes for array in params.values()) * 4 // 5)
    letters = lambda n: "".join(chr(97 + i) for i in rng.integers(0, 26, n))
    records = [
        mcl.data.Record(
            str(i), letters(3 + i % 4), tuple(mcl.data.Target(letters(2 + i % 3)) for _ in range(3)), split=split
        )
        for i, split in enumerate(["validation"] * 7 + ["train"] * RECORDS)
    ]
    mcl.data.write_jsonl(folder / DATA, mcl.data.Corpus("toy", tuple(records)))


def load_base(folder: Path) -> Any:
    """Reads the base from its shards."""
    source = tensors.Safetensors(folder)
    return unflatten_dict({name: jnp.asarray(source.read(name)) for name in source.shapes}, sep="/")


class Toy:
    """The training over the files that `prepare` wrote.

    Args:
      folder: their folder.
    """

    def __init__(self, folder: Path):
        self.params, self.parts = load_base(folder / BASE), model.parts()
        corpus = mcl.data.read_jsonl(folder / DATA)
        encode = lambda split: mcl.data.encode_records(
            [record for record in corpus.records if record.split == split], Letters(), max_length=model.LENGTH
        )
        batches = mcl.data.BatchConfig(batch_size=model.BATCH, lengths=(model.LENGTH,))
        self.batches = mcl.data.train_batches(encode("train"), batches)
        self.held_out = list(mcl.data.eval_batches(encode("validation"), batches))

    def start(self) -> mcl.TrainState:
        """Makes the state at step 0."""
        tokens = np.zeros((1, model.LENGTH), np.int32)
        adapters = self.parts.model.init(jax.random.key(1), self.params, tokens, num_hypotheses=model.K)
        return mcl.TrainState.create(
            params=self.params,
            adapters=adapters,
            optimizer=self.parts.optimizer,
            rng=jax.random.key(2),
            objective=self.parts.objective,
        )

    def evaluate(self, state: mcl.TrainState) -> dict[str, float]:
        """Scores the held-out records: nats per token of the best hypothesis of each."""
        log_p, tokens = mcl.language_model.evaluate(self.parts.model, state.params, state.adapters, self.held_out)
        return {"eval_loss": float(-log_p.max(0).sum() / tokens.sum())}


def train(
    folder: Path, workdir: Path, steps: int, report: Report, nan_after: int | None = None, nan_in: str = "loss"
) -> None:
    """Trains up to the last step, from the last checkpoint if there is one; then writes END.

    Args:
      folder: what `prepare` wrote.
      workdir: the run directory.
      steps: number of steps in all.
      report: called with "resumed N", "step N" and "evaluated N", where N is the number of steps taken, and "nan N" for
        the step that gets a NaN.
      nan_after: number of sound batches before one with a NaN; None for sound data.
      nan_in: "loss" or "gradient".
    """
    toy, taken = Toy(folder), []

    def factors(batch):
        ones = np.ones(batch["tokens"].shape[:1], np.float32)
        batch = batch | {"factor": ones, "under_root": ones}
        if len(taken) != nan_after:
            return batch
        return batch | ({"factor": np.nan * ones} if nan_in == "loss" else {"under_root": 0 * ones})

    def step(state, batch):
        before = int(state.step)
        if not taken:
            report(f"resumed {before}")
        if len(taken) == nan_after:
            report(f"nan {before}")
        taken.append(before)
        state, metrics = toy.parts.step(state, batch)
        report(f"step {int(state.step)}")
        return state, metrics

    def evaluate(state):
        scores = toy.evaluate(state)
        report(f"evaluated {int(state.step)}")
        return scores

    fitted = mcl.fit(
        step,
        toy.start(),
        toy.batches,
        steps=steps,
        workdir=workdir,
        inputs=factors,
        evaluate=evaluate,
        eval_every=EVAL_EVERY,
        checkpoint_seconds=0.3,
        keep_best=True,
    )
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        last, place, _ = checkpoints.restore(toy.start())
    write_json(workdir / END, {"best": digests(fitted.state), "last": digests(last), "batches": place["batches"]})


def digests(state: mcl.TrainState) -> dict[str, str]:
    """Returns the SHA-256 of each stored array of a state, by path."""
    leaves = stored_state.flatten(stored_state.stored(state))
    return {path: hashlib.sha256(stored_state.to_host(leaf).tobytes()).hexdigest() for path, leaf in leaves.items()}


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns all that must be equal to an undisturbed run: states, results and log lines, without times."""
    results = json.loads((workdir / "results.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "end": json.loads((workdir / END).read_text()),
        "results": {name: value for name, value in results.items() if name != "seconds"},
        "lines": to_json(lines),
    }
