"""Mixtures of experts as folders: what was saved comes back to the bit, and what is broken is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys import Scanned, normal, randomized

import mcl_jax as mcl
from mcl_jax import interop

E = 5


@pytest.fixture(scope="module")
def mixture():
    config = mcl.LoraConfig(
        rank=2,
        alpha=7,
        dropout=0.25,
        targets=("up", "down"),
        rank_pattern={"layers/up": (3, 1, 2)},
        alpha_pattern={"layers/down": 5.0},
        param_dtype=jnp.bfloat16,
    )
    model = mcl.MixtureOfExperts(Scanned(), config, E, top_k=2)
    params = jax.eval_shape(model.module.init, jax.random.key(0), x := normal((2, 7)))["params"]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), params, x, num_hypotheses=3))
    return model, randomized(shapes, seed=1)


@pytest.fixture
def folder(mixture, tmp_path):
    return interop.save_moe(tmp_path / "mixture", *mixture)


def test_what_was_saved_comes_back(mixture, folder):
    model, adapters = interop.load_moe(folder, Scanned())
    assert model == mixture[0]
    assert jax.tree.structure(adapters) == jax.tree.structure(mixture[1])
    for ours, theirs in zip(*map(jax.tree.leaves, (adapters, mixture[1])), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(path.name for path in folder.iterdir()) == ["moe_config.json", "moe_model.safetensors"]


def change(folder, **entries):
    file = folder / "moe_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_tensors(folder, change):
    tensors = load_file(folder / "moe_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "moe_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "moe_config.json").unlink(), "mixture is not a complete folder of a mixture of experts"),
        (lambda f: (f / "moe_model.safetensors").write_bytes(b"12"), "is not a complete folder of a mixture"),
        (lambda f: change(f, format="moe"), r"moe_config.json: format must be 'mcl_jax.moe.1', got 'moe'"),
        (lambda f: change(f, num_experts=None), "moe_config.json: .*num_experts"),
        (lambda f: change(f, num_experts=4), r"layers/\w+ must have a, b and router of 4 experts, got"),
        (lambda f: change(f, top_k=6), r"moe_config.json: top_k must be in \[1, num_experts=5\], got 6"),
        (lambda f: change(f, lora=[]), r"moe_config.json: lora must be an object, got \[\]"),
        (lambda f: change(f, lora={"rnak": 2}), "moe_config.json: LoraConfig has no rnak"),
        (lambda f: change_tensors(f, lambda t: t.pop("layers/up/router")), "layers/up must have a, b and router"),
        (lambda f: change_tensors(f, lambda t: t.update({"layers/up/a": t["layers/up/a"][:2]})), "one leading axis of"),
        (lambda f: change_tensors(f, lambda t: t.update({"layers/up/b": np.full(3, np.nan)})), "up/b must hold finite"),
    ],
)
def test_what_is_broken_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        interop.load_moe(folder, Scanned())
