"""Options of decoding that end or steer a continuation: stop strings, n-grams, max_length, streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_language import K, Pieces, V, bigram_hypotheses

from mcl_jax.generation import BeamSearch, Greedy, Sampling, decode, filters, stopping
from mcl_jax.generation.step import Step, completed

PROMPTS = {"tokens": np.array([[0, 0, 5], [7, 5, 9]]), "mask": np.array([[0, 0, 1], [1, 1, 1]], bool)}


@pytest.fixture(scope="module")
def base():
    return bigram_hypotheses()


# ------------------------------------------------------------------------------------------------------------ n-grams


def banned_by_a_loop(tokens, size):
    """The tokens that would complete an n-gram which is there already."""
    if len(tokens) < size - 1:
        return set()
    begun = tokens[len(tokens) - (size - 1) :]
    return {tokens[i + size - 1] for i in range(len(tokens) - size + 1) if tokens[i : i + size - 1] == begun}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_occurs_twice(size):
    """Rows of three letters, padded on the left, of which some are shorter than an n-gram."""
    rng, rows, width, after = np.random.default_rng(size), 31, 17, 5
    real = rng.integers(0, width + 1, rows)
    tokens = rng.integers(0, 3, (rows, width))
    tokens[np.arange(width) < width - real[:, None]] = filters.NONE
    history = np.pad(tokens, ((0, 0), (size - 1, after)), constant_values=filters.NONE)
    scores = rng.normal(size=(rows, 5)).astype(np.float32)
    filtered = jax.jit(filters.no_repeat_ngrams, static_argnums=3)(scores, history, width + size - 1, size)
    some = 0
    for row, before, found, length in zip(tokens, scores, filtered, real, strict=True):
        banned = banned_by_a_loop(row[width - length :].tolist(), size)
        some += len(banned)
        np.testing.assert_array_equal(found, [-np.inf if v in banned else x for v, x in enumerate(before)])
    assert some > 3


def test_decoding_repeats_no_bigram_of_prompt_and_answer(base):
    """Greedy decoding of bigrams runs in circles. The padding holds a bigram of the answer, and does not count."""
    model, params, adapters = base
    after_each = np.asarray(jax.jit(model.apply_all)(params, adapters, np.arange(V)[None]))[:, 0]  # [K, V, V]

    def by_a_loop(k, prompt, size):
        tokens = list(prompt)
        for _ in range(11):
            allowed = [v for v in range(V) if v not in banned_by_a_loop(tokens, size)]
            tokens.append(max(allowed, key=lambda v: after_each[k, tokens[-1], v]))
        return tokens[-11:]

    prompts = {name: x.copy() for name, x in PROMPTS.items()}
    prompts["tokens"][0, :2] = by_a_loop(0, [5], 2)[:2]
    answers = np.asarray(decode(*base, prompts, Greedy(), 11, no_repeat_ngram_size=2).tokens)
    for k in range(K):
        for b, real in enumerate([[5], [7, 5, 9]]):
            assert answers[k, b, 0].tolist() == by_a_loop(k, real, 2)
            assert by_a_loop(k, real, 2) != by_a_loop(k, real, 99)  # else the test shows nothing


# -------------------------------------------------------------------------------------------------------- Stop strings


def test_stop_sequences_end_where_they_are_complete():
    tokens = np.random.default_rng(0).integers(0, 3, (5, 2, 17))
    sequences = ((1,), (2, 0), (0, 0, 0), tuple([0] * 18))
    found = np.asarray(jax.jit(completed, static_argnums=1)(tokens, sequences))
    for index in np.ndindex(found.shape):
        so_far = tokens[index[:2]][: index[2] + 1].tolist()
        assert found[index] == any(so_far[-len(s) :] == list(s) for s in sequences), index
    step = Step(jnp.int32(4), None, (), 0, 17, ((2, 0),))
    np.testing.assert_array_equal(
        step.ends(tokens[..., 4], jnp.asarray(tokens)), (tokens[..., 3] == 2) & (tokens[..., 4] == 0)
    )
    with pytest.raises(ValueError, match="stop strings need a decoder that passes its rows"):
        step.ends(tokens[..., 4])


SAMPLES = Sampling(num_samples=7, temperature=2.0)
OPTIONS = dict(eos_token_id=12, tokenizer=Pieces(), rng=jax.random.key(1))
STOPS = ("ab", "d\n")


def cut_by_a_loop(row):
    """The tokens up to the one that completes a stop string."""
    for n in range(1, len(row) + 1):
        if any(stop in Pieces().decode(row[:n]) for stop in STOPS):
            return row[:n]
    return row


def test_answers_end_with_the_token_that_completes_a_stop_string(base):
    """Whether `encode` writes it in these tokens, and decoding stops there, or not."""
    plain, found = (
        jax.tree.map(np.asarray, decode(*base, PROMPTS, SAMPLES, 17, stop_strings=strings, **OPTIONS))
        for strings in ((), STOPS)
    )
    ends = set()
    for index in np.ndindex(plain.lengths.shape):
        whole = plain.tokens[index][: plain.lengths[index]].tolist()
        row, length = cut_by_a_loop(whole), int(found.lengths[index])
        assert found.tokens[index].tolist() == row + [12] * (17 - len(row)) and length == len(row)
        if row != whole:
            ends.add(tuple(row[-2:]) if row[-1] != 10 else (10,))
        text = stopping.text_of(Pieces(), found.tokens[index][:length].tolist(), STOPS)
        assert text == Pieces().decode(whole, True).split("ab")[0].split("d\n")[0].strip()
    assert {(3, 11), (10,)} <= ends
    assert stopping.sequences_of(Pieces(), STOPS) == ((0, 1), (3, 11))


def test_a_stop_string_of_one_token_ends_beams_as_an_end_token_does(base):
    beams = BeamSearch(num_beams=3, num_return=2)
    wanted = decode(*base, PROMPTS, beams, 9, eos_token_id=(12, 6), pad_token_id=12)
    found = decode(*base, PROMPTS, beams, 9, eos_token_id=12, stop_strings="g", tokenizer=Pieces())
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert (np.asarray(found.tokens) == 6).any()


# ---------------------------------------------------------------------------------------------------------- Streaming


def test_a_stream_has_the_tokens_of_the_whole(base):
    options, seen = dict(stop_strings=STOPS, **OPTIONS), []
    found = decode(*base, PROMPTS, SAMPLES, 17, stream=seen.append, stream_every=5, **options)
    wanted = decode(*base, PROMPTS, SAMPLES, 17, **options)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert len(seen) == 4
    for number, part in enumerate(seen, 1):
        np.testing.assert_array_equal(part.lengths, np.minimum(wanted.lengths, 5 * number))
        there = np.arange(17) < np.asarray(part.lengths)[..., None]
        np.testing.assert_array_equal(part.tokens, np.where(there, wanted.tokens, 12))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [Greedy(), SAMPLES], ids=["greedy", "sampling"])
def test_a_stream_ends_with_the_last_row(base, decoder):
    options, seen = dict(no_repeat_ngram_size=3, stop_strings=[*"cdefghij"], repetition_penalty=1.3, **OPTIONS), []
    found = decode(*base, PROMPTS, decoder, 17, stream=seen.append, stream_every=3, **options)
    jax.tree.map(np.testing.assert_array_equal, found, decode(*base, PROMPTS, decoder, 17, **options))
    assert len(seen) == -(-int(found.lengths.max()) // 3) < 5


# ------------------------------------------------------------------------------------------------- Lengths and refusals


def test_max_length_counts_the_prompts_with_their_padding(base):
    found = decode(*base, PROMPTS, max_length=14)
    np.testing.assert_array_equal(found.tokens, decode(*base, PROMPTS, max_new_tokens=11).tokens)
    assert found.tokens.shape[-1] == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=3, max_length=9), "give max_new_tokens or max_length, .* not both; got 3 and 9"),
        (dict(max_length=3), "max_length must be above the length of the prompts, 3 tokens with padding, got 3"),
        (dict(max_length=2.5), "max_length must be an integer"),
        (dict(no_repeat_ngram_size=-1), "no_repeat_ngram_size must be at least 0, got -1"),
        (dict(stop_strings="a"), "stop_strings need the tokenizer that reads the tokens, got tokenizer=None"),
        (dict(stop_strings=["a", ""], tokenizer=Pieces()), "stop_strings must be texts that are not empty, got ''"),
        (dict(stop_strings=[3], tokenizer=Pieces()), "stop_strings must be texts that are not empty, got 3"),
        (dict(decoder=BeamSearch(3), stream=print), r"stream needs tokens that stay, .* got BeamSearch\(num_beams=3"),
        (dict(stream=print, stream_every=0), "stream_every must be at least 1, got 0"),
    ],
)
def test_refusals(base, options, message):
    with pytest.raises(ValueError, match=message):
        decode(*base, PROMPTS, **options)


def test_stop_strings_need_tokens_on_the_host(base):
    with pytest.raises(ValueError, match=r"but these are traced; decode without jax\.jit"):
        jax.eval_shape(lambda tokens: decode(*base, tokens, stop_strings="a", **OPTIONS), PROMPTS["tokens"])
