"""The training that is disturbed: everything that a resume could forget is in it.

It reads a base in two shards and a file of records, has dropout, accumulated batches, adam's moments, a balanced
objective with its state and batches with a place, and keeps its best checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

import mcl_jax as mcl
from mcl_jax import stored_state
from mcl_jax.checkpoint import Checkpoints
from mcl_jax.json_io import to_json, write_json
from mcl_jax.models import tensors

VOCABULARY, WIDTH, HIDDEN = 31, 13, 23
K, RANK, ALPHA, LENGTH = 3, 2, 5, 17
RECORDS = 131
BASE, DATA, END = "base", "records.jsonl", "end.json"
EVAL_EVERY = 4  # steps between evaluations, each of which is followed by a checkpoint

Report = Callable[[str], None]


class Model(nn.Module):
    """A small language model: each token sees the mean of those before it."""

    def setup(self):
        self.embed = nn.Embed(VOCABULARY, WIDTH)
        self.up, self.down = nn.Dense(HIDDEN), nn.Dense(WIDTH)

    def __call__(self, tokens):
        return self.hidden(tokens)

    def hidden(self, tokens, mask=None):
        """Returns the hidden states [B, T, D]."""
        x = self.embed(tokens)
        past = jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1]))[None, :, None]
        return x + self.down(nn.tanh(self.up(past)))

    @staticmethod
    def unembedding(params):
        """Returns the output matrix [D, V]."""
        return params["embed"]["embedding"].T


class Letters:
    """A tokenizer: one token for each letter; 0 ends a text."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the letters."""
        return [1 + ord(letter) % (VOCABULARY - 1) for letter in text]


def prepare(folder: Path) -> None:
    """Writes the base, in two shards, and the records."""
    rng, shapes = np.random.default_rng(3), flatten_dict(_shapes(), sep="/")
    params = {path: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    (folder / BASE).mkdir()
    tensors.write_weights(folder / BASE, params, "{}", sum(array.nbytes for array in params.values()) * 2 // 3)
    letters = lambda n: "".join(chr(97 + i) for i in rng.integers(0, 26, n))
    records = [
        mcl.data.Record(
            str(i), letters(3 + i % 4), tuple(mcl.data.Target(letters(2 + i % 3)) for _ in range(3)), split=split
        )
        for i, split in enumerate(["validation"] * 7 + ["train"] * RECORDS)
    ]
    mcl.data.write_jsonl(folder / DATA, mcl.data.Corpus("toy", tuple(records)))


def _shapes() -> Any:
    return jax.eval_shape(Model().init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


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
        self.params = load_base(folder / BASE)
        config = mcl.LoraConfig(rank=RANK, alpha=ALPHA, dropout=0.2, targets=("up", "down"))
        self.model = mcl.Hypotheses(Model(), config)
        corpus = mcl.data.read_jsonl(folder / DATA)
        encode = lambda split: mcl.data.encode_records(
            [record for record in corpus.records if record.split == split], Letters(), max_length=LENGTH
        )
        batches = mcl.data.BatchConfig(batch_size=6, lengths=(LENGTH,))
        self.batches = mcl.data.train_batches(encode("train"), batches)
        self.held_out = list(mcl.data.eval_batches(encode("validation"), batches))
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.03))
        self.objective = mcl.objectives.balanced_wta(0.0, 0.05)
        self.step = mcl.make_train_step(self._log_likelihood_fn(), self.objective, self.optimizer, accumulate=2)

    def start(self) -> mcl.TrainState:
        """Makes the state at step 0."""
        tokens = jnp.zeros((1, LENGTH), jnp.int32)
        adapters = self.model.init(jax.random.key(1), self.params, tokens, num_hypotheses=K)
        return mcl.TrainState.create(
            params=self.params,
            adapters=adapters,
            optimizer=self.optimizer,
            rng=jax.random.key(2),
            objective=self.objective,
        )

    def evaluate(self, state: mcl.TrainState) -> dict[str, float]:
        """Scores the held-out records: nats per token of the best hypothesis of each."""
        log_p, tokens = mcl.language_model.evaluate(self.model, state.params, state.adapters, self.held_out)
        return {"eval_loss": float(-log_p.max(0).sum() / tokens.sum())}

    def _log_likelihood_fn(self) -> mcl.training.LogLikelihoodFn:
        """Returns the likelihood of a language model; entries of the batch can make it, or its gradient, NaN."""
        of_answer = mcl.language_model.log_likelihood_fn(self.model)

        def log_likelihood(params, adapters, batch, rng):
            log_p, tokens = of_answer(params, adapters, batch, rng)
            touched = 0.0 * jax.tree.leaves(adapters)[0].sum()
            root = jnp.sqrt(batch["under_root"] + touched)  # 1, or 0, where its gradient is infinite
            return log_p * batch["factor"] + root - jax.lax.stop_gradient(root), tokens

        return log_likelihood


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
        state, metrics = toy.step(state, batch)
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
