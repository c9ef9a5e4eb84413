"""Qwen2-Audio: parity with Hugging Face (tests/golden/make_qwen2_audio.py), clips, processor, and what is refused."""

import functools
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
from mcl_jax.models import families
from mcl_jax.models.whisper_encoder import num_features

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_audio"
NAMES = ("grouped", "tied")
HEARS = "<|audio_bos|><|AUDIO|><|audio_eos|>"
PROMPTS = [HEARS + "what is it:", "hear " + HEARS + ":", HEARS + "q.", "now say what it is." + HEARS]
LORA = mcl.LoraConfig(rank=3, alpha=7)


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@functools.cache
def load(name="grouped", **options):
    return mcl.models.from_pretrained(GOLDEN / name, **options)


def expected(name="grouped"):
    return dict(np.load(GOLDEN / name / "expected.npz"))


def clips():
    return [wave.astype(np.float32) / 16 for wave in np.load(GOLDEN / "clips.npz").values()]


@functools.partial(jax.jit, static_argnames=("module", "method"))
def run(module, params, *args, method="__call__"):
    return module.apply({"params": params}, *args, method=method)


encode = functools.partial(run, method="encode")


@functools.cache
def features_of(name="grouped"):
    module, params, _ = load(name)
    golden = expected(name)
    return encode(module, params, golden["mel"], golden["frames"])


@functools.cache
def drawn_adapters(name="grouped", K=3):
    """Adapters of K hypotheses, B not zero."""
    module, params, _ = load(name)
    adapters = mcl.Hypotheses(module, LORA).init(jax.random.key(0), params, expected(name)["tokens"], num_hypotheses=K)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), adapters)


@pytest.fixture(scope="module")
def processor():
    return load()[2]


# ------------------------------------------------------------------------------------------------------------ Parity


