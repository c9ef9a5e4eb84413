"""LLaVA-NeXT: parity with Hugging Face (tests/golden/make_llava.py), tiling, processor, cost, and what is refused."""

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from published_sizes import config_of, shapes_of
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import mcl_jax as mcl
from mcl_jax.models import families, names
from mcl_jax.models.clip import CLIPVisionConfig, VisionTower
from mcl_jax.models.llama import LlamaConfig
from mcl_jax.models.tensors import Arrays, Renamed
from mcl_jax.models.tiling import PADDING, Tiling

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "llava"
NAMES = ("llama", "mistral", "qwen2")
TARGETS = ("q_proj", "v_proj", "down_proj")  # the tower has layers of the first two names as well


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def expected(name):
    return np.load(FOLDER / name / "expected.npz")


def pictures_of(module, golden):
    """(pixel_values, index) of the golden's four rows, the second without a picture."""
    pixels = (golden["pixels"] / 64 - 2).astype(np.float32).transpose(0, 1, 3, 4, 2)
    pixels = np.insert(pixels, 1, 0.0, axis=0)
    tiling, rows = module.config.tiling, [0, 2, 3]
    index = np.full((4, tiling.most_tokens), PADDING, np.int32)
    for row, size in zip(rows, golden["sizes"].tolist(), strict=True):
        of_picture = tiling.index(*size)
        index[row, : len(of_picture)] = of_picture
    return pixels, index


@functools.cache
def load(name, **options):
    module, params, _ = mcl.models.from_pretrained(FOLDER / name, **options)
    golden = expected(name)
    return module, params, golden, run(module, params, *pictures_of(module, golden), method="encode")


def run(module, params, *inputs, method=None):
    return jax.jit(functools.partial(module.apply, method=method))({"params": params}, *inputs)


