"""SmolVLM and Idefics3: parity with Hugging Face (tests/golden/make_smolvlm.py), tiles, processor, and refusals."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import mcl_jax as mcl
from mcl_jax.models import families
from mcl_jax.models.clip import CLIPVisionConfig
from mcl_jax.models.siglip import SiglipVisionConfig
from mcl_jax.models.smolvlm import joined
from mcl_jax.models.smolvlm_processor import Count, grid

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "smolvlm"
NAMES = ("smolvlm", pytest.param("idefics3", marks=pytest.mark.slow))
TARGETS = ("q_proj", "v_proj", "down_proj")  # the tower has layers of the first two names as well


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def run(module, params, *inputs, method=None):
    return jax.jit(functools.partial(module.apply, method=method))({"params": params}, *inputs)


def pixels_of(golden):
    return (golden["pixels"] / 64 - 2).astype(np.float32).transpose(0, 1, 3, 4, 2)


@functools.cache
def load(name, **options):
    module, params, _ = mcl.models.from_pretrained(FOLDER / name, **options)
    golden = np.load(FOLDER / name / "expected.npz")
    return module, params, golden, run(module, params, pixels_of(golden), golden["tiles"], method="encode")


def hypotheses(module, params, *inputs, K=3):
    """The model and adapters of zeros; nothing is compiled."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=TARGETS))
    init = functools.partial(model.init, num_hypotheses=K)
    shapes = jax.eval_shape(init, jax.random.key(0), params, *inputs)
    return model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


# ------------------------------------------------------------------------------------------------------------ Parity


@pytest.mark.parametrize("name", NAMES)
def test_states_features_embeddings_and_logits_are_hugging_faces(name):
    module, params, golden, features = load(name)
    tokens, mask = golden["tokens"], golden["mask"]

    @jax.jit
    def all_of(params):
        call = functools.partial(module.apply, {"params": params})
        states = call(pixels_of(golden)[-1], method=lambda module, pixels: module.vision_model(pixels))
        embeddings = call(tokens, features, method="embed")
        return states, embeddings, call(tokens, mask, features), call(tokens, mask, features, method="hidden")

    states, embeddings, logits, hidden = map(np.asarray, all_of(params))
    assert_close(states, golden["states"])
    for row, of_row in enumerate(tokens == module.placeholder):
        assert_close(features[row, : of_row.sum()], golden["embeddings"][row, of_row])
        assert not features[row, of_row.sum() :].any()
    assert_close(embeddings, golden["embeddings"])
    assert_close(logits[mask], golden["logits"][mask])
    assert_close(hidden @ module.unembedding(params), logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_greedy_decoding_is_hugging_faces_token_for_token(name):
    """Also behind a placeholder that the model itself says."""
    module, params, golden, features = load(name)
    model, adapters = hypotheses(module, params, golden["tokens"])
    inputs = {"tokens": golden["tokens"], "mask": golden["mask"], "features": features}
    found = mcl.generate(model, params, adapters, inputs, max_new_tokens=golden["generated"].shape[1])
    for of_hypothesis in found[:, :, 0]:  # each is the base
        np.testing.assert_array_equal(of_hypothesis, golden["generated"])


def test_neighbouring_patches_are_joined_row_by_row():
    """Of 6 x 6 patches, the first token has those of the first three of the first three rows."""
    x = np.arange(36 * 2).reshape(1, 36, 2)
    assert np.asarray(joined(x, 3))[0, 0, ::2].tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28]
    assert np.asarray(joined(x, 3))[0, :, 0].tolist() == [0, 6, 36, 42]


# ------------------------------------------------------------------------------------------------------------- Names


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_what_is_saved_has_the_published_names(name, tmp_path):
    module, params, _ = mcl.models.from_pretrained(FOLDER / name)
    mcl.models.save_pretrained(tmp_path, module, params)
    again, params_again, processor = mcl.models.from_pretrained(tmp_path)
    assert (again.config, processor) == (module.config, None)
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == name


def test_a_file_without_the_head_and_its_prefix_loads_alike(tmp_path):
    """As `Idefics3Model` is saved."""
    shutil.copy(FOLDER / "idefics3" / "config.json", tmp_path)
    tensors = load_file(FOLDER / "idefics3" / "model.safetensors")
    save_file({name.removeprefix("model."): of for name, of in tensors.items()}, tmp_path / "model.safetensors")
    params = [mcl.models.from_pretrained(folder)[1] for folder in (tmp_path, FOLDER / "idefics3")]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_transformers_reads_the_config_that_is_written(name):
    config = mcl.models.from_pretrained(FOLDER / name)[0].config
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config.to_hf()))).to_dict()
    assert type(config).from_hf(theirs) == config