@pytest.mark.parametrize(("name", "scan"), [("grouped", False), ("grouped", True), ("tied", True)])
def test_every_stage_is_hugging_faces(name, scan):
    module, params, _ = load(name, scan=scan)
    golden = expected(name)
    heard = np.arange(25)[None] < num_features(golden["frames"])[:, None]
    assert heard.sum(1).tolist() == (golden["tokens"] == 30).sum(1).tolist() == [25, 8, 14, 10]

    def stages(self, mel, frames, tokens, mask):
        tower = self.audio_tower(mel, frames)
        features = self.encode(mel, frames)
        hidden = self.hidden(tokens, mask, features)
        return dict(
            tower=tower,
            features=features,
            merged=self.embed(tokens, features),
            hidden=hidden,
            logits=self(tokens, mask, features),
        )

    inputs = (golden[key] for key in ("mel", "frames", "tokens", "mask"))
    found = {stage: np.asarray(x) for stage, x in run(module, params, *inputs, method=stages).items()}
    for stage in ("tower", "features"):
        assert_close(found[stage][heard], golden[stage][heard])
    for stage in ("merged", "logits"):
        assert_close(found[stage][golden["mask"]], golden[stage][golden["mask"]])
    assert_close(found["hidden"] @ module.unembedding(params), found["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_of_every_hypothesis_are_hugging_faces(name):
    """Of hypotheses that still equal the base; others answer as plain models with the hypothesis merged do."""
    module, params, _ = load(name)
    golden, model, drawn = expected(name), mcl.Hypotheses(module, LORA), drawn_adapters(name)
    inputs = {"tokens": golden["tokens"], "mask": golden["mask"], "features": features_of(name)}
    answers = lambda params, adapters: mcl.generate(model, params, adapters, inputs, max_new_tokens=11)[:, :, 0]
    none = jax.tree.map(jnp.zeros_like, drawn)
    np.testing.assert_array_equal(answers(params, none), np.stack([golden["greedy"]] * 3))
    adapted = np.asarray(answers(params, drawn))
    assert len({answer.tobytes() for answer in adapted}) == 3
    np.testing.assert_array_equal(adapted[1], answers(model.merge(params, drawn, 1), none)[0])


def test_names_that_transformers_has_in_memory_are_read_too(tmp_path):
    shutil.copytree(GOLDEN / "grouped", tmp_path / "grouped")
    file = tmp_path / "grouped" / "model.safetensors"
    new = lambda name: (
        name.removeprefix("language_model.")
        if "lm_head" in name
        else "model." + name.replace("language_model.model.", "language_model.")
    )
    renamed = {new(name): tensor for name, tensor in load_file(file).items()}
    assert {"lm_head.weight", "model.language_model.norm.weight", "model.audio_tower.conv1.bias"} < set(renamed)
    save_file(renamed, file)
    again = mcl.models.from_pretrained(tmp_path / "grouped")[1]
    jax.tree.map(np.testing.assert_array_equal, again, load()[1])


def test_prompts_in_pieces_are_those_of_one_pass():
    """The clip's features are all in the first piece, the answer behind it comes without."""
    module, params, _ = load()
    golden = expected()
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    whole = run(module, params, tokens, mask, features_of(), method="hidden")
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    last = int(np.flatnonzero((golden["tokens"] == 30).any(0))[-1]) + 1
    extend = lambda here, *args: run(
        module, params, tokens[:, here], mask[:, here], positions[:, here], *args, method="extend"
    )
    first, segment = extend(slice(last), (), features_of())
    second, _ = extend(slice(last, None), (segment,))
    assert second.shape[1] > 0
    assert_close(np.asarray(jnp.concatenate([first, second], 1))[golden["mask"]], np.asarray(whole)[golden["mask"]])


# ------------------------------------------------------------------------------------------------------------- Clips


def test_a_clip_is_heard_alike_alone_and_whatever_is_behind_its_end():
    """But for the two frames behind it, which the convolutions see: there the extractor's silence belongs."""
    module, params, _ = load()
    golden = expected()
    mel, frames = golden["mel"], golden["frames"]
    noise = np.random.default_rng(0).normal(size=mel.shape).astype(np.float32)
    behind = np.arange(100)[None, None] >= frames[:, None, None] + 2
    noisy = encode(module, params, jnp.asarray(np.where(behind, noise, mel)), frames)
    for row, n in enumerate(num_features(frames)):
        alone = encode(module, params, mel[row : row + 1], frames[row : row + 1])[0, :n]
        assert_close(alone, golden["features"][row, :n])
        assert_close(noisy[row, :n], golden["features"][row, :n])
    at_once = np.arange(100)[None, None] >= frames[:, None, None]
    changed = encode(module, params, jnp.asarray(np.where(at_once, noise, mel)), frames)
    assert np.abs(np.asarray(changed) - golden["features"])[1, 7].max() > 1e-2


@pytest.mark.parametrize("window", [59, 60])
def test_a_shorter_window_gives_the_same_features(window, processor):
    module, params, _ = load()
    golden, some = expected(), [1, 2, 3]
    short = processor([PROMPTS[i] for i in some], [clips()[i] for i in some], window=window)
    assert short["mel"].shape == (3, 7, window)
    features = encode(module, params, short["mel"], short["frames"])
    for row, i in enumerate(some):
        n = num_features(golden["frames"][i])
        assert_close(features[row, :n], golden["features"][i, :n])


def test_a_window_that_cuts_a_clip_is_refused(processor):
    module, params, _ = load()
    with pytest.raises(ValueError, match=r"58 mel frames must end by frame 56 .* got \[57\] frames in rows \[2\]"):
        processor(PROMPTS[1:] + PROMPTS[1:2], [*clips()[1:2], clips()[3], *clips()[2:3], clips()[1]], window=58)
    mel, frames = expected()["mel"], expected()["frames"]
    refuse = functools.partial(module.apply, {"params": params}, method="encode")  # without jit frames are known
    with pytest.raises(ValueError, match=r"80 mel frames must end by frame 78 .* got \[100\] frames in rows \[0\]"):
        refuse(mel[:, :, :80], frames)
    with pytest.raises(ValueError, match="at most 100 frames, .* got 101"):
        refuse(np.pad(mel, [(0, 0), (0, 0), (0, 1)]), frames)
    with pytest.raises(
        ValueError, match=r"mel \[B, 7, T\] with frames \[B\], since num_mel_bins=7, got \(4, 6, 100\) with \(4,\)"
    ):
        refuse(mel[:, 1:], frames)


def test_the_tower_runs_once_whatever_k():
    """FLOPs of all hypotheses on a batch grow with K as those of the language model; the tower's are there once."""
    module, params, _ = load(scan=False)
    model, golden = mcl.Hypotheses(module, LORA), expected()
    tokens, mask, mel, frames = (jnp.asarray(golden[key]) for key in ("tokens", "mask", "mel", "frames"))
    flops = lambda f, *args: jax.jit(f).lower(*args).cost_analysis()["flops"]
    of_tower = flops(lambda mel, frames: encode(module, params, mel, frames), mel, frames)

    def hear(adapters, mel, frames):
        features = encode(module, params, mel, frames)
        return model.apply_all(params, adapters, tokens, mask, features, method="hidden")

    init = lambda K: lambda key: model.init(key, params, tokens, num_hypotheses=K)
    adapters = {K: jax.eval_shape(init(K), jax.random.key(0)) for K in (1, 3, 7)}
    total = {K: flops(hear, adapters[K], mel, frames) for K in adapters}
    of_hypothesis = (total[7] - total[1]) / 6
    np.testing.assert_allclose(total[3] - total[1], 2 * of_hypothesis, rtol=0.01)
    np.testing.assert_allclose(total[1] - of_hypothesis, of_tower, rtol=0.05)  # and the merging of its features
    assert of_tower > of_hypothesis / 2  # so that a second run would be seen
    assert {path[0] for path in flatten_dict(adapters[3])} == {"language_model"}


def test_a_train_step_needs_features_only():
    """The tower is not even among the parameters; each example goes back under its winner, with its own clip."""
    module, params, _ = load()
    golden, model, drawn = expected(), mcl.Hypotheses(module, LORA), drawn_adapters()
    batch = {"tokens": golden["tokens"], "mask": golden["mask"], "features": np.asarray(features_of())}
    heard = {"language_model": params["language_model"]}

    def log_likelihood(params, adapters_k, batch, rng):
        logits = model.apply(params, adapters_k, batch["tokens"], batch["mask"], batch["features"])
        target = batch["mask"] & (batch["tokens"] != module.placeholder)
        return mcl.sequence_log_likelihood(logits[:, :-1], batch["tokens"][:, 1:], target[:, 1:])[0]

    optimizer = optax.sgd(0.01)
    state = mcl.TrainState.create(params=heard, adapters=drawn, optimizer=optimizer, rng=jax.random.key(3))
    after, metrics = mcl.make_train_step(log_likelihood, mcl.objectives.wta(), optimizer, backward="winner")(
        state, batch
    )
    of_all = jax.jit(jax.vmap(lambda adapters_k: log_likelihood(heard, adapters_k, batch, None)))(drawn)
    assert_close(metrics["loss"], -of_all.max(0).mean())
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), after.adapters, drawn)
    assert max(jax.tree.leaves(moved)) > 1e-4


