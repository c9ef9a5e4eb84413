"""EfficientLlava: the whole model against one made by hand, saved and read again, made of parts, refusals."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as tk
from tower_files import CONFIG as TOWER
from tower_files import published, tower_file
from toys import randomized
from transformers import PreTrainedTokenizerFast

import mcl_jax as mcl
from mcl_jax import interop
from mcl_jax.models import EfficientLlava, EfficientLlavaConfig, Llama, efficientnet_lite, pretrained
from mcl_jax.models.assembly import with_placeholder
from mcl_jax.models.efficient_llava import averaged
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor, pixels
from mcl_jax.models.llama import LlamaConfig

TEXT = LlamaConfig(
    vocab_size=31,
    hidden_size=12,
    intermediate_size=17,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)
SIZES = dict(cells=2, tokens_per_cell=3, projector_size=7, spelled_classes=5)
IMAGE, END = 2, 1
CONFIG = EfficientLlavaConfig(TEXT, TOWER, IMAGE, **SIZES)
MODULE = EfficientLlava(CONFIG)
LORA = mcl.LoraConfig(rank=2, alpha=3, targets=("q_proj", "v_proj", "down_proj"))
N = 12
# Two pictures, padding on the right; the last row has no picture.
PROMPTS = [[3, *[IMAGE] * N, 5, 7, 11], [*[IMAGE] * N, 5, 13], [17, 5, 19]]
ANSWERS = [[23, END], [4, 6, 8, END], [29, 9, END]]


@functools.cache
def params():
    """Random parameters, of a size at which all parts of the model matter."""
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    scales = {"vision_tower": 0.2, "multi_modal_projector": 0.5, "language_model": 1.0}
    return {name: randomized(shapes[name], seed, scales[name]) for seed, name in enumerate(sorted(shapes))}


@functools.cache
def batch():
    """{tokens, target_mask, pictures [3, S, S, 3]}"""
    length = max(len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True))
    tokens, mask = np.full((3, length), END, np.int32), np.zeros((3, length - 1), bool)
    for row, of_row, prompt, answer in zip(tokens, mask, PROMPTS, ANSWERS, strict=True):
        row[: len(prompt + answer)] = prompt + answer
        of_row[len(prompt) - 1 : len(prompt + answer) - 1] = True
    pictures = np.random.default_rng(7).normal(0, 1, (3, 27, 27, 3)).astype(np.float32)
    return {"tokens": tokens, "target_mask": mask, "pictures": pictures}


@functools.cache
def features():
    return jax.jit(lambda params, x: MODULE.apply({"params": params}, x, method="encode"))(
        params(), batch()["pictures"]
    )


def drawn_adapters(model, K=3):
    shapes = jax.eval_shape(functools.partial(model.init, num_hypotheses=K), jax.random.key(0), params(), PROMPTS_ARRAY)
    return randomized(shapes, 11, 0.5)


PROMPTS_ARRAY = jnp.zeros((1, 3), jnp.int32)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_features_are_those_of_the_tower_and_a_projector_made_by_hand():
    """Cells of a grid of 4 rows: each is the mean of 2 x 2; its tokens come next to each other."""
    grid = efficientnet_lite.EfficientNetLite(TOWER).apply(
        {"params": params()["vision_tower"]}, batch()["pictures"], method="grid"
    )
    grid, of = np.asarray(grid, np.float64), params()["multi_modal_projector"]
    cells = [grid[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]
    tokens = []
    for x in cells:
        wide = gelu(x @ of["linear_1"]["kernel"] + of["linear_1"]["bias"])
        y = x @ of["linear"]["kernel"] + wide @ of["linear_2"]["kernel"] + of["linear_2"]["bias"]
        shares = np.exp(x @ of["classes"]["kernel"] + of["classes"]["bias"])
        y += (shares / shares.sum(1, keepdims=True)) @ of["names"]["kernel"]
        tokens += np.split(np.asarray(y), 3, axis=1)
    assert features().shape == (3, N, 12) and np.std(tokens) > 0.1
    np.testing.assert_allclose(features(), np.stack(tokens, 1), rtol=1e-4, atol=1e-4)


def test_cells_that_share_rows():
    """Seven rows in two cells: rows 0 to 3, and 3 to 6."""
    grid = np.random.default_rng(0).normal(0, 1, (2, 7, 7, 5)).astype(np.float32)
    found = averaged(jnp.asarray(grid), 2)
    np.testing.assert_allclose(found[:, 1], grid[:, :4, 3:].mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(averaged(jnp.asarray(grid), 1)[:, 0], grid.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(averaged(jnp.asarray(grid), 7), grid.reshape(2, 49, 5))


def by_hand(params, row):
    """log p of the answer of a row: a Llama over embeddings, some of which are features."""
    text = params["language_model"]
    x, seen = [], 0
    for token in PROMPTS[row] + ANSWERS[row][:-1]:
        x.append(features()[row, seen] if token == IMAGE else text["model"]["embed_tokens"]["embedding"][token])
        seen += token == IMAGE
    positions = jnp.arange(len(x))[None]
    hidden = Llama(TEXT).apply({"params": text}, jnp.stack(x)[None], positions, method="hidden_embedded")
    logits = np.asarray(hidden[0], np.float64) @ np.asarray(text["model"]["embed_tokens"]["embedding"]).T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    start = len(PROMPTS[row]) - 1
    return sum(log_p[start + i, token] for i, token in enumerate(ANSWERS[row]))


def test_log_likelihoods_of_every_hypothesis_are_those_made_by_hand():
    """Each hypothesis is the model into which it is merged. The features of padding are without effect."""
    model = mcl.Hypotheses(MODULE, LORA)
    adapters = drawn_adapters(model)
    assert {path[0].key for path, _ in jax.tree.leaves_with_path(adapters)} == {"language_model"}
    spoiled = jnp.concatenate([features().at[2].set(1e3), jnp.full((3, 2, 12), 1e3)], axis=1)
    of_batch = {name: batch()[name] for name in ("tokens", "target_mask")}
    log_p, tokens = mcl.language_model.evaluate(model, params(), adapters, [of_batch | {"features": spoiled}])
    assert tokens.tolist() == [2, 4, 3]
    expected = [[by_hand(model.merge(params(), adapters, k), row) for row in range(3)] for k in range(3)]
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0.05
    other = of_batch | {"features": features()[jnp.array([1, 0, 2])]}
    changed = np.abs(mcl.language_model.evaluate(model, params(), adapters, [other])[0] - log_p)
    assert changed[:, :2].min() > 1e-3 and changed[:, 2].max() < 1e-5


def test_answers_are_those_of_the_merged_model(tmp_path):
    """Prompts padded on the left, through `generate`; the adapters also come back from PEFT's files."""
    model = mcl.Hypotheses(MODULE, LORA)
    adapters = drawn_adapters(model)
    longest = max(map(len, PROMPTS))
    tokens = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in PROMPTS]).astype(np.int32)
    mask = np.arange(longest)[None] >= longest - np.array([[len(prompt)] for prompt in PROMPTS])
    inputs = {"tokens": tokens, "mask": mask, "features": features()}
    found = mcl.generate(model, params(), adapters, inputs, max_new_tokens=5)
    merged, none = model.merge(params(), adapters, 1), jax.tree.map(jnp.zeros_like, adapters)
    np.testing.assert_array_equal(found[1], mcl.generate(model, merged, none, inputs, max_new_tokens=5)[0])
    assert len({np.asarray(of_hypothesis).tobytes() for of_hypothesis in found}) == 3
    interop.save_peft(tmp_path, model, adapters)
    again = interop.load_peft(tmp_path, MODULE)[1]
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


