"""Decoding: token for token what Hugging Face generates (tests/golden/make_generation.py), for every hypothesis."""

import contextlib
import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from mcl_jax.generation import BeamSearch, DiverseBeamSearch, Greedy, Sampling, decode, filters, loop
from mcl_jax.generation.decoders import likeliest
from mcl_jax.generation.limits import Limits
from mcl_jax.generation.loop import rooms

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = np.load(GOLDEN / "generation.npz")
CASES = sorted({name.split("/")[0] for name in EXPECTED.files if name.endswith("/options")})
PROMPTS = {"tokens": EXPECTED["tokens"], "mask": EXPECTED["mask"]}
EOS = tuple(int(token) for token in EXPECTED["eos"])
PAD = int(EXPECTED["pad"])
LIMITS = ("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size")
SLOW = {"beam_ngrams"}
CHOSEN = np.array([[2, 0, 1, 2], [0, 1, 2, 1]])  # hypotheses of each prompt
READS = ("parameter", "get-tuple-element", "bitcast")  # instructions that make nothing new
K = 3


@pytest.fixture(scope="module")
def base():
    """The tiny Llama with a flatter head, and three hypotheses of it, of which the first is the base itself."""
    model, params, adapters = random_hypotheses(scan=True)
    params = params | {"lm_head": {"kernel": params["lm_head"]["kernel"] * 0.3}}
    return model, params, jax.tree.map(lambda x: x.at[0].set(0.0), adapters)