# --------------------------------------------------------------------------------------------------------- Processor


def test_the_processor_gives_what_hugging_faces_gives(processor):
    golden, batch = expected(), processor(PROMPTS, clips())
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "tokens": ("int32", (4, 38)),
        "mask": ("bool", (4, 38)),
        "mel": ("float32", (4, 7, 100)),
        "frames": ("int32", (4,)),
    }
    for key in ("tokens", "mask", "frames"):
        np.testing.assert_array_equal(batch[key], golden[key])
    assert_close(batch["mel"], golden["mel"])  # torch there, NumPy here
    theirs = processor.hf(text=PROMPTS, audio=clips(), sampling_rate=16000, padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch["mel"], theirs["input_features"])
    long = processor(PROMPTS[:1], [np.concatenate(clips())])
    np.testing.assert_array_equal(long["mel"][0], processor(PROMPTS[:1], [np.concatenate(clips())[:16000]])["mel"][0])


def test_padding_and_rows_without_a_clip(processor):
    golden = expected()
    right = processor(PROMPTS, clips(), padding_side="right", length=41)
    for row, tokens in enumerate(golden["tokens"]):
        real = tokens[golden["mask"][row]]
        np.testing.assert_array_equal(right["tokens"][row, : len(real)], real)
        assert right["mask"][row].tolist() == [True] * len(real) + [False] * (41 - len(real))
    mixed = processor(["say:", PROMPTS[1]], [None, clips()[1]])
    assert mixed["frames"].tolist() == [0, 31]
    module, params, _ = load()
    features = encode(module, params, mixed["mel"], mixed["frames"])
    assert np.isfinite(features).all()
    logits = run(module, params, mixed["tokens"], mixed["mask"], features)
    plain = run(module, params, mixed["tokens"][:1], mixed["mask"][:1])
    assert_close(logits[:1], plain)