# -------------------------------------------------------------------------------------------------------------- Files


def tokenizer(special="<image>"):
    """31 tokens: three special ones, and words."""
    words = {"?": 0, "</s>": END, special: IMAGE} | {chr(ord("a") + i): 3 + i for i in range(26)} | {":": 29, ".": 30}
    model = tk.Tokenizer(tk.models.WordLevel(words, unk_token="?"))
    model.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    model.add_special_tokens(["</s>", special])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    processor = EfficientLlavaProcessor(CONFIG, tokenizer())
    mcl.models.save_pretrained(folder, MODULE, params(), processor)
    return folder


def test_a_saved_model_is_read_again(folder, capfd):
    module, read, processor = mcl.models.from_pretrained(folder)
    assert module == MODULE and pretrained.media_of(folder) == "pictures" and processor.placeholder == (2, "<image>")
    jax.tree.map(np.testing.assert_array_equal, read, params())
    assert capfd.readouterr().err == ""  # transformers has a warning for kinds of models that it does not know
    module, read, _ = mcl.models.from_pretrained(folder, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, scan=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(jnp.bfloat16)}
    encode = lambda params: module.apply({"params": params}, batch()["pictures"], method="encode")
    assert jax.eval_shape(encode, read).dtype == jnp.bfloat16


