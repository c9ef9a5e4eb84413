"""Decoding: token for token what Hugging Face generates (tests/golden/make_generation.py), for every hypothesis."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from mcl_jax.generation import BeamSearch, DiverseBeamSearch, Greedy, Sampling, decode, filters

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = np.load(GOLDEN / "generation.npz")
CASES = sorted({name.split("/")[0] for name in EXPECTED.files if name.endswith("/options")})
PROMPTS = {"tokens": EXPECTED["tokens"], "mask": EXPECTED["mask"]}
EOS = tuple(int(token) for token in EXPECTED["eos"])
PAD = int(EXPECTED["pad"])
K = 3


@pytest.fixture(scope="module")
def base():
    """The tiny Llama with a flatter head, and three hypotheses of it, of which the first is the base itself."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama")
    params = params | {"lm_head": {"kernel": params["lm_head"]["kernel"] * 0.3}}
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj", "down_proj")))
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    drawn = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape).at[0].set(0.0), adapters)
    return model, params, drawn


def decoder_of(options):
    options = dict(options)
    for name in ("max_new_tokens", "min_new_tokens", "repetition_penalty"):
        options.pop(name, None)
    renamed = {"num_return_sequences": "num_return", "num_beam_groups": "num_groups"}
    options = {renamed.get(name, name): value for name, value in options.items()}
    if not options:
        return Greedy()
    return (DiverseBeamSearch if "num_groups" in options else BeamSearch)(**options)


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_hugging_faces(base, case):
    options = json.loads(str(EXPECTED[f"{case}/options"]))
    limits = {name: options[name] for name in ("min_new_tokens", "repetition_penalty") if name in options}
    found = decode(
        *base, PROMPTS, decoder_of(options), options["max_new_tokens"], eos_token_id=EOS, pad_token_id=PAD, **limits
    )
    n = options.get("num_return_sequences", 1)
    assert found.tokens.shape == (K, 4, n, options["max_new_tokens"])
    first = np.asarray(found.tokens[0]).reshape(4 * n, -1)
    if case.startswith("diverse"):  # version 4.56.2 writes the first end token in the place of whichever it was
        first = np.where(np.isin(first, EOS), EOS[0], first)
    np.testing.assert_array_equal(first, EXPECTED[f"{case}/tokens"])
    if f"{case}/scores" in EXPECTED.files:
        np.testing.assert_allclose(found.scores[0].reshape(-1), EXPECTED[f"{case}/scores"], rtol=1e-4)
    assert len({found.tokens[k].tobytes() for k in range(K)}) == K  # the hypotheses differ, or the test shows little


@pytest.mark.parametrize("decoder", [Greedy(), BeamSearch(num_beams=3, num_return=2)], ids=["greedy", "beam"])
def test_hypotheses_together_are_each_alone_and_merged(base, decoder):
    model, params, adapters = base
    together = decode(model, params, adapters, PROMPTS, decoder, 9, eos_token_id=EOS)
    zero = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), adapters)
    for k in range(K):
        alone = decode(model, params, jax.tree.map(lambda x, k=k: x[k : k + 1], adapters), PROMPTS, decoder, 9,
                       eos_token_id=EOS)  # fmt: skip
        merged = decode(model, model.merge(params, adapters, k), zero, PROMPTS, decoder, 9, eos_token_id=EOS)
        for one in (alone, merged):
            np.testing.assert_array_equal(one.tokens[0], together.tokens[k])
            np.testing.assert_allclose(one.scores[0], together.scores[k], rtol=1e-4)


@pytest.mark.parametrize("decoder", [Greedy(), DiverseBeamSearch(4, 2, num_return=3)], ids=["greedy", "diverse"])
def test_more_padding_and_other_prompts_in_the_batch_change_nothing(base, decoder):
    padded = {name: np.pad(x, ((0, 0), (3, 0))) for name, x in PROMPTS.items()}
    padded["tokens"][:, :3] = 17
    whole = decode(*base, PROMPTS, decoder, 8, eos_token_id=EOS)
    np.testing.assert_array_equal(decode(*base, padded, decoder, 8, eos_token_id=EOS).tokens, whole.tokens)
    one = decode(*base, PROMPTS["tokens"][2:3, 5:], decoder, 8, eos_token_id=EOS)
    np.testing.assert_array_equal(one.tokens[:, 0], whole.tokens[:, 2])


def test_greedy_scores_are_log_likelihoods(base):
    model, params, adapters = base
    found = decode(model, params, adapters, PROMPTS["tokens"], Greedy(), 7, eos_token_id=EOS)
    tokens = np.concatenate([np.tile(PROMPTS["tokens"], (K, 1, 1)), found.tokens[:, :, 0]], axis=-1)
    for k in range(K):
        logits = model.apply(params, jax.tree.map(lambda x, k=k: x[k], adapters), tokens[k])[:, :-1]
        target = np.zeros(tokens[k].shape, bool)
        target[:, 7:] = np.arange(7) < np.asarray(found.lengths[k])
        log_p, _ = mcl.sequence_log_likelihood(logits, tokens[k][:, 1:], target[:, 1:])
        np.testing.assert_allclose(found.scores[k, :, 0], log_p, rtol=1e-4)