def test_a_processor_is_saved_and_read_in_both_layouts(tmp_path, processor):
    module, params, _ = load()
    mcl.models.save_pretrained(tmp_path, module, params, processor)
    batch = mcl.models.from_pretrained(tmp_path)[2](PROMPTS, clips())
    jax.tree.map(np.testing.assert_array_equal, batch, processor(PROMPTS, clips()))
    (tmp_path / "processor_config.json").unlink()
    processor.extractor.save_pretrained(tmp_path)  # as the published folder has it
    assert (tmp_path / "preprocessor_config.json").is_file()
    batch = mcl.models.from_pretrained(tmp_path)[2](PROMPTS, clips())
    jax.tree.map(np.testing.assert_array_equal, batch, processor(PROMPTS, clips()))
    assert load("tied")[2] is None


# ------------------------------------------------------------------------------------------------- Saving and loading


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_hugging_faces_and_loads_again(name, tmp_path):
    module, params, _ = load(name)
    mcl.models.save_pretrained(tmp_path, module, params)
    again, params_again, _ = mcl.models.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    assert again.config == module.config
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN / name))
    assert set(ours) == set(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert ("lm_head" in params["language_model"]) == (name == "grouped")


def test_low_precision_and_fresh_parameters():
    module, params, _ = load(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat=True)
    golden = expected()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    heard = lambda self, mel, frames, *prompts: (features := self.encode(mel, frames), self(*prompts, features))
    inputs = (golden[key] for key in ("mel", "frames", "tokens", "mask"))
    features, logits = run(module, params, *inputs, method=heard)
    assert (features.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.abs(np.asarray(features, np.float32) - golden["features"])[0].mean() < 0.05
    fresh = jax.jit(module.init)(jax.random.key(0), golden["tokens"])["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_entries_that_a_published_config_leaves_out_are_hugging_faces_defaults():
    _, module = families.build({"model_type": "qwen2_audio", "text_config": {"vocab_size": 156032}})
    text, audio = module.config.text_config, module.config.audio_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_key_value_heads, text.qkv_bias) == (4096, 32, 32, True)
    assert (audio.d_model, audio.encoder_layers, audio.window, audio.num_mel_bins) == (1280, 32, 3000, 128)
    assert module.placeholder == 151646


def test_adapters_of_peft_give_its_logits():
    module, params, _ = load()
    golden = expected()
    model, adapters = mcl.interop.load_peft(GOLDEN.parent / "peft" / "qwen2_audio", module)
    logits = jax.jit(model.apply_all)(params, adapters, golden["tokens"], golden["mask"], features_of())
    assert_close(logits[:, :, -7:], np.load(GOLDEN.parent / "peft" / "qwen2_audio" / "expected.npz")["logits"])


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("audio_config", dict(model_type="whisper"), "model_type must be 'qwen2_audio_encoder', got 'whisper'"),
        ("audio_config", dict(activation_function="relu"), "activation_function must be 'gelu', got 'relu'"),
        ("audio_config", dict(encoder_attention_heads=3), "encoder_attention_heads must divide d_model, got 3 and 20"),
        ("audio_config", dict(encoder_layers=0), "encoder_layers must be at least 1, got 0"),
        ("audio_config", dict(num_mel_bins=9), r"conv1.weight must have shape \(20, 9, 3\), got \(20, 7, 3\)"),
        ("text_config", dict(model_type="bert"), "model_type must be one of .* got 'bert'"),
        (None, dict(audio_token_index=37), "audio_token_index must be below vocab_size=37, got 37"),
        (None, dict(model_type="qwen2_audios"), "unknown model_type 'qwen2_audios'; .*nearest: qwen2_audio"),
        (None, dict(audio_token_index=31), r"\(7, 100, 31\), got \(7, 100, 30\)"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(tmp_path, part, change, message):
    shutil.copytree(GOLDEN / "grouped", tmp_path / "grouped")
    config = json.loads((tmp_path / "grouped" / "config.json").read_text())
    (config if part is None else config[part]).update(change)
    (tmp_path / "grouped" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(tmp_path / "grouped")


@pytest.mark.parametrize(
    ("prompts", "clips", "message"),
    [
        (["say", PROMPTS[0]], [np.zeros(4000)], "every prompt needs one of the clips or None, got 2 prompts and 1"),
        (["say"], [np.zeros(4000)], r"'<\|AUDIO\|>' \(token 30\) 1 times, for its 1 clips, got 0 in 'say'"),
        ([HEARS + HEARS], [np.zeros(4000)], "1 times, for its 1 clips, got 2"),
        ([HEARS], [None], "0 times, for its 0 clips, got 1"),
        ([HEARS], [np.zeros((2, 4000))], r"clip 0 must be mono, .* got shape \(2, 4000\)"),
        ([HEARS], [np.zeros(320)], r"S > 320 samples, got shape \(320,\)"),
    ],
)
def test_prompts_and_clips_that_do_not_belong_together_are_refused(prompts, clips, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(prompts, clips)


WAVE = np.sin(np.arange(4001) / 5).astype(np.float32)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((32767 * WAVE).astype(np.int16), r"floats in \[-1, 1\], got int16; divide 16-bit PCM by 32768"),
        ((127 + 127 * WAVE).astype(np.uint8), "got uint8; divide"),
        (WAVE > 0, "got bool"),
        (32767 * WAVE, r"must be in \[-1, 1\], got a sample of 327\d\d"),
        (np.where(WAVE > 0.99, np.nan, WAVE), r"must be in \[-1, 1\], got a sample of nan"),
        (np.where(WAVE > 0.99, -np.inf, WAVE), r"must be in \[-1, 1\], got a sample of inf"),
        (np.stack([WAVE, WAVE], 1), r"must be mono, .* got shape \(4001, 2\)"),
        (WAVE[:0], r"got shape \(0,\)"),
    ],
    ids=["pcm 16", "pcm 8", "bool", "pcm as floats", "nan", "infinite", "stereo", "empty"],
)
def test_clips_of_another_kind_are_refused(clip, message, processor):
    with pytest.raises(ValueError, match=f"^clip 1 .*{message}"):
        processor([HEARS, HEARS], [1.1 * WAVE, clip])  # resampling may overshoot a little
    with pytest.raises(ValueError, match=f"^a clip .*{message}"):
        processor.num_features(clip)


def test_a_processor_of_another_sampling_rate_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "grouped", tmp_path / "grouped")
    changed = 0
    for path in (tmp_path / "grouped").glob("*.json"):
        text = path.read_text()
        changed += '"sampling_rate": 16000' in text
        text = text.replace('"sampling_rate": 16000', '"sampling_rate": 8000')
        path.write_text(text.replace('"chunk_length": 1,', '"chunk_length": 2,'))  # as many frames
    assert changed
    with pytest.raises(ValueError, match="the processor's sampling_rate must be 16000, got 8000"):
        mcl.models.from_pretrained(tmp_path / "grouped")


def test_mel_of_whole_numbers_is_refused():
    module, params, _ = load()
    golden = expected()
    with pytest.raises(ValueError, match="mel must be floats, as the processor returns them, got int32"):
        encode(module, params, golden["mel"].astype(np.int32), golden["frames"])


def test_prompts_that_are_too_long_are_refused(processor):
    with pytest.raises(ValueError, match="a prompt must have at most length=37 tokens, got 38"):
        processor(PROMPTS, clips(), length=37)
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right', got 'both'"):
        processor(PROMPTS, clips(), padding_side="both")


def test_audio_tokens_without_features_are_refused():
    module, params, _ = load()
    golden, model = expected(), mcl.Hypotheses(module, LORA)
    inputs, adapters = {key: golden[key] for key in ("tokens", "mask")}, drawn_adapters()
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2, 3\] have \[25, 8, 14, 10\] placeholder tokens .* got 0"):
        mcl.generate(model, params, adapters, inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"rows \[0\] have \[25\] placeholder tokens \(30\) .* got 24"):
        mcl.generate(model, params, adapters, inputs | {"features": golden["features"][:, :24]}, max_new_tokens=2)
