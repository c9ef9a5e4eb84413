"""Whisper: parity with Hugging Face (tests/golden/make_whisper.py), hypotheses, decoding, PEFT, and what is refused."""

import functools
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax import interop
from mcl_jax.models import decoder

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "whisper" / "tiny"
EXPECTED = dict(np.load(TINY / "expected.npz"))
FEATURES = jnp.asarray(EXPECTED["features"])
PROMPTS = {"tokens": EXPECTED["prompts"], "features": FEATURES}
LORA = mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "k_proj", "v_proj", "fc1", "fc2"))
K = 3


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@functools.cache
def load(**options):
    return mcl.models.from_pretrained(TINY, **options)


@functools.partial(jax.jit, static_argnums=0)
def run_all(model, params, adapters, *args):
    return model.apply_all(params, adapters, *args)


@functools.partial(jax.jit, static_argnames=("module", "method"))
def run(module, params, *args, method="__call__"):
    return module.apply({"params": params}, *args, method=method)


def new_adapters(config=LORA):
    """Hypotheses and their adapters, with B zero."""
    module, params, _ = load()
    model = mcl.Hypotheses(module, config)
    prompts = jnp.asarray(EXPECTED["prompts"])
    return model, params, model.init(jax.random.key(0), params, prompts, None, FEATURES, num_hypotheses=K)


@functools.cache
def drawn():
    """Hypotheses and their adapters, B not zero."""
    model, params, adapters = new_adapters()
    rng = np.random.default_rng(0)
    return model, params, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), adapters)


def clips():
    return [wave.astype(np.float32) / 16 for wave in np.load(GOLDEN / "qwen2_audio" / "clips.npz").values()]


# ------------------------------------------------------------------------------------------------------------ Parity


@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
def test_features_and_logits_are_hugging_faces(scan):
    module, params, _ = load(scan=scan)
    mask = EXPECTED["mask"]

    def stages(self, mel, tokens, mask):
        features = self.encode(mel)
        hidden = self.hidden(tokens, None, features)
        return features, hidden, self.logits(hidden), self(tokens, mask, features)

    features, hidden, logits, padded = run(module, params, EXPECTED["mel"], EXPECTED["tokens"], mask, method=stages)
    assert_close(features, EXPECTED["features"])
    assert_close(logits, EXPECTED["logits"])
    assert_close(hidden @ module.unembedding(params), EXPECTED["logits"])
    assert_close(np.asarray(padded)[mask], EXPECTED["padded_logits"][mask])


def test_tokens_in_pieces_are_those_of_one_pass():
    """The first piece makes the memory of the clip; later ones get it with the first segment, and no features."""
    module, params, _ = load()
    tokens, mask = jnp.asarray(EXPECTED["tokens"]), jnp.asarray(EXPECTED["mask"])
    whole, positions = run(module, params, tokens, mask, FEATURES, method="hidden"), decoder.positions_of(tokens, mask)
    found, past = [], ()
    for start, end in [(0, 5), (5, 6), (6, 9)]:
        here, features = np.s_[:, start:end], () if past else (FEATURES,)
        pieces = (x[here] for x in (tokens, mask, positions))
        hidden, segment = run(module, params, *pieces, past, *features, method="extend")
        assert (segment.memory is None) == bool(past)
        found, past = [*found, hidden], (*past, segment)
    assert [x.shape for x in past[0].memory] == [(3, 4, 4, 5, 50), (3, 4, 4, 50, 5)]
    assert_close(np.concatenate(found, axis=1)[EXPECTED["mask"]], np.asarray(whole)[EXPECTED["mask"]])


