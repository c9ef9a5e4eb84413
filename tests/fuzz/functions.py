"""Fuzz targets: functions, against what they must be in NumPy. Shapes are few, so that little is compiled."""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from toys import normal

import mcl_jax as mcl
from mcl_jax import likelihood, objectives
from mcl_jax.data import Prompt
from mcl_jax.data import records as rec
from mcl_jax.data.encoding import encode_records
from tests.fuzz.targets import HELD, REFUSED, Fault, Target
from tests.fuzz.text_files import SENTENCES

SEEDS = st.integers(0, 2**31 - 1)
MADE = {
    "mle": objectives.mle,
    "wta": objectives.wta,
    "relaxed": lambda: objectives.relaxed_wta(0.1),
    "annealed": lambda: objectives.annealed(lambda step: 2.0 * 0.9**step),
    "mixture": objectives.mixture,
    "balanced": lambda: objectives.balanced_wta(0.1, 0.05),
}
CASES = [(name, K, B) for name in MADE for K, B in (((1, 5),) if name == "mle" else ((3, 7),))]


def need(holds: Any, what: str) -> None:
    """Raises a Fault unless it holds."""
    if not holds:
        raise Fault(what)


@st.composite
def log_likelihoods(draw: Any) -> tuple[str, np.ndarray, int, int]:
    """An objective, log p [K, B] (with ties, infinities of diverged hypotheses, and sizes of any order), step, seed."""
    name, K, B = draw(st.sampled_from(CASES))
    kinds = st.one_of(st.floats(-50, 0, width=32), st.sampled_from([0.0, -1.0, -1e30, -3e4, -1e-30]))
    log_p = np.array(draw(st.lists(kinds, min_size=K * B, max_size=K * B)), np.float32).reshape(K, B)
    if draw(st.integers(0, 4)) == 0 and K > 1:
        log_p[draw(st.integers(0, K - 1)), draw(st.integers(0, B - 1))] = draw(st.sampled_from([np.nan, -np.inf]))
    return name, log_p, draw(st.integers(0, 50)), draw(SEEDS)


def check_objective(_: Path, case: tuple[str, np.ndarray, int, int]) -> str:
    """Weights are a distribution over hypotheses, the likeliest has the most, and their order does not matter."""
    name, log_p, step, seed = case
    K, B = log_p.shape
    q = np.asarray(_weights(name, log_p, step, jax.random.key(seed)))
    need(
        q.shape == (K, B) and np.allclose(q.sum(0), 1, atol=1e-5) and q.min() >= 0, f"{name}: q is no distribution: {q}"
    )
    sound = np.isfinite(log_p).all()
    if sound and name in ("wta", "relaxed", "annealed", "mixture"):
        need(
            (q.max(0) == q[log_p.argmax(0), np.arange(B)]).all() or _tied(log_p),
            f"{name}: the likeliest has not the most: {q}",
        )
    if name == "mixture" and sound:
        p = np.exp(log_p.astype(np.float64) - log_p.max(0))
        need(np.allclose(q, p / p.sum(0), atol=1e-5), f"mixture: q is no softmax: {q}")
    if sound and name not in ("mle", "balanced") and not _tied(log_p):
        order = np.random.default_rng(seed).permutation(K)
        again = np.asarray(_weights(name, log_p[order], step, jax.random.key(seed)))
        need(np.allclose(again, q[order], atol=1e-5), f"{name}: another order of hypotheses gives other weights")
    return HELD


@functools.partial(jax.jit, static_argnames="name")
def _weights(name: str, log_p: Any, step: Any, rng: Any) -> Any:
    objective = MADE[name]()
    return objective.weights(log_p, step, objective.init(len(log_p)), rng)


def _tied(log_p: np.ndarray) -> bool:
    """Whether two hypotheses are as likely on an example, within the tolerance in which they tie."""
    gaps = np.diff(np.sort(log_p.astype(np.float64), axis=0), axis=0)
    return bool((gaps <= 2 * objectives.TIE_TOLERANCE * (1 + np.abs(log_p).max(0))).any())


@st.composite
def sequences(draw: Any) -> tuple[int, str, np.ndarray, float]:
    """A seed, a dtype, a mask [B, T] of any pattern, and the size of the logits."""
    T = 7
    mask = np.array(draw(st.lists(st.booleans(), min_size=5 * T, max_size=5 * T))).reshape(5, T)
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    return draw(SEEDS), dtype, mask, draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3]))