@functools.cache
def random_hypotheses(scan):
    """The tiny Llama, with scanned layers or without, and three random hypotheses of it."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", scan=scan)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj", "down_proj")))
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=K)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return model, params, jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), adapters)


@pytest.fixture
def small_rooms(monkeypatch):
    """Makes a context in which decoding begins with room for two tokens."""

    @contextlib.contextmanager
    def small():
        jax.clear_caches()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "FIRST_ROOM", 2)
            patch.setattr(loop, "GROWTH", 2)
            assert rooms(13) == [2, 4, 13]
            yield
        jax.clear_caches()

    return small


def decoder_of(options):
    options = dict(options)
    for name in ("max_new_tokens", *LIMITS):
        options.pop(name, None)
    renamed = {"num_return_sequences": "num_return", "num_beam_groups": "num_groups"}
    options = {renamed.get(name, name): value for name, value in options.items()}
    if not options:
        return Greedy()
    return (DiverseBeamSearch if "num_groups" in options else BeamSearch)(**options)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES])
def test_tokens_are_hugging_faces(base, case):
    options = json.loads(str(EXPECTED[f"{case}/options"]))
    limits = {name: options[name] for name in LIMITS if name in options}
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


@pytest.mark.parametrize(
    ("scan", "decoder"),
    [(True, Greedy()), (True, BeamSearch(num_beams=3, num_return=2)), (False, BeamSearch(num_beams=3, num_return=2))],
    ids=["greedy", "beam", "layers-beam"],
)
def test_hypotheses_together_are_each_alone_and_merged(base, scan, decoder):
    model, params, adapters = base if scan else random_hypotheses(scan)
    together = decode(model, params, adapters, PROMPTS, decoder, 8, eos_token_id=EOS)
    zero = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), adapters)
    for k in range(K):
        alone = decode(
            model, params, jax.tree.map(lambda x, k=k: x[k : k + 1], adapters), PROMPTS, decoder, 8, eos_token_id=EOS
        )
        merged = decode(model, model.merge(params, adapters, k), zero, PROMPTS, decoder, 8, eos_token_id=EOS)
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
    found = decode(model, params, adapters, PROMPTS["tokens"], Greedy(), 8, eos_token_id=EOS)
    tokens = np.concatenate([np.tile(PROMPTS["tokens"], (K, 1, 1)), found.tokens[:, :, 0]], axis=-1)
    apply = jax.jit(model.apply)
    for k in range(K):
        logits = apply(params, jax.tree.map(lambda x, k=k: x[k], adapters), tokens[k])[:, :-1]
        target = np.zeros(tokens[k].shape, bool)
        target[:, 7:] = np.arange(8) < np.asarray(found.lengths[k])
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


@pytest.mark.parametrize("V", [2, 11, 128, 131, 383, 1024])
def test_the_likeliest_token_is_numpys_argmax(V):
    rng = np.random.default_rng(V)
    scores = rng.integers(-3, 3, (97, 3, V)).astype(np.float32)  # with many ties
    scores[5] = rng.normal(size=(3, V))
    scores[:80, :, rng.integers(V)] = 2.5  # the maximum of many rows is one of a tie, or alone, in one place
    scores[90, 0, -1] = 7  # the last of all
    scores[2, 1], scores[3, 0], scores[4, 2, V // 2] = -np.inf, np.nan, np.inf
    for dtype in (jnp.float32, jnp.bfloat16):
        rounded = jnp.asarray(scores, dtype)
        np.testing.assert_array_equal(likeliest(rounded), np.argmax(np.asarray(rounded, np.float32), -1))
    scores[5, 1, V - 1] = np.nan  # one NaN: any token will do, since the row is reported, but it must be one
    assert 0 <= int(likeliest(jnp.asarray(scores))[5, 1]) < V


@pytest.mark.parametrize(
    ("scan", "hypotheses", "prompts", "decoder"),
    [
        (False, K, 2, Greedy()),
        (False, K, 2, Sampling(2)),
        (False, K, 1, Greedy()),
        (False, 1, 1, Greedy()),
        (False, 1, 2, Sampling(2)),
        (True, K, 2, Sampling(2)),
        (True, 1, 2, Greedy()),
    ],
)
def test_no_step_copies_the_keys_and_values_before_it(base, scan, hypotheses, prompts, decoder):
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", scan=scan)
    model = mcl.Hypotheses(module, base[0].config)
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=hypotheses)
    P, T, layers = 17, 13, module.config.num_hidden_layers
    inputs = {"tokens": jax.ShapeDtypeStruct((prompts, P), jnp.int32)}
    text = mcl.generation.lower_decode(model, params, adapters, inputs, decoder, T).compile().as_text()
    bodies = [text[text.index(f"\n%{name} ") :] for name in re.findall(r" while\(.*body=%([\w.\-]+)", text)]
    body = next(
        body for body in (body.split("\n}")[0] for body in bodies) if "/while/body/dynamic_update_slice" in body
    )
    made = re.findall(r"= f32\[([\d,]+)\]\S* ([\w\-]+)\(", body)
    made = [sorted(map(int, shape.split(","))) for shape, kind in made if kind not in READS]
    heads, d = module.config.num_key_value_heads, module.config.head_dim
    samples = 1 if isinstance(decoder, Greedy) else 2

    def count(rows, slots, *more):
        sizes = [hypotheses, rows, heads, d, slots, *more]
        return sum([n for n in shape if n > 1] == sorted(n for n in sizes if n > 1) for shape in made)

    stacked = [layers] if scan else []
    assert count(prompts, P, *stacked) == 0
    assert count(samples * prompts, T, *stacked) == (2 if scan else 2 * layers)  # as they are updated


@pytest.mark.parametrize(
    ("scan", "chosen", "decoder"),
    [
        (True, None, Greedy()),
        (False, CHOSEN, Sampling(2)),
        (False, None, BeamSearch(3, num_return=2)),
        (True, CHOSEN, DiverseBeamSearch(4, 2)),
    ],
    ids=["greedy", "sampling", "beam", "diverse"],
)
def test_the_room_for_keys_and_values_grows(small_rooms, scan, chosen, decoder):
    run = lambda: decode(*random_hypotheses(scan), PROMPTS, decoder, 13, eos_token_id=EOS, chosen=chosen)
    at_once = run()
    with small_rooms():
        grown = run()
    np.testing.assert_array_equal(grown.tokens, at_once.tokens)
    np.testing.assert_allclose(grown.scores, at_once.scores, rtol=1e-5)


def test_a_stream_is_the_same_where_the_room_grows(small_rooms):
    whole, seen = decode(*random_hypotheses(scan=True), PROMPTS, Greedy(), 13, pad_token_id=39), []
    with small_rooms():
        decode(
            *random_hypotheses(scan=True), PROMPTS, Greedy(), 13, pad_token_id=39, stream=seen.append, stream_every=5
        )
    for length, so_far in zip([5, 10, 13], seen, strict=True):
        np.testing.assert_array_equal(so_far.tokens[..., :length], whole.tokens[..., :length])
        assert (so_far.tokens[..., length:] == 39).all()


def test_answers_that_end_early_need_no_more_room(small_rooms, monkeypatch):
    run = lambda end: decode(*random_hypotheses(scan=False), PROMPTS, Greedy(), 13, eos_token_id=end, pad_token_id=39)
    third = {int(token) for token in run(()).tokens[..., 2].ravel()}
    allocated, grown = [], loop.grown

    def counted(carry, slots):
        jax.debug.callback(lambda: allocated.append(slots))
        return grown(carry, slots)

    monkeypatch.setattr(loop, "grown", counted)
    for end, slots in ((), [2, 4, 13]), (tuple(third), [2]):
        allocated.clear()
        with small_rooms():
            jax.block_until_ready(run(end))
            jax.effects_barrier()
        assert sorted(allocated) == slots


def test_few_tokens_have_one_room_and_more_tokens_have_few():
    assert [rooms(tokens) for tokens in (1, 64, 127)] == [[1], [64], [127]]
    assert [rooms(tokens) for tokens in (128, 511, 512, 2048)] == [
        [64, 128],
        [64, 511],
        [64, 256, 512],
        [64, 256, 1024, 2048],
    ]


def test_no_step_reads_more_slots_than_there_is_room_for():
    model, params, adapters = random_hypotheses(scan=False)
    inputs = {"tokens": jax.ShapeDtypeStruct((2, 5), jnp.int32)}
    text = mcl.generation.lower_decode(model, params, adapters, inputs, Greedy(), 131).as_text()
    heads, d = model.module.config.num_key_value_heads, model.module.config.head_dim
    first, second = (text.index(f"tensor<{K}x2x{heads}x{d}x{slots}xf32>") for slots in (64, 131))
    assert first < text.index("stablehlo.while") < second


def test_a_rotation_is_computed_once_for_all_layers_heads_and_hypotheses(base):
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", scan=False)
    tokens = jax.ShapeDtypeStruct((K, 2, 5), jnp.int32)
    every = jax.jit(lambda params, tokens: jax.vmap(lambda one: module.apply({"params": params}, one))(tokens))
    text = every.lower(params, tokens).compile().as_text()
    assert text.count(" cosine(") == text.count(" sine(") == 1


def test_the_last_token_is_not_run(base, monkeypatch):
    """T tokens need the prompts and T - 1 tokens; so does an end token, after which nothing is run."""
    model, params, adapters = base
    runs = []
    of_layers = type(model.module).extend

    def extend(*args, **kwargs):
        jax.debug.callback(lambda: runs.append(1))
        return of_layers(*args, **kwargs)

    monkeypatch.setattr(type(model.module), "extend", extend)
    for tokens in (1, 2, 7):
        runs.clear()
        jax.block_until_ready(decode(model, params, adapters, PROMPTS, Greedy(), tokens, pad_token_id=39))
        jax.effects_barrier()
        assert len(runs) == tokens  # all hypotheses together


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


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    scores = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]]))
    kept = lambda **options: np.isfinite(Sampling(**options).filtered(scores)).astype(int).tolist()
    assert kept(min_p=0.2) == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert kept(min_p=1.0) == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert kept(min_p=0.2, temperature=3.0) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]  # after the temperature
    assert kept(min_p=0.2, top_k=2)[0] == [1, 1, 0, 0]
    np.testing.assert_array_equal(Sampling(min_p=0.2).filtered(scores)[0, :3], scores[0, :3])


def test_samples_follow_the_filtered_distribution(base):
    """The first token of 4000 samples of one prompt, against its distribution; and samples differ between rows."""
    model, params, adapters = base
    decoder = Sampling(num_samples=4000, top_k=5)
    prompt = PROMPTS["tokens"][:1]
    found = decode(model, params, adapters, prompt, decoder, 1, rng=jax.random.key(4))
    apply = jax.jit(model.apply)
    for k in range(K):
        logits = apply(params, jax.tree.map(lambda x, k=k: x[k], adapters), prompt)[0, -1]
        p = np.asarray(jax.nn.softmax(decoder.filtered(logits)))
        share = np.bincount(np.asarray(found.tokens[k, 0, :, 0]), minlength=41) / 4000
        assert (share[p == 0] == 0).all()
        np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / 4000))
    assert not np.array_equal(found.tokens[0], found.tokens[1])


def test_sampling_repeats_with_its_key_only(base):
    draw = lambda seed: decode(*base, PROMPTS, Sampling(num_samples=3), 6, rng=jax.random.key(seed)).tokens
    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


SAMPLING = Sampling(num_samples=2, top_p=0.9)


def drawn(base, inputs, rng, decoder=SAMPLING, **options):
    return np.asarray(decode(*base, inputs, decoder, 6, rng=rng, **options).tokens)


def test_a_samples_tokens_do_not_depend_on_what_is_around_it(base):
    """Not on other prompts, padding, hypotheses, samples or devices, nor on being traced; only on the example's key."""
    model, params, adapters = base
    keys = jax.random.split(jax.random.key(6), 4)
    whole = drawn(base, PROMPTS, keys)
    assert len({row.tobytes() for row in whole.reshape(-1, 6)}) == K * 4 * 2  # each row has draws of its own
    turned = {name: np.pad(x[[2, 0]], ((0, 0), (3, 0))) for name, x in PROMPTS.items()}
    np.testing.assert_array_equal(drawn(base, turned, keys[jnp.array([2, 0])]), whole[:, [2, 0]])
    fewer = model, params, jax.tree.map(lambda x: x[:2], adapters)
    np.testing.assert_array_equal(drawn(fewer, PROMPTS, keys), whole[:2])
    more = Sampling(num_samples=5, top_p=0.9)
    np.testing.assert_array_equal(drawn(base, PROMPTS, keys, more)[:, :, :2], whole)
    traced = jax.jit(lambda tokens, mask, keys: drawn_traced(base, {"tokens": tokens, "mask": mask}, keys))
    np.testing.assert_array_equal(traced(PROMPTS["tokens"], PROMPTS["mask"], keys), whole)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = {name: jax.device_put(x, rows) for name, x in PROMPTS.items()}
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    copied = model, *jax.device_put((params, adapters), everywhere)
    np.testing.assert_array_equal(drawn(copied, spread, jax.device_put(keys, everywhere)), whole)


