"""Folders of PEFT with other settings than plain LoRA (tests/golden/make_peft_variants.py), to and from PEFT."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax import interop

GOLDEN = Path(__file__).parent / "golden"
PEFT = GOLDEN / "peft"


@functools.cache
def load_base(name="llama", **options):
    return mcl.models.from_pretrained(GOLDEN / "models" / name, **options)[:2]


@functools.cache
def forward(module):
    return jax.jit(lambda params, tokens: module.apply({"params": params}, tokens))


def expected(name):
    golden = np.load(PEFT / name / "expected.npz")
    return jnp.asarray(golden["tokens"]), golden["logits"]


def tensors_in(folder):
    return load_file(folder / "adapter_model.safetensors")


def settings_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def assert_merged_give(name, base, model, adapters):
    """The plain base computes PEFT's logits with each hypothesis merged in."""
    (module, params), (tokens, logits) = base, expected(name)
    for k in range(3):
        assert_close(forward(module)(model.merge(params, adapters, k), tokens), logits[k])


# ------------------------------------------------------------------------------------------- Ranks differ by hypothesis


@pytest.mark.parametrize("name", ["ranks", "ranks_stabilized"])
def test_folders_of_different_ranks_are_padded_and_keep_their_scales(name, tmp_path):
    model, adapters = interop.load_peft(PEFT / name, load_base()[0])
    shapes = {path[-2]: leaf.shape[-1] for path, leaf in flatten_dict(adapters).items() if path[-1] == "a"}
    assert shapes == {"q_proj": 3, "down_proj": 5}  # the largest of 2, 3, 3 and of 2, 5, 3
    assert_merged_give(name, load_base(), model, adapters)
    folders = interop.save_peft(tmp_path, model, adapters)
    for k, folder in enumerate(folders):
        theirs, ours = tensors_in(PEFT / name / f"lora{k}"), tensors_in(folder)
        assert {key: of.shape for key, of in ours.items()} == {key: of.shape for key, of in theirs.items()}
    again, adapters_again = interop.load_peft(tmp_path, load_base()[0])
    assert_merged_give(name, load_base(), again, adapters_again)
    jax.tree.map(np.testing.assert_array_equal, adapters, adapters_again)


def test_a_common_scale_leaves_every_number_as_it_was(tmp_path):
    """α = 2 r in each folder, the usual choice: nothing is rounded, and the folders come back as they were."""
    for k, rank in enumerate((2, 5, 3)):
        tensors = {}
        for name, tensor in tensors_in(PEFT / "ranks" / f"lora{k}").items():
            if ".down_proj." in name:
                tensors[name] = tensor
        folder = tmp_path / f"lora{k}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2 * rank}))
    model, adapters = interop.load_peft(tmp_path, load_base()[0])
    assert (model.config.rank, model.config.alpha, model.config.rank_pattern) == (5, 10.0, {})
    for k, folder in enumerate(interop.save_peft(tmp_path / "ours", model, adapters)):
        jax.tree.map(np.testing.assert_array_equal, tensors_in(folder), tensors_in(tmp_path / f"lora{k}"))
        saved = settings_in(folder)
        assert (saved["r"], saved["lora_alpha"], saved["rank_pattern"]) == ((2, 5, 3)[k], 2 * (2, 5, 3)[k], {})


@pytest.mark.parametrize("name", ["ranks", "ranks_stabilized"])
def test_one_rank_for_programs_that_read_no_patterns(name, tmp_path):
    """W + s B A is the same with r and lora_alpha alone."""
    base = load_base()
    model, adapters = interop.load_peft(PEFT / name, base[0])
    for folder in interop.save_peft(tmp_path, model, adapters, one_rank=True):
        saved = settings_in(folder)
        assert (saved["r"], saved["rank_pattern"], saved["alpha_pattern"]) == (5, {}, {})
        assert all(5 in tensor.shape for tensor in tensors_in(folder).values())
    assert_merged_give(name, base, *interop.load_peft(tmp_path, base[0]))