def check_likelihood(_: Path, case: tuple[int, str, np.ndarray, float]) -> str:
    """log p is that of a log-softmax in NumPy; padding, and what stands in it, changes nothing."""
    seed, dtype, mask, scale = case
    rng, (B, T), V = np.random.default_rng(seed), mask.shape, 11
    logits = jnp.asarray(scale * rng.normal(size=(B, T, V)), dtype)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    log_p, tokens = map(np.asarray, likelihood.sequence_log_likelihood(logits, targets, mask))
    x = np.asarray(logits, np.float64)
    shifted = x - x.max(-1, keepdims=True)
    each = np.take_along_axis(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), targets[..., None], -1)[..., 0]
    need(np.array_equal(tokens, mask.sum(-1)), f"other numbers of tokens: {tokens}")
    need(np.allclose(log_p, (each * mask).sum(-1), rtol=1e-4, atol=1e-4 * max(1, scale)), f"other log p: {log_p}")
    junk = jnp.asarray(np.full((B, 4, V), 1e4), dtype)
    more = likelihood.sequence_log_likelihood(
        jnp.concatenate([logits, junk], 1), np.pad(targets, ((0, 0), (0, 4))), np.pad(mask, ((0, 0), (0, 4)))
    )
    need(np.allclose(np.asarray(more[0]), log_p, rtol=1e-6, atol=1e-6), f"padding changes log p: {more[0]}, {log_p}")
    return HELD


@st.composite
def kernels(draw: Any) -> tuple[int, int, int, bool, str]:
    """Seed, rank, α, rsLoRA, dtype."""
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    return draw(SEEDS), draw(st.sampled_from([2, 3])), draw(st.integers(1, 40)), draw(st.booleans()), dtype


def check_adapters(_: Path, case: tuple[int, int, int, bool, str]) -> str:
    """Zero-B adapters change nothing; with B, x W becomes x (W + s A B), for every hypothesis, merged or not."""
    seed, rank, alpha, stabilized, dtype = case
    config = mcl.LoraConfig(rank=rank, alpha=alpha, targets=("up",), rank_stabilized=stabilized)
    model = mcl.Hypotheses(_Layer(), config)
    x = jnp.asarray(normal((5, 7), seed))
    params = {"up": {"kernel": jnp.asarray(normal((7, 11), seed + 1)), "bias": jnp.asarray(normal((11,), seed + 2))}}
    a, b = normal((3, 7, rank), seed + 3), normal((3, rank, 11), seed + 4)
    zero = {"up": {"a": jnp.asarray(a, dtype), "b": jnp.zeros((3, rank, 11), dtype)}}
    plain = np.asarray(x) @ np.asarray(params["up"]["kernel"]) + np.asarray(params["up"]["bias"])
    need(np.allclose(np.asarray(model.apply_all(params, zero, x)), plain, atol=1e-5), "zero-B adapters change the base")
    adapters = {"up": {"a": jnp.asarray(a, dtype), "b": jnp.asarray(b, dtype)}}
    scale = alpha / (rank**0.5 if stabilized else rank)
    given = [np.asarray(leaf.astype(jnp.float32)) for leaf in (adapters["up"]["a"], adapters["up"]["b"])]
    expected = plain + scale * np.einsum("bi,kir,kro->kbo", np.asarray(x), *given)
    close = dict(rtol=3e-2, atol=3e-2 * scale * rank) if dtype == "bfloat16" else dict(rtol=1e-4, atol=1e-4 * scale)
    need(np.allclose(np.asarray(model.apply_all(params, adapters, x), np.float32), expected, **close), "another delta")
    merged = np.asarray(x) @ np.asarray(model.merge(params, adapters, 1)["up"]["kernel"]) + np.asarray(
        params["up"]["bias"]
    )
    need(np.allclose(merged, expected[1], **close), "merged, hypothesis 1 is another")
    return HELD


class _Layer(nn.Module):
    """[B, 7] to [B, 11]."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(11, name="up")(x)


class _Letters:
    """A token for each byte, after 3 special ones."""

    eos_token_id, pad_token_id = 0, 1

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def decode(self, ids: Any) -> str:
        return bytes(i - 3 for i in ids if i > 2).decode("utf-8", "replace")


def records() -> st.SearchStrategy:
    """Sources and answers of any characters, and the longest length."""
    text = st.one_of(st.sampled_from(SENTENCES), st.text(max_size=9))
    return st.tuples(st.lists(st.tuples(text, text), min_size=1, max_size=4), st.integers(1, 60))


def check_encoding(_: Path, case: tuple[list[tuple[str, str]], int]) -> str:
    """Every kept target ends in eos and fits; nothing is lost without being told."""
    pairs, longest = case
    try:
        made = [rec.Record(str(i), source, (rec.Target(answer),)) for i, (source, answer) in enumerate(pairs)]
        encoded = encode_records(made, _Letters(), Prompt("{source}>"), max_length=longest, too_long="drop")
    except ValueError as error:
        need(str(error), "an error without a message")
        return REFUSED
    need(len(encoded.prompts) + len(encoded.dropped) == len(pairs), "records are lost")
    for row, lengths in zip(encoded.index, encoded.lengths(), strict=True):
        source, answer = pairs[row]
        need(lengths.max() <= longest, "a record is too long")
        need(lengths[0] == len(f"{source}>".encode()) + len(answer.encode()), "another number of positions")
    need(all(target[-1] == 0 for targets in encoded.targets for target in targets), "a target without eos")
    return HELD


TARGETS = [
    Target("objectives", log_likelihoods, check_objective, 2.0),
    Target("likelihood", sequences, check_likelihood, 2.0),
    Target("adapters", kernels, check_adapters, 0.7),
    Target("encoding", records, check_encoding),
]