def drawn_traced(base, inputs, rng):
    return decode(*base, inputs, SAMPLING, 6, rng=rng).tokens


def test_one_key_is_that_of_each_example_folded_with_its_number(base):
    key = jax.random.key(6)
    whole = drawn(base, PROMPTS, key)
    keys = jnp.stack([jax.random.fold_in(key, b) for b in range(4)])
    np.testing.assert_array_equal(drawn(base, PROMPTS, keys), whole)
    first = {name: x[:2] for name, x in PROMPTS.items()}
    np.testing.assert_array_equal(drawn(base, first, key), whole[:, :2])


# ----------------------------------------------------------------------------------------------- Options, names, values


@pytest.mark.parametrize(
    ("options", "same"),
    [
        (dict(eos_token_id=None), dict()),
        (dict(pad_token_id=None, eos_token_id=()), dict(pad_token_id=0)),
        (dict(pad_token_id=None, eos_token_id=7), dict(pad_token_id=7, eos_token_id=(7,))),
        (dict(eos_token_id=np.int64(7)), dict(eos_token_id=(7,))),
        (dict(eos_token_id=[7, np.int32(3)]), dict(eos_token_id=(7, 3))),
        (dict(eos_token_id=np.array([7, 3])), dict(eos_token_id=(7, 3))),
        (dict(eos_token_id=jnp.array(7)), dict(eos_token_id=7)),
        (dict(pad_token_id=np.uint8(4)), dict(pad_token_id=4)),
        (dict(max_new_tokens=np.int16(5), min_new_tokens=None), dict(max_new_tokens=5)),
        (dict(max_new_tokens=None, repetition_penalty=None), dict(max_new_tokens=64)),
        (dict(repetition_penalty=np.float32(1.5)), dict(repetition_penalty=1.5)),
    ],
)
def test_none_is_the_default_and_numpys_scalars_are_numbers(options, same):
    found, wanted = Limits(**options), Limits(**same)
    assert found == wanted and hash(found) == hash(wanted)
    assert repr(found) == repr(wanted)  # Python's numbers, not NumPy's


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (Sampling(None, None, None, None, None), Sampling()),
        (Sampling(np.int64(3), np.float32(0.5), np.int32(7)), Sampling(3, 0.5, 7)),
        (BeamSearch(np.int64(3), None, None, None), BeamSearch(3)),
        (BeamSearch(3, np.float64(0.5), np.True_), BeamSearch(3, 0.5, True)),
        (DiverseBeamSearch(np.int8(6), jnp.array(3), None), DiverseBeamSearch(6, 3)),
    ],
)
def test_none_is_the_default_of_decoders_too(found, wanted):
    assert repr(found) == repr(wanted) and hash(found) == hash(wanted)


