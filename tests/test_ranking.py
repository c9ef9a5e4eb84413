"""Every hypothesis reads every answer: against whole forward passes, the decoder's own scores, and by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from mcl_jax.generation import BeamSearch, Greedy, Sampling, decode, log_likelihoods, mixture_scores

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


def test_answers_to_other_prompts_are_refused(base):
    found = decode(*base, PROMPTS, Greedy(), 2)
    with pytest.raises(ValueError, match="of B = 2 prompts"):
        log_likelihoods(*base, {name: x[:2] for name, x in PROMPTS.items()}, found)