def hypotheses(module, params, *inputs, K=3):
    """The model and adapters of zeros; nothing is compiled."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=TARGETS))
    init = functools.partial(model.init, num_hypotheses=K)
    shapes = jax.eval_shape(init, jax.random.key(0), params, *inputs)
    return model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


# ------------------------------------------------------------------------------------------------------------ Parity


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_of_the_tower_are_hugging_faces(name):
    module, params, golden, _ = load(name)
    tower, pixels = VisionTower(module.config.vision_config), pictures_of(module, golden)[0][0]
    for layers in ([0, 1, 2, 3], [-1, 0]):
        states = jax.jit(lambda tower_params, layers=layers: tower.apply({"params": tower_params}, pixels, layers))
        assert_close(states(params["vision_tower"]), np.concatenate(golden["states"][layers], axis=-1))


@pytest.mark.parametrize(("name", "scan"), [*((name, True) for name in NAMES), ("llama", False)])
def test_features_embeddings_and_logits_are_hugging_faces(name, scan):
    module, params, golden, features = load(name, scan=scan)
    tokens, mask = golden["tokens"], golden["mask"]
    picture = tokens == module.placeholder
    for row, of_row in enumerate(picture):
        assert_close(features[row, : of_row.sum()], golden["embeddings"][row, of_row])
    assert not features[1].any()
    assert_close(run(module, params, tokens, features, method="embed"), golden["embeddings"])
    logits = np.asarray(run(module, params, tokens, mask, features))
    assert_close(logits[mask], golden["logits"][mask])
    hidden = run(module, params, tokens, mask, features, method="hidden")
    assert_close(hidden @ module.unembedding(params), logits)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_is_hugging_faces_token_for_token(name):
    module, params, golden, features = load(name)
    model, adapters = hypotheses(module, params, golden["tokens"])
    inputs = {"tokens": golden["tokens"], "mask": golden["mask"], "features": features}
    found = mcl.generate(model, params, adapters, inputs, max_new_tokens=golden["generated"].shape[1])
    for of_hypothesis in found[:, :, 0]:  # each is the base
        np.testing.assert_array_equal(of_hypothesis, golden["generated"])


def test_a_picture_gives_the_same_features_alone_as_in_a_batch():
    module, params, golden, features = load("llama")
    pixels, index = pictures_of(module, golden)
    for row in (0, 2):
        real = index[row] != PADDING
        tiles = 1 + index[row].max() // module.config.tiling.side**2
        alone = run(module, params, pixels[row, :tiles][None], index[row, real][None], method="encode")
        assert_close(alone[0], features[row, real], 1e-5)


# ------------------------------------------------------------------------------------------------------------- Names


def published(name):
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def in_memory(name):
    """As transformers from 4.52 on names parameters."""
    for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head")):
        if name.startswith(old):
            return name.replace(old, new)
    return f"model.{name}"


@pytest.mark.parametrize(
    "rename", [published, in_memory, lambda name: in_memory(published(name))], ids=["published", "memory", "4.52"]
)
def test_other_names_of_the_tensors_load_alike(rename, tmp_path):
    _, params, _ = mcl.models.from_pretrained(FOLDER / "llama")
    shutil.copy(FOLDER / "llama" / "config.json", tmp_path)
    tensors = {rename(name): tensor for name, tensor in load_file(FOLDER / "llama" / "model.safetensors").items()}
    tensors[rename("vision_tower.embeddings.position_ids")] = np.arange(10)[None]  # of old checkpoints
    save_file(tensors, tmp_path / "model.safetensors")
    _, again, _ = mcl.models.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("name", ["vicuna", "mistral"])
def test_every_tensor_of_a_full_size_model_has_its_place_under_the_names_in_memory(name):
    shapes = shapes_of(f"llava-v1.6-{name}-7b")
    family, module = families.build(config_of(f"llava-v1.6-{name}-7b"))
    theirs = {in_memory(name.replace(".vision_model", "")): jax.ShapeDtypeStruct(s, "f4") for name, s in shapes.items()}
    source = Renamed(Arrays(theirs), family.renames)
    names.check(names.places(names.abstract_params(module), family), source.shapes, family)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_loads_again_under_the_published_names(name, tmp_path):
    module, params, _, _ = load(name)
    mcl.models.save_pretrained(tmp_path, module, params)
    again, params_again, processor = mcl.models.from_pretrained(tmp_path)
    assert again.config == module.config
    assert processor is None
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    theirs = load_file(FOLDER / name / "model.safetensors")
    ours = load_file(tmp_path / "model.safetensors")
    assert set(ours) == {published(name) for name in theirs}
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(ours[published(tensor)], value)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_a_text_config_leaves_out_hugging_faces_defaults(family):
    from transformers import AutoConfig

    whole = AutoConfig.for_model(family).to_dict()
    assert LlamaConfig.from_text_config({"model_type": family}) == LlamaConfig.from_hf(whole)
    part = {"model_type": family, "hidden_size": 192, "num_attention_heads": 64, "head_dim": 4, "sliding_window": 7}
    assert LlamaConfig.from_text_config(part) == LlamaConfig.from_hf(AutoConfig.for_model(**part).to_dict())


def test_a_vision_config_leaves_out_hugging_faces_defaults():
    from transformers import AutoConfig

    assert CLIPVisionConfig.from_hf({}) == CLIPVisionConfig.from_hf(AutoConfig.for_model("clip_vision_model").to_dict())


# ------------------------------------------------------------------------------------------------------------ Tiling


@pytest.mark.parametrize("name", ["7b", *NAMES])
def test_pictures_of_all_shapes_are_packed_as_by_hugging_face(name):
    golden = np.load(FOLDER / "tiling.npz")
    pinpoints, image_size, patch_size = json.loads(str(golden[f"{name}/tiling"]))
    tiling = Tiling(tuple(map(tuple, pinpoints)), image_size, patch_size)
    theirs = np.split(np.cumsum(golden[f"{name}/differences"]), np.cumsum(golden[f"{name}/lengths"])[:-1])
    for size, index in zip(golden["sizes"].tolist(), theirs, strict=True):
        np.testing.assert_array_equal(tiling.index(*size), index, err_msg=f"{size}")
        assert len(index) <= tiling.most_tokens and index.max() < tiling.most_tiles * tiling.side**2
    assert max(map(len, theirs)) == tiling.most_tokens
    assert max(1 + index.max() // tiling.side**2 for index in theirs) == tiling.most_tiles


# --------------------------------------------------------------------------------------------------------- Processor


@pytest.fixture(scope="module")
def processor():
    return mcl.models.from_pretrained(FOLDER / "llama")[2]


def noise(*size):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)


PROMPTS = ["USER : <image> what is this ? ASSISTANT :", "a red dog", "<image> dog", "is this <image>"]
PICTURES = [noise(9, 31), None, noise(3, 40), noise(70, 61)]


def test_pixels_and_tokens_are_those_of_hugging_faces_processor(processor):
    found = processor(PROMPTS, PICTURES)
    given = [picture for picture in PICTURES if picture is not None]
    theirs = processor.hf(
        text=PROMPTS,
        images=given,
        padding=True,
        padding_side="left",
        return_tensors="np",
        input_data_format="channels_last",
    )
    np.testing.assert_array_equal(found["tokens"], theirs["input_ids"])
    np.testing.assert_array_equal(found["mask"], theirs["attention_mask"])
    pixels = theirs["pixel_values"].transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(found["pixel_values"][[0, 2, 3], : pixels.shape[1]], pixels)
    assert not found["pixel_values"][1].any()
    counts = (found["tokens"] == processor.config.image_token_index).sum(1)
    np.testing.assert_array_equal((found["index"] != PADDING).sum(1), counts)


@pytest.mark.parametrize(("height", "width"), [(13, 29), (29, 13), (24, 24)])
def test_a_padded_picture_is_one_tile_of_a_square(processor, height, width):
    """As LLaVA-1.5 and the paper's authors do it: PIL pads with the mean colour, and CLIP's processor resizes."""
    picture, padded = noise(height, width), processor.padded_to_squares()
    size, side = processor.config.vision_config.image_size, max(height, width)
    colour = tuple(int(255 * channel) for channel in processor.hf.image_processor.image_mean)
    square = Image.new("RGB", (side, side), colour)
    square.paste(Image.fromarray(picture), ((side - width) // 2, (side - height) // 2))
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=processor.hf.image_processor.image_mean,
        image_std=processor.hf.image_processor.image_std,
    )(square, return_tensors="np")["pixel_values"][0]
    tiles, index = padded.picture(picture)
    np.testing.assert_allclose(tiles, theirs.transpose(1, 2, 0)[None], atol=1e-5)
    patches = (size // processor.config.vision_config.patch_size) ** 2
    np.testing.assert_array_equal(index, np.arange(patches))
    assert padded.num_features(picture) == patches < processor.num_features(picture)
    inputs = padded.inputs([picture, None])
    assert jax.tree.map(np.shape, inputs) == {"pixel_values": (2, 1, size, size, 3), "index": (2, patches)}
    module, params = mcl.models.from_pretrained(FOLDER / "llama")[:2]
    encode = lambda params: module.apply({"params": params}, **inputs, method="encode")
    assert jax.eval_shape(encode, params).shape == (2, patches, module.feature_size)


def test_shapes_do_not_depend_on_the_pictures(processor):
    shapes = [jax.tree.map(np.shape, processor(PROMPTS[:1], [noise(*size)], length=80)) for size in ((5, 60), (24, 24))]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match="at most length=41 tokens, got 59"):
        processor(PROMPTS[:1], [noise(24, 24)], length=41)


def test_a_saved_model_keeps_its_processor(processor, tmp_path):
    module, params, _ = mcl.models.from_pretrained(FOLDER / "llama")
    mcl.models.save_pretrained(tmp_path, module, params, processor)
    again = mcl.models.from_pretrained(tmp_path)[2]
    jax.tree.map(np.testing.assert_array_equal, again(PROMPTS, PICTURES), processor(PROMPTS, PICTURES))


def test_the_published_files_of_a_processor_are_read(processor, tmp_path):
    """Before transformers 5 an image processor had a file of its own; the number of additional tokens came late."""
    shutil.copytree(FOLDER / "llama", tmp_path / "model")
    config = json.loads((FOLDER / "llama" / "processor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(config.pop("image_processor")))
    del config["num_additional_image_tokens"]
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(config))
    again = mcl.models.from_pretrained(tmp_path / "model")[2]
    jax.tree.map(np.testing.assert_array_equal, again(PROMPTS, PICTURES), processor(PROMPTS, PICTURES))


# -------------------------------------------------------------------------------------------------------------- Cost


def flops(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


@pytest.fixture(scope="module")
def costs():
    """FLOPs of a likelihood and of a train step by K, with the tower in it and with features given.

    As lowered, before XLA could find what is computed twice.
    """
    module, params, golden, features = load("llama", scan=False)
    pixels, index = map(jnp.asarray, pictures_of(module, golden))
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])
    model, _ = hypotheses(module, params, tokens)
    encode = lambda pixels, index: module.apply({"params": params}, pixels, index, method="encode")

    def likelihood(params, adapters_k, batch, rng=None):
        seen = batch["features"] if "features" in batch else encode(batch["pixels"], batch["index"])
        logits = model.apply(params, adapters_k, batch["tokens"], batch["mask"], seen)
        return mcl.sequence_log_likelihood(logits[:, :-1], batch["tokens"][:, 1:], batch["mask"][:, 1:])

    def every(adapters, batch):
        return jax.vmap(lambda adapters_k: likelihood(params, adapters_k, batch)[0])(adapters)

    text = {"tokens": tokens, "mask": mask}
    batches = {"tower": text | {"pixels": pixels, "index": index}, "features": text | {"features": features}}
    found = {"encode": flops(encode, pixels, index)}
    for K in (2, 5):
        _, adapters = hypotheses(module, params, tokens, K=K)
        optimizer = optax.sgd(0.1)
        state = mcl.TrainState.create(params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(1))
        step = mcl.make_train_step(likelihood, mcl.objectives.wta(), optimizer)
        for kind, batch in batches.items():
            found["likelihood", kind, K] = flops(every, adapters, batch)
            found["step", kind, K] = step.lower(state, batch).cost_analysis()["flops"]
    return found


@pytest.mark.parametrize("what", ["likelihood", "step"])
def test_the_tower_runs_once_an_example_whatever_the_number_of_hypotheses(costs, what):
    """Even where a caller leaves `encode` inside of what is mapped over K: a step makes two passes, not K."""
    of_tower = {K: costs[what, "tower", K] - costs[what, "features", K] for K in (2, 5)}
    assert costs[what, "features", 5] > 1.3 * costs[what, "features", 2]
    np.testing.assert_allclose(of_tower[5], of_tower[2], rtol=0.02)
    assert of_tower[5] < (1 if what == "likelihood" else 2) * 1.05 * costs["encode"]


def test_adapters_have_no_leaves_in_the_tower():
    module, params, golden, features = load("mistral")
    for given in ((), (golden["mask"], features)):
        _, adapters = hypotheses(module, params, golden["tokens"], *given)
        assert {path[0] for path in flatten_dict(adapters)} == {"language_model"}


def test_adapters_of_peft_give_its_logits():
    module, params, golden, features = load("llama")
    model, adapters = mcl.interop.load_peft(GOLDEN / "peft" / "llava", module)
    logits = jax.jit(model.apply_all)(params, adapters, golden["tokens"], golden["mask"], features)
    assert_close(logits[:, :, -7:], np.load(GOLDEN / "peft" / "llava" / "expected.npz")["logits"])


@pytest.mark.parametrize("before", [False, True], ids=["now", "before"])
def test_adapters_have_the_names_of_peft_and_are_read_under_those_of_before_too(before, tmp_path):
    module, params, golden, _ = load("llama")
    config = mcl.LoraConfig(rank=2, alpha=3, targets=TARGETS, alpha_pattern={"down_proj": 5})
    _, zeros = hypotheses(module, params, golden["tokens"])
    adapters = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).random(leaf.shape, np.float32), zeros)
    now, old = "model.language_model.layers.", "language_model.model.layers."
    for folder in mcl.interop.save_peft(tmp_path, mcl.Hypotheses(module, config), adapters):
        tensors = load_file(folder / "adapter_model.safetensors")
        assert all(name.startswith(f"base_model.model.{now}") for name in tensors)
        if before:
            renamed = {name.replace(now, old): value for name, value in tensors.items()}
            save_file(renamed, folder / "adapter_model.safetensors")
            file = folder / "adapter_config.json"
            escaped = [json.dumps(re.escape(name))[1:-1] for name in (now, old)]
            file.write_text(file.read_text().replace(now, old).replace(*escaped))
    again, loaded = mcl.interop.load_peft(tmp_path, module)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    for place in {"/".join(path[:-1]) for path in flatten_dict(adapters)}:
        assert again.config.scale_of(place) == config.scale_of(place)


def test_adapters_of_the_tower_are_refused(tmp_path):
    module, params, golden, _ = load("llama")
    folder = mcl.interop.save_peft(tmp_path, *hypotheses(module, params, golden["tokens"], K=1))[0]
    tensors = load_file(folder / "adapter_model.safetensors")
    of_tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_"
    tensors |= {f"{of_tower}A.weight": np.zeros((2, 10), "f4"), f"{of_tower}B.weight": np.zeros((10, 2), "f4")}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"LlavaNext does not have, or .* the layers \['model.vision_tower.encoder"):
        mcl.interop.load_peft(folder, module)


def test_parameters_are_the_same_whether_drawn_from_tokens_or_with_features():
    module, params, golden, features = load("qwen2")
    for given in ((golden["tokens"],), (golden["tokens"], golden["mask"], features)):
        drawn = jax.eval_shape(module.init, jax.random.key(0), *given)["params"]
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)


def test_weights_and_features_come_in_the_dtype_asked_for():
    half = jnp.dtype(jnp.bfloat16)
    module, params, golden, features = load("llama", dtype=half, param_dtype=half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {half}
    assert features.dtype == half
    logits = run(module, params, golden["tokens"], golden["mask"], features)
    assert logits.dtype == jnp.float32
    assert np.abs(np.asarray(logits) - golden["logits"])[golden["mask"]].mean() < 0.1


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.mark.parametrize(
    ("prompts", "pictures", "message"),
    [
        (["a dog"], [noise(4, 5)], r"must have '<image>' \(token 36\) 1 times, for its 1 pictures, got 0 in 'a dog'"),
        (["<image> <image>"], [noise(4, 5)], "1 times, for its 1 pictures, got 2"),
        (["<image> dog"], [None], "0 times, for its 0 pictures, got 1"),
        (["a", "dog"], [None], "every prompt needs one of the pictures or None, got 2 prompts and 1"),
        (["<image>"], [noise(4, 5).astype(np.float32)], r"RGB, uint8\[H, W, 3\], got float32\[4, 5, 3\]"),
        (["<image>"], [noise(4, 5)[..., 0]], r"got uint8\[4, 5\]"),
        (["<image>"], [noise(0, 5)], r"got uint8\[0, 5, 3\]"),
        (["<image>"], [noise(4, 5).transpose(2, 0, 1)], r"got uint8\[3, 4, 5\]"),
        (["<image>"], [np.dstack([noise(4, 5), noise(4, 5)[..., :1]])], r"got uint8\[4, 5, 4\]"),
        (["<image>"], [noise(4, 5) > 99], r"got bool\[4, 5, 3\]"),
        (["<image>"], [noise(4, 5)[None]], r"got uint8\[1, 4, 5, 3\]"),
    ],
    ids=["none", "two", "no picture", "numbers", "dtype", "gray", "empty", "channels first", "alpha", "bool", "batch"],
)
def test_prompts_and_pictures_that_do_not_fit_are_refused(processor, prompts, pictures, message):
    with pytest.raises(ValueError, match=message):
        processor(prompts, pictures)
    if "got uint8" in message or "got bool" in message:  # they are counted before they are seen
        with pytest.raises(ValueError, match=message):
            processor.num_features(pictures[0])


def test_a_picture_without_pixels_has_no_resolution(processor):
    with pytest.raises(ValueError, match="an image must have pixels, got height 0 and width 5"):
        processor.tiling.index(0, 5)


def test_placeholders_without_features_are_refused():
    module, params, golden, features = load("llama")
    model, adapters = hypotheses(module, params, golden["tokens"])
    inputs = {"tokens": golden["tokens"], "mask": golden["mask"]}
    with pytest.raises(ValueError, match=r"rows \[0, 2, 3\] have \[\d+, \d+, 51\] placeholder tokens \(36\) .* got 0"):
        mcl.generate(model, params, adapters, inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"rows \[3\] have \[51\] placeholder tokens \(36\) .* got 50 features"):
        mcl.generate(model, params, adapters, inputs | {"features": features[:, :50]}, max_new_tokens=2)


def test_placeholders_without_a_feature_of_their_own_are_nan():
    """Where values are traced nothing can be refused; the last feature must not stand for two patches."""
    module, params, golden, features = load("llama")
    x = run(module, params, golden["tokens"], features[:, :50], method="embed")
    placeholders = np.cumsum(golden["tokens"] == module.placeholder, axis=1)
    np.testing.assert_array_equal(np.isnan(x).all(-1), (placeholders > 50) & (golden["tokens"] == module.placeholder))
    assert np.isnan(x).any()


def test_features_of_one_picture_for_all_prompts_and_pictures_themselves_are_refused():
    """Both would be taken in silence: one row of features is broadcast, and pictures are names that nobody reads."""
    module, params, golden, features = load("llama")
    model, adapters = hypotheses(module, params, golden["tokens"])
    inputs = {"input_ids": golden["tokens"], "attention_mask": golden["mask"].astype(int)}
    decode = lambda **more: mcl.generate(model, params, adapters, inputs | more, max_new_tokens=2)
    for wrong in (features[:1], features[..., :1], features[0]):
        with pytest.raises(
            ValueError, match=rf"features must be \[B, N, D\] with B = {len(features)} prompts and D = "
        ):
            decode(features=wrong)
        with pytest.raises(ValueError, match=r"features must be \[B, N, D\]"):
            run(module, params, golden["tokens"], golden["mask"], wrong, method="hidden")
    with pytest.raises(ValueError, match="got 'pixel_values'; call the model's method 'encode' first"):
        decode(features=features, pixel_values=pictures_of(module, golden)[0])


def test_pictures_of_another_size_are_refused():
    module, params, golden, _ = load("llama")
    pixels, index = pictures_of(module, golden)
    encode = lambda *inputs: module.apply({"params": params}, *inputs, method="encode")
    with pytest.raises(ValueError, match=r"needs images \[N, 12, 12, 3\], got \(20, 3, 12, 12\)"):
        encode(pixels.transpose(0, 1, 4, 2, 3), index)
    with pytest.raises(ValueError, match=r"pixel_values \[B, P, S, S, C\] and index \[B, N\], got .* \(3, 51\)"):
        encode(pixels, index[:3])
    with pytest.raises(ValueError, match="needs normalised float pixels, as the processor returns them, got uint8"):
        encode(pixels.astype(np.uint8), index)


def test_a_processor_that_cuts_otherwise_is_refused(tmp_path):
    shutil.copytree(FOLDER / "llama", tmp_path / "model")
    file = tmp_path / "model" / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["crop_size"] = {"height": 12, "width": 24}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="processor's image_grid_pinpoints and crop_size must be"):
        mcl.models.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(vision_config=dict(model_type="siglip_vision_model")), "must be 'clip_vision_model', got 'siglip"),
        (
            dict(vision_config=dict(hidden_act="relu")),
            r"must be one of \['gelu', 'gelu_pytorch_tanh', 'quick_gelu'\], got 'relu'",
        ),
        (dict(vision_config=dict(num_attention_heads=3)), "num_attention_heads must divide hidden_size, got 3 and 10"),
        (dict(vision_config=dict(image_size=[12, 12])), r"image_size must be an integer .* got \[12, 12\]"),
        (dict(vision_config=dict(patch_size=13)), "patch_size must be at most image_size=12, got 13"),
        (dict(text_config=dict(model_type="gpt2")), "model_type must be one of .* got 'gpt2'"),
        (dict(text_config=None), r"must have \['text_config'\]"),
        (dict(projector_hidden_act="relu"), "projector_hidden_act must be one of .* got 'relu'"),
        (dict(vision_feature_layer=4), r"must be in \[-4, 4\) for a tower of 3 layers, got \(4,\)"),
        (dict(vision_feature_layer=[-2, -5]), r"got \(-2, -5\)"),
        (dict(vision_feature_select_strategy="full"), "must be 'default' for a CLIP tower, got 'full'"),
        (dict(image_grid_pinpoints=[[12, 12], [12, 30]]), r"multiples of image_size=12, got \[\(12, 30\)\]"),
        (dict(image_token_index=37), "image_token_index must be below vocab_size=37, got 37"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    config = json.loads((FOLDER / "llama" / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        families.build(config)