def test_low_precision_and_fresh_parameters():
    module, params, _ = load(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat=True)
    logits = run(module, params, EXPECTED["tokens"], None, FEATURES)
    assert logits.dtype == jnp.float32
    assert np.abs(np.asarray(logits) - EXPECTED["logits"]).mean() < 0.05
    fresh = jax.eval_shape(module.init, jax.random.key(0), EXPECTED["tokens"])["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


# -------------------------------------------------------------------------------------------------------- Hypotheses


def test_adapters_are_on_the_decoder_only_and_start_equal_to_the_base():
    model, params, adapters = new_adapters()
    layers = {"/".join(path[:-1]) for path in flatten_dict(adapters)}
    attention = {f"{of}_attn/{name}_proj" for of in ("self", "encoder") for name in "qkv"}
    assert layers == {f"model/decoder/layers/{name}" for name in {*attention, "fc1", "fc2"}}
    logits = run_all(model, params, adapters, EXPECTED["tokens"], None, FEATURES)
    assert_close(logits, np.stack([EXPECTED["logits"]] * K))
    assert set(mcl.models.lora_targets(model.module)) == set(LORA.targets)


def test_all_hypotheses_at_once_are_each_alone_assigned_or_merged():
    model, params, adapters = drawn()
    arguments = EXPECTED["tokens"], EXPECTED["mask"], FEATURES
    at_once = np.asarray(run_all(model, params, adapters, *arguments))
    alone, assign = jax.jit(model.apply), jax.jit(model.apply_assigned)
    real = EXPECTED["mask"]
    for k in range(K):
        adapters_k = jax.tree.map(lambda x, k=k: x[k], adapters)
        assert_close(at_once[k][real], np.asarray(alone(params, adapters_k, *arguments))[real])
        assert_close(
            at_once[k][real], np.asarray(run(model.module, model.merge(params, adapters, k), *arguments))[real]
        )
    of_rows = np.array([2, 0, 1, 2])
    assigned = np.asarray(assign(params, adapters, of_rows, *arguments))
    assert_close(assigned[real], at_once[of_rows, np.arange(4)][real])
    assert min(np.abs(at_once[i] - at_once[j]).max() for i, j in itertools.combinations(range(K), 2)) > 0.1


def test_a_train_step_moves_the_winner_of_each_clip():
    model, params, adapters = drawn()
    tokens = EXPECTED["tokens"]
    batch = {"tokens": tokens, "target_mask": np.arange(8)[None] >= np.array([[2]] * 4), "features": FEATURES}
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    logits = run_all(model, params, adapters, tokens, None, FEATURES)
    log_p, counts = mcl.sequence_log_likelihood(logits[:, :, :-1], tokens[:, 1:], batch["target_mask"])
    assert counts.tolist() == [6] * 4
    assert_close(mcl.language_model.evaluate(model, params, adapters, [batch])[0], log_p)
    state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optax.sgd(0.01), rng=jax.random.key(3))
    step = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optax.sgd(0.01), backward="winner")
    after, metrics = step(state, batch)
    assert_close(metrics["loss"], -(log_p.max(0) / 6).mean())
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(axis=tuple(range(1, a.ndim))), after.adapters, drawn()[2])
    winners = set(np.asarray(log_p.argmax(0)).tolist())
    for change in jax.tree.leaves(moved):
        assert {k for k in range(K) if change[k] > 0} == winners


@pytest.mark.parametrize("targets", [LORA.targets, (".*/self_attn/[qkv]_proj", "encoder_attn/q_proj")])
def test_the_memory_is_computed_once_whatever_k(targets):
    """FLOPs that do not grow with K are those of the frozen projections of the features; adapters only add to them."""
    model, params, adapters = new_adapters(mcl.LoraConfig(rank=1, alpha=7, targets=targets))
    hear = lambda adapters: model.apply_all(params, adapters, EXPECTED["tokens"], None, FEATURES, method="hidden")
    flops = lambda adapters: jax.jit(hear).lower(adapters).cost_analysis()["flops"]
    of_one, of_all = flops(jax.tree.map(lambda x: x[:1], adapters)), flops(adapters)
    of_memory = 2 * 4 * 50 * 20 * 40  # two for each multiplication, B N D 2D; a scan counts as one layer
    assert (K * of_one - of_all) / (K - 1) > 0.95 * of_memory


# ------------------------------------------------------------------------------------------------------------ Decoding


def test_greedy_answers_of_the_base_are_hugging_faces():
    model, params, adapters = new_adapters()
    answers = mcl.generate(model, params, adapters, PROMPTS, max_new_tokens=11)[:, :, 0]
    np.testing.assert_array_equal(answers, np.stack([EXPECTED["greedy"]] * K))