def test_prompts_and_pictures(folder):
    processor = mcl.models.from_pretrained(folder)[2]
    wide = np.zeros((6, 50, 3), np.uint8)
    inputs = processor(["a <image>: b", "c d"], [wide, None])
    assert inputs["tokens"].tolist() == [[3, *[IMAGE] * N, 29, 4], [END] * 13 + [5, 6]]
    assert inputs["mask"].sum(1).tolist() == [15, 2] and processor.num_features(wide) == N
    white, black = 1.0, -127 / 128
    picture = inputs["pixel_values"][0]
    assert picture.shape == (27, 27, 3) and not inputs["pixel_values"][1].any()
    np.testing.assert_allclose(picture[[0, 9, 17, 26]], white)
    np.testing.assert_allclose(picture[13], black)
    colours = np.zeros((40, 40, 3), np.uint8) + np.array([255, 127, 0], np.uint8)[None, None]
    np.testing.assert_allclose(pixels(colours, 5), np.broadcast_to([white, 0.0, black], (5, 5, 3)))


def test_assembled_from_a_language_model_and_a_tower(tmp_path, monkeypatch):
    monkeypatch.setitem(efficientnet_lite.VARIANTS, "lite0", TOWER)
    text = params()["language_model"]
    mcl.models.save_pretrained(tmp_path / "text", Llama(TEXT), text, tokenizer("<unused>"))
    file = tower_file(tmp_path / "tower.pth", published())
    made = functools.partial(mcl.models.assemble, tmp_path / "text", key=jax.random.key(3), weight_file=file)
    module, whole, processor = made(replaced="<unused>", sizes=SIZES)
    assert module == MODULE and jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, params())
    jax.tree.map(np.testing.assert_array_equal, whole["language_model"], text)
    seen = efficientnet_lite.EfficientNetLite(TOWER).apply(
        {"params": whole["vision_tower"]}, batch()["pictures"], method="grid"
    )
    np.testing.assert_array_equal(module.apply({"params": whole}, batch()["pictures"], method="see"), seen)
    assert processor.tokenizer("a <image> b")["input_ids"] == [3, 2, 4]
    assert processor.tokenizer.decode([2]) == "<image>" and processor.tokenizer.eos_token == "</s>"
    mcl.models.save_pretrained(tmp_path / "whole", module, whole, processor)
    jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path / "whole")[1], whole)
    with pytest.raises(ValueError, match="must have a special token '<empty_output>' that becomes '<image>'"):
        made()
    with pytest.raises(ValueError, match=r"whole must hold a Llama and its tokenizer, got a EfficientLlava"):
        mcl.models.assemble(tmp_path / "whole", key=jax.random.key(3), weight_file=file)


# ---------------------------------------------------------------------------------------------------------- Refusals


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match=r"cells must be at most 4, the grid's size, got 5"):
        EfficientLlavaConfig(TEXT, TOWER, IMAGE, cells=5)
    with pytest.raises(ValueError, match=r"spelled_classes must be at least 0, got -1"):
        EfficientLlavaConfig(TEXT, TOWER, IMAGE, spelled_classes=-1)
    with pytest.raises(ValueError, match=r"image_token_index must be below vocab_size=31, got 31"):
        EfficientLlavaConfig(TEXT, TOWER, 31)
    with pytest.raises(ValueError, match=r"config.json must have \['vision_config'\], got only"):
        EfficientLlavaConfig.from_hf({name: x for name, x in CONFIG.to_hf().items() if name != "vision_config"})
    with pytest.raises(ValueError, match=r"'<image>' must be the token 3 alone, got \[2\]"):
        EfficientLlavaProcessor(EfficientLlavaConfig(TEXT, TOWER, 3), tokenizer())
    with pytest.raises(ValueError, match=r"must have a special token 'a' that becomes '<image>'"):
        with_placeholder(tokenizer("<unused>"), "a", "<image>")
    processor = mcl.models.from_pretrained(folder)[2]
    with pytest.raises(ValueError, match=r"must be RGB, uint8\[H, W, 3\], got float64\[5, 7, 3\]"):
        processor(["<image>"], [np.zeros((5, 7, 3))])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_token": None}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json must have an image_token"):
        mcl.models.from_pretrained(Path(tmp_path))