def test_generate_takes_what_a_tokenizer_without_padding_or_an_end_has(base):
    found = decode(*base, PROMPTS, None, np.int64(5), eos_token_id=None, pad_token_id=None)
    np.testing.assert_array_equal(found.tokens, decode(*base, PROMPTS, Greedy(), 5).tokens)
    assert (found.lengths == 5).all()


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": PROMPTS["tokens"], "attention_mask": PROMPTS["mask"].astype(np.int64)},
        {"tokens": PROMPTS["tokens"], "attention_mask": PROMPTS["mask"].astype(float), "features": None},
        {"input_ids": PROMPTS["tokens"].tolist(), "mask": PROMPTS["mask"].tolist(), "token_type_ids": [[0]]},
        {"input_ids": np.where(PROMPTS["mask"], PROMPTS["tokens"], -100), "mask": jnp.asarray(PROMPTS["mask"])},
        {"tokens": np.where(PROMPTS["mask"], PROMPTS["tokens"], 41), "mask": PROMPTS["mask"]},
    ],
    ids=["tokenizer", "mixed", "lists", "ignored", "beyond"],
)
def test_prompts_of_a_tokenizer_and_whatever_padding_is(base, inputs):
    whole = decode(*base, PROMPTS, Greedy(), 8, eos_token_id=EOS)
    found = decode(*base, inputs, Greedy(), 8, eos_token_id=EOS)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-5)


