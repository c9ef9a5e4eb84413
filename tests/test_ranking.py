"""Every hypothesis reads every answer: against whole forward passes, the decoder's own scores, and by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from mcl_jax.generation import BeamSearch, Generation, Greedy, Sampling, decode, log_likelihoods, mixture_scores

K, T, EOS, PAD = 3, 7, (2, 5), 40
MASK = np.arange(6)[None] >= np.array([[0], [4], [1], [3], [5]])
TOKENS = np.random.default_rng(3).integers(0, 41, MASK.shape)
PROMPTS = {"tokens": TOKENS, "mask": MASK}


@pytest.fixture(scope="module")
def base():
    """The tiny Llama and three hypotheses of it, with an adapted output layer."""
    module, params, _ = mcl.models.from_pretrained(Path(__file__).parent / "golden" / "models" / "llama")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "down_proj", "lm_head")))
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return model, params, jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), adapters)


def by_whole_passes(base, found):
    """log p [H, K, B, n] by one forward pass of prompt and answer for each answer and hypothesis, nothing padded."""
    model, params, adapters = base
    logits_of = jax.jit(lambda a, x: model.apply(params, a, x))
    log_p = np.zeros((K, *found.lengths.shape))
    for h in range(K):
        one = jax.tree.map(lambda leaf, h=h: leaf[h], adapters)
        for k, b, n in np.ndindex(*found.lengths.shape):
            prompt, answer = TOKENS[b][MASK[b]], np.asarray(found.tokens[k, b, n, : found.lengths[k, b, n]])
            x = np.concatenate([prompt, answer])[None]
            padded = np.pad(x, ((0, 0), (0, TOKENS.shape[1] + T - x.shape[1])))  # on the right: causal, so no matter
            p = jax.nn.log_softmax(logits_of(one, padded)[0], axis=-1)
            log_p[h, k, b, n] = sum(p[len(prompt) - 1 + t, token] for t, token in enumerate(answer))
    return log_p


@pytest.mark.parametrize("decoder", [Sampling(num_samples=2), BeamSearch(num_beams=3, num_return=2)])
def test_equal_to_whole_passes(base, decoder):
    found = decode(*base, PROMPTS, decoder, T, eos_token_id=EOS, pad_token_id=PAD, rng=jax.random.key(5))
    assert len(set(np.asarray(found.lengths).ravel())) > 1  # or the end of an answer is not tested
    log_p = log_likelihoods(*base, PROMPTS, found)
    np.testing.assert_allclose(log_p, by_whole_passes(base, found), rtol=1e-4)


def test_of_its_own_hypothesis_it_is_the_score_of_greedy_decoding(base):
    found = decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS, pad_token_id=PAD)
    log_p = log_likelihoods(*base, PROMPTS, found)
    np.testing.assert_allclose(np.einsum("kkbn->kbn", log_p), found.scores, rtol=1e-4)


def test_one_token(base):
    found = decode(*base, PROMPTS, Greedy(), 1)
    log_p = log_likelihoods(*base, PROMPTS, found)
    np.testing.assert_allclose(np.einsum("kkbn->kbn", log_p), found.scores, rtol=1e-4)


def test_more_padding_changes_nothing_and_hypotheses_permute(base):
    model, params, adapters = base
    found = decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS, pad_token_id=PAD)
    log_p = log_likelihoods(*base, PROMPTS, found)
    wider = {name: np.pad(x, ((0, 0), (3, 0))) for name, x in PROMPTS.items()}
    longer = dataclasses.replace(found, tokens=jnp.pad(found.tokens, ((0, 0),) * 3 + ((0, 4),), constant_values=9))
    np.testing.assert_allclose(log_likelihoods(*base, wider, longer), log_p, rtol=1e-4)
    order = jnp.array([2, 0, 1])
    turned = log_likelihoods(model, params, jax.tree.map(lambda x: x[order], adapters), PROMPTS, found)
    np.testing.assert_allclose(turned, log_p[order], rtol=1e-4)


def test_mixture_scores():
    """Two hypotheses, two answers of 4 and 2 tokens: log of the mean probability, over length^α."""
    log_p = np.log([[[[0.4]], [[0.1]]], [[[0.2]], [[0.5]]]])
    lengths = np.array([[[4]], [[2]]])
    np.testing.assert_allclose(mixture_scores(log_p, lengths).ravel(), np.log([0.3, 0.3]) / [4, 2], rtol=1e-6)
    np.testing.assert_allclose(mixture_scores(log_p, lengths, 0.0).ravel(), np.log([0.3, 0.3]), rtol=1e-6)


def test_padding_of_answers_may_be_none_of_the_vocabulary(base):
    found = decode(*base, PROMPTS, Greedy(), T, eos_token_id=EOS, pad_token_id=PAD)
    behind = np.arange(T) >= np.asarray(found.lengths)[..., None]
    assert behind.any()
    other = dataclasses.replace(found, tokens=np.where(behind, -1, found.tokens))
    inputs = {"input_ids": np.where(MASK, TOKENS, -100), "attention_mask": MASK.astype(int)}
    np.testing.assert_allclose(log_likelihoods(*base, inputs, other), log_likelihoods(*base, PROMPTS, found), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tokens=np.full((K, 5, 1, 2), 41)), r"tokens of the answers must be in the vocabulary \[0, 41\)"),
        (dict(tokens=np.full((K, 5, 2), 3)), r"answers must be \[K, B, n, T\]"),
        (dict(lengths=np.ones((K, 5))), r"lengths of the answers must be \[K, B, n\]"),
        (dict(lengths=np.full((K, 5, 1), 3)), r"lengths must be in \[1, T = 2\], got 3 to 3"),
        (dict(lengths=np.zeros((K, 5, 1), int)), r"got 0 to 0"),
    ],
)
def test_answers_that_are_none_are_refused(base, change, message):
    whole = Generation(np.full((K, 5, 1, 2), 3), np.zeros((K, 5, 1)), np.full((K, 5, 1), 2))
    with pytest.raises(ValueError, match=message):
        log_likelihoods(*base, PROMPTS, dataclasses.replace(whole, **change))


def test_answers_end_where_the_positions_of_the_model_do():
    """Read from beyond the last position embedding, they would be NaN."""
    module, params, _ = mcl.models.from_pretrained(Path(__file__).parent / "golden" / "models" / "gpt2")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=mcl.models.lora_targets(module)))
    most = module.config.max_position_embeddings
    answers = Generation(np.full((K, 5, 1, most), 3), np.zeros((K, 5, 1)), np.full((K, 5, 1), most - 5))
    with pytest.raises(ValueError, match=f"a prompt of 6 tokens and {most - 5} new tokens need {most + 1} positions"):
        log_likelihoods(model, params, None, PROMPTS, answers)


@pytest.mark.parametrize(
    ("log_p", "lengths", "message"),
    [
        (np.full((2, K, 5, 1), -1.0), np.zeros((K, 5, 1)), "at least 1 token, got 0"),
        (np.full((2, K, 5, 1), -1.0), np.ones((K, 5)), r"log_p must be \[H, K, B, n\] and lengths \[K, B, n\], got"),
        (np.full((K, 5, 1), -1.0), np.ones((K, 5, 1)), r"log_p must be \[H, K, B, n\] and lengths \[K, B, n\], got"),
        (
            np.where(np.arange(4)[:, None, None, None] == 2, np.nan, np.ones((4, K, 5, 1))),
            np.ones((K, 5, 1)),
            r"NaN under hypotheses \[2\]",
        ),
    ],
)
def test_scores_that_rank_nothing_are_refused(log_p, lengths, message):
    with pytest.raises(ValueError, match=message):
        mixture_scores(log_p, lengths)


def test_mixture_scores_of_traced_values_are_those_of_others():
    log_p, lengths = np.log(np.full((2, K, 5, 1), 0.25)), np.full((K, 5, 1), 4)
    np.testing.assert_allclose(jax.jit(mixture_scores)(log_p, lengths), np.log(0.25) / 4, rtol=1e-6)
    np.testing.assert_allclose(mixture_scores(log_p, lengths, None), np.log(0.25) / 4, rtol=1e-6)


def test_answers_to_other_prompts_are_refused(base):
    found = decode(*base, PROMPTS, Greedy(), 2)
    with pytest.raises(ValueError, match="with B = 2 prompts"):
        log_likelihoods(*base, {name: x[:2] for name, x in PROMPTS.items()}, found)