def in_a_plain_loop(width, length):
    """Beam search of all hypotheses without a cache: each step computes whole sequences again."""
    model, params, adapters = drawn()
    logits = jax.jit(lambda tokens, features: model.apply_all(params, adapters, tokens, None, features))
    B, P = EXPECTED["prompts"].shape
    beams, scores = np.repeat(EXPECTED["prompts"][None, :, None], width, 2), np.zeros((K, B, width))
    beams, features = np.repeat(beams, K, 0), jnp.repeat(FEATURES, width, 0)
    beams = np.concatenate([beams, np.zeros((K, B, width, length), int)], -1)
    scores[:, :, 1:] = -np.inf  # all beams of a prompt are the same at first
    for t in range(P, P + length):
        every = jnp.stack([logits(beams[k].reshape(B * width, -1), features)[k] for k in range(K)])
        log_p = np.asarray(jax.nn.log_softmax(every[:, :, t - 1])).reshape(K, B, width, -1)
        whole = (scores[..., None] + log_p).reshape(K, B, -1)
        best = np.argsort(-whole, axis=-1)[..., :width]
        scores = np.take_along_axis(whole, best, -1)
        beams = np.take_along_axis(beams, (best // log_p.shape[-1])[..., None], 2)
        beams[..., t] = best % log_p.shape[-1]
    return beams[..., P:], scores


@pytest.mark.parametrize("width", [1, 3], ids=["greedy", "beam"])
def test_decoding_with_a_cache_is_a_plain_loop_without(width):
    model, params, adapters = drawn()
    search = mcl.generation.Greedy() if width == 1 else mcl.generation.BeamSearch(width, num_return=width)
    found = mcl.generation.decode(model, params, adapters, PROMPTS, search, 6)
    tokens, scores = in_a_plain_loop(width, 6)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert_close(found.scores, scores / (1 if width == 1 else 6))
    assert len({answers.tobytes() for answers in tokens}) == K


def test_prompts_of_unequal_length_are_decoded_as_each_alone():
    model, params, adapters = drawn()
    tokens, mask = EXPECTED["prompts"].copy(), np.ones((4, 3), bool)
    mask[1, 0] = False
    both = mcl.generate(model, params, adapters, PROMPTS | {"tokens": tokens, "mask": mask}, max_new_tokens=5)
    alone = {"tokens": tokens[1:2, 1:], "features": FEATURES[1:2]}
    np.testing.assert_array_equal(both[:, 1:2], mcl.generate(model, params, adapters, alone, max_new_tokens=5))


# --------------------------------------------------------------------------------------------- PEFT, saving and loading


@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
def test_adapters_of_peft_give_its_logits(scan):
    """tests/test_interop.py compares what is saved."""
    module, params, _ = load(scan=scan)
    model, adapters = interop.load_peft(GOLDEN / "peft" / "whisper", module)
    theirs = np.load(GOLDEN / "peft" / "whisper" / "expected.npz")["logits"]
    ours = np.asarray(run_all(model, params, adapters, EXPECTED["tokens"], EXPECTED["mask"], FEATURES))[:, :, -7:]
    real = EXPECTED["mask"][:, -7:]
    assert_close(ours[:, real], theirs[:, real])


def test_adapters_of_the_encoder_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "peft" / "whisper" / "lora0", tmp_path / "lora0")
    file = tmp_path / "lora0" / "adapter_model.safetensors"
    save_file({name.replace("decoder", "encoder"): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="Whisper does not have, or does not adapt, the layers .*model.encoder.layers"):
        interop.load_peft(tmp_path, load()[0])


def test_what_is_saved_is_hugging_faces_and_loads_again(tmp_path):
    module, params, processor = load()
    mcl.models.save_pretrained(tmp_path, module, params, processor)
    again, params_again, processor_again = mcl.models.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    assert again.config == module.config
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, TINY))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    config, hf_config = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, TINY))
    assert {name: hf_config[name] for name in config} == config
    prompts = [processor.transcribe("fr")]
    jax.tree.map(np.testing.assert_array_equal, processor(prompts, clips()[:1]), processor_again(prompts, clips()[:1]))