@pytest.mark.parametrize("pad", [-1, 41, pytest.param(32000, marks=pytest.mark.slow)])
def test_the_padding_token_may_be_none_of_the_vocabulary(base, pad):
    decoder = DiverseBeamSearch(4, 2, num_return=3)
    inside = decode(*base, PROMPTS, decoder, 8, eos_token_id=EOS, pad_token_id=PAD)
    found = decode(*base, PROMPTS, decoder, 8, eos_token_id=EOS, pad_token_id=pad)
    behind = np.arange(8) >= np.asarray(inside.lengths)[..., None]
    assert behind.any()
    np.testing.assert_array_equal(found.tokens, np.where(behind, pad, inside.tokens))
    np.testing.assert_array_equal(found.scores, inside.scores)


@pytest.mark.parametrize("decoder", [Greedy(), BeamSearch(3)], ids=["greedy", "beam"])
def test_scores_that_are_nan_name_their_hypotheses(base, decoder):
    model, params, adapters = base
    poisoned = jax.tree.map(lambda x: x.at[1].set(jnp.nan), adapters)
    with pytest.raises(FloatingPointError, match=r"of hypotheses \[1\] are NaN for prompts \[0, 1, 2, 3\]"):
        decode(model, params, poisoned, PROMPTS, decoder, 5)
    traced = jax.jit(lambda adapters: decode(model, params, adapters, PROMPTS, decoder, 5))(poisoned)
    np.testing.assert_array_equal(np.isnan(traced.scores).all((1, 2)), [False, True, False])
    whole = decode(model, params, adapters, PROMPTS, decoder, 5)
    np.testing.assert_array_equal(traced.tokens[::2], whole.tokens[::2])