@pytest.mark.parametrize("kind", ["siglip_vision_model", "idefics3_vision", "smolvlm_vision"])
def test_a_vision_config_leaves_out_hugging_faces_defaults(kind):
    theirs = AutoConfig.for_model(kind).to_dict()
    assert SiglipVisionConfig.from_hf({"model_type": kind}) == SiglipVisionConfig.from_hf(theirs)
    with pytest.raises(ValueError, match=f"must be 'clip_vision_model', got '{kind}'"):
        CLIPVisionConfig.from_hf({"model_type": kind})


@pytest.mark.slow
def test_adapters_of_peft_give_its_logits():
    """What `save_peft` writes is compared with PEFT's files in test_interop."""
    module, params, golden, features = load("smolvlm")
    model, adapters = mcl.interop.load_peft(GOLDEN / "peft" / "smolvlm", module)
    assert {path[0] for path in flatten_dict(adapters)} == {"language_model"}
    logits = jax.jit(model.apply_all)(params, adapters, golden["tokens"], golden["mask"], features)
    assert_close(logits[:, :, -7:], np.load(GOLDEN / "peft" / "smolvlm" / "expected.npz")["logits"])


# ------------------------------------------------------------------------------------------------------------- Tiles


@pytest.mark.parametrize(("longest", "tile"), [(36, 12), (40, 12), (27, 9), (12, 12), (52, 13)])
def test_pictures_of_all_shapes_are_cut_as_by_hugging_face(longest, tile):
    theirs = Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": tile})
    options = dict(input_data_format="channels_last", return_tensors="np", return_row_col_info=True)
    for size in [
        (1, 1),
        (12, 12),
        (13, 12),
        (5, 40),
        (40, 5),
        (60, 60),
        (37, 11),
        (25, 36),
        (36, 25),
        (2, 80),
        (30, 31),
    ]:
        cut = theirs([np.zeros((*size, 3), np.uint8)], **options)
        assert grid(*size, longest, tile) == (cut["rows"][0][0], cut["cols"][0][0]), size


def test_sizes_of_published_tiles():
    """512 pixels of at most 2048: the longer side always has four tiles."""
    assert grid(3000, 4000, 2048, 512) == (3, 4)
    assert grid(4000, 3000, 2048, 512) == (4, 3)
    assert grid(64, 64, 2048, 512) == (4, 4)
    assert grid(1, 5000, 2048, 512) == (1, 4)
    assert Count(64, 3, 4) == 13 * 64 and Count(64) == 64


# --------------------------------------------------------------------------------------------------------- Processor


@pytest.fixture(scope="module")
def processor():
    return mcl.models.from_pretrained(FOLDER / "smolvlm")[2]


def noise(*size):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)


PROMPTS = ["<|im_start|>User:<image>what is this?", "a dog", "<image>\nnow", "is this<image>"]
PICTURES = [noise(9, 31), None, noise(3, 3), noise(70, 61)]


def test_pixels_and_tokens_are_those_of_hugging_faces_processor(processor):
    found = processor(PROMPTS, PICTURES)
    for row, (prompt, picture) in enumerate(zip(PROMPTS, PICTURES, strict=True)):
        tokens, tiles = found["tokens"][row][found["mask"][row]], found["tiles"][row]
        assert not found["pixel_values"][row, tiles:].any()
        if picture is None:
            np.testing.assert_array_equal(tokens, processor.tokenizer(prompt)["input_ids"])
            assert tiles == 0
            continue
        options = dict(return_tensors="np", input_data_format="channels_last")
        theirs = processor.hf(text=[prompt], images=[[picture]], **options)
        np.testing.assert_array_equal(tokens, theirs["input_ids"][0])
        np.testing.assert_array_equal(
            found["pixel_values"][row, :tiles], theirs["pixel_values"][0].transpose(0, 2, 3, 1)
        )
        assert (tokens == processor.placeholder[0]).sum() == processor.num_features(picture) == tiles * 4
    assert found["tiles"].tolist() == [4, 0, 10, 10]
    assert found["pixel_values"].shape == (4, processor.most_tiles, 12, 12, 3)


def test_two_newlines_before_the_whole_picture_are_one_token(processor):
    tokens = processor.prompt("<image>", Count(4, 1, 3)).tolist()
    assert processor.tokenizer.convert_ids_to_tokens(tokens)[-9:-7] == ["<image>", "ĊĊ"]


def test_a_picture_that_is_not_cut(tmp_path):
    """With do_image_splitting off, and in the check of a prompt, for which no picture is read."""
    shutil.copytree(FOLDER / "smolvlm", tmp_path / "model")
    file = tmp_path / "model" / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["do_image_splitting"] = False
    file.write_text(json.dumps(config))
    whole = mcl.models.from_pretrained(tmp_path / "model")[2]
    found = whole(PROMPTS[:1], PICTURES[:1])
    theirs = whole.hf(text=PROMPTS[:1], images=[PICTURES[:1]], return_tensors="np", input_data_format="channels_last")
    np.testing.assert_array_equal(found["tokens"], theirs["input_ids"])
    np.testing.assert_array_equal(found["pixel_values"], theirs["pixel_values"].transpose(0, 1, 3, 4, 2))
    np.testing.assert_array_equal(whole.prompt(PROMPTS[0], 4), theirs["input_ids"][0])