def test_rows_end_with_an_end_token_and_padding_behind_it(base):
    found = decode(*base, PROMPTS, BeamSearch(num_beams=3, num_return=3), 13, eos_token_id=EOS, pad_token_id=40)
    tokens, lengths = np.asarray(found.tokens).reshape(-1, 13), np.asarray(found.lengths).reshape(-1)
    assert len(set(lengths)) > 2
    for row, length in zip(tokens, lengths, strict=True):
        assert not np.isin(row[: length - 1], EOS).any()
        assert length == 13 or row[length - 1] in EOS
        assert (row[length:] == 40).all()


# ---------------------------------------------------------------------------------------------------------- Sampling


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("temperature", Sampling(temperature=0.7)),
        ("top_k", Sampling(top_k=7)),
        ("top_p", Sampling(top_p=0.83)),
        ("typical", Sampling(typical_p=0.6)),
        ("all", Sampling(temperature=1.3, top_k=19, top_p=0.9, typical_p=0.8)),
    ],
)
def test_filtered_distributions_are_hugging_faces(name, decoder):
    found = decoder.filtered(jnp.asarray(EXPECTED["filtered/scores"]))
    np.testing.assert_allclose(found, EXPECTED[f"filtered/{name}"], rtol=1e-6)


def test_samples_follow_the_filtered_distribution(base):
    """The first token of 4000 samples of one prompt, against its distribution; and samples differ between rows."""
    model, params, adapters = base
    decoder = Sampling(num_samples=4000, top_k=5)
    prompt = PROMPTS["tokens"][:1]
    found = decode(model, params, adapters, prompt, decoder, 1, rng=jax.random.key(4))
    for k in range(K):
        logits = model.apply(params, jax.tree.map(lambda x, k=k: x[k], adapters), prompt)[0, -1]
        p = np.asarray(jax.nn.softmax(decoder.filtered(logits)))
        share = np.bincount(np.asarray(found.tokens[k, 0, :, 0]), minlength=41) / 4000
        assert (share[p == 0] == 0).all()
        np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / 4000))
    assert not np.array_equal(found.tokens[0], found.tokens[1])


def test_sampling_repeats_with_its_key_only(base):
    draw = lambda seed: decode(*base, PROMPTS, Sampling(num_samples=3), 6, rng=jax.random.key(seed)).tokens
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


# ------------------------------------------------------------------------------------------------------ Compile, errors


def test_a_second_batch_of_the_same_shape_compiles_nothing(base, caplog):
    decode(*base, PROMPTS, Greedy(), 5, eos_token_id=EOS)
    with jax.log_compiles():
        decode(*base, {"tokens": PROMPTS["tokens"] * 0 + 9, "mask": PROMPTS["mask"]}, Greedy(), 5, eos_token_id=EOS)
    assert not [record for record in caplog.records if "_decode" in record.message]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: decode(*b, {"tokens": PROMPTS["tokens"], "mask": PROMPTS["mask"][:, ::-1]}), r"left.*rows \[1, 2\]"),
        (lambda b: decode(*b, PROMPTS["tokens"], Greedy(), 0), "max_new_tokens must be at least 1, got 0"),
        (lambda b: decode(*b, PROMPTS, Greedy(), 3, min_new_tokens=4), r"min_new_tokens must be in \[0, 3\], got 4"),
        (lambda b: BeamSearch(num_beams=2, num_return=3), "num_return=3 is more than num_beams=2"),
        (lambda b: DiverseBeamSearch(num_beams=5, num_groups=2), "num_groups=2 must divide num_beams=5"),
        (lambda b: Sampling(temperature=0.0), "temperature must be positive"),
        (lambda b: Sampling(top_p=0.0), r"top_p must be in \(0, 1\], got 0"),
        (lambda b: decode(*b, PROMPTS["tokens"][0]), r"tokens \[B, P\]"),
    ],
)
def test_refusals(base, call, message):
    with pytest.raises(ValueError, match=message):
        call(base)


def test_positions_end_where_their_embeddings_do():
    """Taken from beyond the last row they are NaN, and no error."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "gpt2")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=mcl.models.lora_targets(module)))
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    most = module.config.max_position_embeddings
    prompts = {"tokens": np.zeros((2, 9), np.int32), "mask": np.arange(9)[None] >= np.array([[4], [2]])}
    with pytest.raises(ValueError, match=rf"{most} positions, too few for a prompt of 7 tokens and {most - 6} new"):
        decode(model, params, adapters, prompts, Greedy(), most - 6)
    assert decode(model, params, adapters, prompts, Greedy(), most - 7).tokens.shape == (K, 2, 1, most - 7)


def test_repetition_penalty_acts_on_seen_tokens_both_ways():
    scores, seen = jnp.array([[2.0, -2.0, 1.0]]), jnp.array([[True, True, False]])
    np.testing.assert_allclose(filters.repetition_penalty(scores, seen, 4.0), [[0.5, -8.0, 1.0]])