def test_weights_without_a_head_or_with_a_stored_one_are_read(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    file = tmp_path / "tiny" / "model.safetensors"
    tensors = load_file(file)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    stored = tensors | {"proj_out.weight": tensors["model.decoder.embed_tokens.weight"]}
    for of_file in (bare, stored):
        save_file(of_file, file)
        jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path / "tiny")[1], load()[1])


# ----------------------------------------------------------------------------------------------- Processor and refusals


def test_the_processor_gives_what_hugging_faces_gives():
    processor = load()[2]
    prompts = [processor.transcribe(language) for language in ("en", "fr", "en", "fr")]
    batch = processor(prompts, clips(), length=7)
    assert_close(batch["mel"], EXPECTED["mel"])  # torch there, NumPy here
    assert batch["tokens"][batch["mask"]].tolist() == [30, 31, 33, 34, 30, 32, 33, 34] * 2
    assert batch["mask"].sum(1).tolist() == [4] * 4 and batch["mask"][:, -1].all()
    assert processor(prompts, [*clips()[:3], None], window=60)["mel"].shape == (4, 7, 60)
    assert processor.num_features(clips()[0]) == 50
    assert processor.transcribe() == "<|startoftranscript|><|notimestamps|>"


def test_prompts_of_a_batch_begin_once():
    processor = load()[2]
    batch = mcl.language_model.encode(processor.tokenizer, [processor.transcribe("en"), ""], ["ab", "c"], max_length=7)
    assert batch["tokens"].tolist() == [[30, 31, 33, 34, 0, 1, 29], [30, 34, 2, 29, 29, 29, 29]]


def test_wrong_inputs_are_refused():
    module, params, processor = load()
    model, _, adapters = drawn()
    apply = functools.partial(module.apply, {"params": params})
    tokens = EXPECTED["tokens"]
    with pytest.raises(ValueError, match=r"features must be \[B, N, D\] with B=4 and D=20, .* got none"):
        apply(tokens)
    with pytest.raises(ValueError, match=r"features must be .* got \(3, 50, 20\)"):
        apply(tokens, None, FEATURES[:3])
    with pytest.raises(ValueError, match=r"mel \[B, 7, T\], since num_mel_bins=7, got \(4, 6, 100\)"):
        apply(EXPECTED["mel"][:, 1:], method="encode")
    with pytest.raises(ValueError, match="mel must have at most 100 frames, .* got 200"):
        apply(np.concatenate([EXPECTED["mel"]] * 2, -1), method="encode")
    with pytest.raises(ValueError, match="Whisper needs inputs with 'features'"):
        mcl.generate(model, params, adapters, {"tokens": tokens})
    with pytest.raises(ValueError, match="3 tokens and 21 new tokens need 24 positions, but the model has only 23"):
        mcl.generate(model, params, adapters, PROMPTS, max_new_tokens=21)
    with pytest.raises(ValueError, match=r"language must be a code .* such as \['fr', 'en'\], got 'fx'"):
        processor.transcribe("fx")
    with pytest.raises(ValueError, match="window must be in 1 to 100 mel frames, got 101"):
        processor.inputs(clips(), window=101)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activation_function="relu"), "activation_function must be 'gelu', .* got 'relu'"),
        (dict(scale_embedding=True), "scale_embedding must be False, .* got True"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings must be True, .* got False"),
        (dict(decoder_attention_heads=3), "decoder_attention_heads must divide d_model, got 3 and 20"),
        (dict(num_mel_bins=8), r"model.encoder.conv1.weight must have shape \(20, 8, 3\), got \(20, 7, 3\)"),
        (dict(decoder_layers=2), "Unexpected: .*model.decoder.layers.2.encoder_attn.k_proj.weight"),
    ],
    ids=["activation", "scale", "untied", "heads", "bins", "layers"],
)
def test_configs_that_cannot_be_built_are_refused(tmp_path, change, message):
    shutil.copytree(TINY, tmp_path / "tiny")
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(tmp_path / "tiny")