def test_a_saved_model_keeps_its_processor(processor, tmp_path):
    module, params, _ = mcl.models.from_pretrained(FOLDER / "smolvlm")
    mcl.models.save_pretrained(tmp_path, module, params, processor)
    again = mcl.models.from_pretrained(tmp_path)[2]
    jax.tree.map(np.testing.assert_array_equal, again(PROMPTS, PICTURES), processor(PROMPTS, PICTURES))


def test_the_published_files_of_a_processor_are_read(processor, tmp_path):
    """With an image processor in a file of its own, and classes of transformers that need torch or take videos."""
    shutil.copytree(FOLDER / "smolvlm", tmp_path / "model")
    config = json.loads((FOLDER / "smolvlm" / "processor_config.json").read_text())
    pictures = config.pop("image_processor") | {"image_processor_type": "SmolVLMImageProcessor"}
    pictures |= {"processor_class": "SmolVLMProcessor", "video_sampling": {"fps": 1, "max_frames": 64}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(pictures))
    (tmp_path / "model" / "processor_config.json").write_text(
        json.dumps(config | {"processor_class": "SmolVLMProcessor"})
    )
    again = mcl.models.from_pretrained(tmp_path / "model")[2]
    jax.tree.map(np.testing.assert_array_equal, again(PROMPTS, PICTURES), processor(PROMPTS, PICTURES))
    assert mcl.models.pretrained.media_of(tmp_path / "model") == "pictures"


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.mark.parametrize(
    ("prompts", "pictures", "message"),
    [
        (["a dog"], [noise(4, 5)], r"must have '<image>' \(token 36\) 1 times, for its 1 pictures, got 0 in 'a dog'"),
        (["<image> <image>"], [noise(4, 5)], "1 times, for its 1 pictures, got 2"),
        (["<image> dog"], [None], "0 times, for its 0 pictures, got 1"),
        (["a", "dog"], [None], "every prompt needs one of the pictures or None, got 2 prompts and 1"),
        (["<image>"], [noise(4, 5)[..., 0]], r"RGB, uint8\[H, W, 3\], got uint8\[4, 5\]"),
    ],
    ids=["none", "two", "no picture", "numbers", "gray"],
)
def test_prompts_and_pictures_that_do_not_fit_are_refused(processor, prompts, pictures, message):
    with pytest.raises(ValueError, match=message):
        processor(prompts, pictures)


def test_tiles_of_another_size_are_refused():
    module, params, _ = mcl.models.from_pretrained(FOLDER / "smolvlm")
    golden = np.load(FOLDER / "smolvlm" / "expected.npz")
    pixels, tiles = pixels_of(golden), golden["tiles"]
    encode = lambda *inputs: module.apply({"params": params}, *inputs, method="encode")
    with pytest.raises(ValueError, match=r"needs images \[N, 12, 12, 3\], got \(20, 3, 12, 12\)"):
        encode(pixels.transpose(0, 1, 4, 2, 3), tiles)
    with pytest.raises(ValueError, match=r"pixel_values \[B, P, S, S, C\] and tiles \[B\], got .* \(3,\)"):
        encode(pixels, tiles[:3])
    with pytest.raises(ValueError, match="needs normalised float pixels, as the processor returns them, got uint8"):
        encode(pixels.astype(np.uint8), tiles)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(max_image_size={"longest_edge": 24}),
            r"max_image_size and image_seq_len must be \(12, 4\), got \(24, 4\)",
        ),
        (dict(do_resize=False), "must have do_resize and a size with longest_edge"),
    ],
)
def test_a_processor_that_cuts_otherwise_is_refused(change, message, tmp_path):
    shutil.copytree(FOLDER / "smolvlm", tmp_path / "model")
    file = tmp_path / "model" / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(vision_config=dict(hidden_act="relu")), "hidden_act must be one of .* got 'relu'"),
        (dict(text_config=dict(model_type="gpt2")), "model_type must be one of .* got 'gpt2'"),
        (dict(text_config=None), r"must have \['text_config'\]"),
        (dict(scale_factor=3), "scale_factor must divide the 4 patches in a row of a tile, got 3"),
        (dict(scale_factor=0), "scale_factor must be at least 1, got 0"),
        (dict(image_token_id=53), "image_token_id must be below vocab_size=53, got 53"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    config = json.loads((FOLDER / "smolvlm" / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        families.build(config)