# ------------------------------------------------------------------------------------------------------ Compile, errors


def test_a_second_batch_of_the_same_shape_compiles_nothing(base, caplog):
    decode(*base, PROMPTS, Greedy(), 8, eos_token_id=EOS)
    with jax.log_compiles():
        decode(*base, {"tokens": PROMPTS["tokens"] * 0 + 9, "mask": PROMPTS["mask"]}, Greedy(), 8, eos_token_id=EOS)
    assert not [record for record in caplog.records if "_decode" in record.message]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: decode(*b, {"tokens": PROMPTS["tokens"], "mask": PROMPTS["mask"][:, ::-1]}), r"left.*rows \[1, 2\]"),
        (lambda b: decode(*b, PROMPTS["tokens"], Greedy(), 0), "max_new_tokens must be at least 1, got 0"),
        (lambda b: decode(*b, PROMPTS, Greedy(), 3, min_new_tokens=4), r"min_new_tokens must be in \[0, 3\], got 4"),
        (lambda b: BeamSearch(num_beams=2, num_return=3), "num_return must be at most num_beams=2, got 3"),
        (lambda b: DiverseBeamSearch(num_beams=5, num_groups=2), "num_groups=2 must divide num_beams=5"),
        (lambda b: Sampling(temperature=0.0), "temperature must be positive"),
        (lambda b: Sampling(top_p=0.0), r"top_p must be in \(0, 1\], got 0"),
        (lambda b: Sampling(min_p=1.5), r"min_p must be in \[0, 1\], got 1.5"),
        (lambda b: Sampling(min_p="0.1"), "min_p must be a number, got '0.1'"),
        (lambda b: decode(*b, PROMPTS["tokens"][0]), r"tokens \[B, P\]"),
        (lambda b: decode(*b, PROMPTS["tokens"][:0]), r"B of at least 1, got \(0, 7\)"),
        (lambda b: decode(*b, PROMPTS["tokens"][:, :0]), r"non-empty .* rows \[0, 1, 2, 3\] are empty"),
        (lambda b: decode(*b, [[3, 4], [5]]), "one array .* pad them on the left"),
        (lambda b: decode(*b, PROMPTS["tokens"] + 0.5), "tokens must be integers, got float64"),
        (lambda b: decode(*b, PROMPTS["tokens"] + 30), r"tokens must be in the vocabulary \[0, 41\)"),
        (lambda b: decode(*b, np.array([[3, 4], [5, -1]])), r"\[0, 41\).* got \[-1\] in rows \[1\]"),
        (lambda b: decode(*b, jnp.array([[3, 4], [5, 99]])), r"got \[99\] in rows \[1\]"),
        (lambda b: decode(*b, np.array([[3, 2**32 + 4]])), r"got \[4294967300\] in rows \[0\]"),
        (lambda b: decode(*b, PROMPTS | {"mask": np.where(PROMPTS["mask"], 0.0, -np.inf)}), r"0 on padding.* \[-inf\]"),
        (lambda b: decode(*b, PROMPTS | {"attention_mask": PROMPTS["mask"]}), "'mask' once"),
        (lambda b: decode(*b, {"input_id": PROMPTS["tokens"]}), "got 'input_id'; did you mean 'input_ids'"),
        (lambda b: decode(*b, PROMPTS | {"target_mask": PROMPTS["mask"]}), "got 'target_mask'"),
        (lambda b: decode(*b, PROMPTS | {"token_type_ids": PROMPTS["mask"]}), "got 'token_type_ids'; remove"),
        (lambda b: decode(*b, PROMPTS | {"pixel_values": np.zeros((4, 3))}), "got 'pixel_values'; call .* 'encode'"),
        (lambda b: decode(*b, PROMPTS | {"features": np.zeros((4, 2, 24))}), "Llama takes text only"),
        (lambda b: decode(*b, {"mask": PROMPTS["mask"]}), "must have 'tokens'"),
        (
            lambda b: decode(*b, PROMPTS, eos_token_id=41),
            r"eos_token_id must be in the vocabulary \[0, 41\), got \[41\]",
        ),
        (lambda b: decode(*b, PROMPTS, eos_token_id=-1), "eos_token_id must be at least 0, got -1"),
        (lambda b: decode(*b, PROMPTS, eos_token_id="</s>"), "eos_token_id must be an integer .* got '</s>'"),
        (lambda b: decode(*b, PROMPTS, pad_token_id=1.5), "pad_token_id must be an integer .* got 1.5"),
        (lambda b: decode(*b, PROMPTS, repetition_penalty=math.inf), "positive and finite, got inf"),
        (lambda b: decode(*b, PROMPTS, Greedy), "decoder must be an instance such as"),
        (lambda b: decode(*b, PROMPTS, "greedy"), "decoder must be an instance such as .* got 'greedy'"),
        (lambda b: decode(*b, PROMPTS, SAMPLING, rng=7), "typed key, .* got an array of int32"),
        (lambda b: decode(*b, PROMPTS, SAMPLING, rng=jax.random.PRNGKey(7)), "typed key, .* got an array of uint32"),
        (lambda b: decode(*b, PROMPTS, SAMPLING, rng=jax.random.split(jax.random.key(0), 3)), "each of 4 prompts"),
        (lambda b: BeamSearch(early_stopping=1), "early_stopping must be .* got 1"),
        (lambda b: BeamSearch(num_beams=2.5), "num_beams must be an integer .* got 2.5"),
        (lambda b: BeamSearch(length_penalty=math.nan), "length_penalty must be finite, got nan"),
        (lambda b: DiverseBeamSearch(diversity_penalty=math.inf), "diversity_penalty must be finite"),
        (lambda b: Sampling(top_k=-1), "top_k must be at least 0, got -1"),
        (lambda b: decode(*b, PROMPTS, Greedy(), 3, min_new_tokens=1.5), r"min_new_tokens must be in .* got 1.5"),
        (lambda b: decode(*b, PROMPTS, repetition_penalty="1.2"), "repetition_penalty must be a number, got '1.2'"),
        (lambda b: Sampling(temperature="1"), "temperature must be a number, got '1'"),
        (lambda b: Sampling(typical_p=True), "typical_p must be a number, got True"),
        (lambda b: BeamSearch(length_penalty="0"), "length_penalty must be a number, got '0'"),
        (lambda b: DiverseBeamSearch(diversity_penalty=[1]), r"diversity_penalty must be a number, got \[1\]"),
        (lambda b: decode(*b, PROMPTS | {3: PROMPTS["tokens"]}), "got 3; remove"),
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
    with pytest.raises(ValueError, match=rf"a prompt of 7 tokens and {most - 6} new .* but the model has only {most};"):
        decode(model, params, adapters, prompts, Greedy(), most - 6)
    assert decode(model, params, adapters, prompts, Greedy(), most - 7).tokens.shape == (K, 2, 1, most - 7)


def test_repetition_penalty_acts_on_seen_tokens_both_ways():
    scores, seen = jnp.array([[2.0, -2.0, 1.0]]), jnp.array([[True, True, False]])
    np.testing.assert_allclose(filters.repetition_penalty(scores, seen, 4.0), [[0.5, -8.0, 1.0]])
