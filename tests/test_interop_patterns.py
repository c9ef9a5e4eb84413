"""Ranks and alphas that differ by layer, to and from PEFT, with layers as a list and scanned."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from toys import randomized

import mcl_jax as mcl
from mcl_jax import interop

GOLDEN = Path(__file__).parent / "golden"
TOKENS = jnp.arange(10).reshape(2, 5)
K, L, LAYER = 4, 3, "model.layers.{}.self_attn.q_proj"
RANKS, ALPHAS = {LAYER.format(1): 5}, {LAYER.format(1): 64, r"layers\.0\.mlp\.up_proj": 2.5}


@pytest.fixture(scope="module")
def bases():
    """{scan: (module, params)}"""
    load = lambda scan: mcl.models.from_pretrained(GOLDEN / "models" / "llama", scan=scan)[:2]
    return {scan: load(scan) for scan in (False, True)}


def write(folder, ranks=RANKS, alphas=ALPHAS, scan_base=None, **options):
    """K folders as PEFT writes them, from the shapes of a list of layers."""
    layers = [LAYER.format(i) for i in range(L)] + [f"model.layers.{i}.mlp.up_proj" for i in range(L)]
    rng, sizes = np.random.default_rng(0), {}
    for path, leaf in flatten_dict(scan_base, sep=".").items():
        sizes[path.replace("layers_", "layers.").removesuffix(".kernel")] = leaf.shape
    for k in range(K):
        tensors = {}
        for name in layers:
            r, (d_in, d_out) = ranks.get(name, 3), sizes[name]
            for half, shape in [("A", (r, d_in)), ("B", (d_out, r))]:
                tensor = (0.3 * rng.normal(size=shape)).astype(np.float32)
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = tensor
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "rank_pattern": ranks, "alpha_pattern": alphas}
        target = folder / f"lora{k}"
        target.mkdir(parents=True)
        (target / "adapter_config.json").write_text(json.dumps(config | options))
        save_file(tensors, target / "adapter_model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path, bases):
    return write(tmp_path / "theirs", scan_base=bases[False][1])


def logits(base, model, adapters):
    return jax.jit(model.apply_all)(base[1], adapters, TOKENS)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_scanned_layers_are_as_those_of_a_list(folder, bases):
    outs = {}
    for scan, base in bases.items():
        model, adapters = interop.load_peft(folder, base[0])
        outs[scan] = logits(base, model, adapters)
        if scan:
            merged = model.merge(base[1], adapters, 2)
            close(base[0].apply({"params": merged}, TOKENS), outs[False][2])
            assert model.config.ranks_of("model/layers/self_attn/q_proj") == (3, 5, 3)
            assert model.config.alphas_of("model/layers/self_attn/q_proj") == (7.0, 64, 7.0)
    close(outs[True], outs[False])


@pytest.mark.parametrize("stabilized", [False, True])
def test_merged_kernels_are_w_plus_ba_of_each_layer(tmp_path, bases, stabilized):
    """By the tensors of the file: α/r, or α/√r, of each layer."""
    folder, (module, params) = write(tmp_path, scan_base=bases[False][1], use_rslora=stabilized), bases[True]
    model, adapters = interop.load_peft(folder, module)
    merged = model.merge(params, adapters, 1)
    tensors = load_file(folder / "lora1" / "adapter_model.safetensors")
    for i, (rank, alpha) in enumerate([(3, 7), (5, 64), (3, 7)]):
        a, b = (tensors[f"base_model.model.{LAYER.format(i)}.lora_{half}.weight"] for half in "AB")
        change = (alpha / (rank**0.5 if stabilized else rank)) * (b @ a).T
        kernel = lambda tree, i=i: tree["model"]["layers"]["self_attn"]["q_proj"]["kernel"][i]
        np.testing.assert_allclose(kernel(merged), kernel(params) + change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_what_was_loaded_is_saved_again(folder, bases, tmp_path, scan):
    model, adapters = interop.load_peft(folder, bases[scan][0])
    for k, ours in enumerate(interop.save_peft(tmp_path / "ours", model, adapters)):
        read = lambda where: load_file(where / "adapter_model.safetensors")
        theirs = folder / f"lora{k}"
        assert set(read(ours)) == set(read(theirs))
        jax.tree.map(np.testing.assert_array_equal, read(ours), read(theirs))
        config = json.loads((ours / "adapter_config.json").read_text())
        assert config["rank_pattern"] == {re.escape(LAYER.format(1)): 5}
        up = re.escape("model.layers.0.mlp.up_proj")
        assert config["alpha_pattern"] == {re.escape(LAYER.format(1)): 64, up: 2.5}
    _, again = interop.load_peft(tmp_path / "ours", bases[scan][0])
    jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_of_our_own_scanned_model(bases, tmp_path):
    """Padding is not written, whatever stands in it; a list of layers reads the folders as well."""
    (module, params), listed = bases[True], bases[False]
    place = "model/layers/self_attn/v_proj"
    config = mcl.LoraConfig(
        3, 7, targets="v_proj", rank_pattern={place: (2, 5, 3)}, alpha_pattern={place: (11.0, 7, 4)}
    )
    model = mcl.Hypotheses(module, config)
    init = lambda: model.init(jax.random.key(0), params, TOKENS, num_hypotheses=K)
    adapters = randomized(jax.eval_shape(init), seed=4)
    interop.save_peft(tmp_path, model, adapters)
    expected = logits(bases[True], model, adapters)
    for base in (bases[True], listed):
        close(logits(base, *interop.load_peft(tmp_path, base[0])), expected)


def test_the_first_pattern_that_matches_wins_as_in_peft(tmp_path, bases):
    alphas = {"q_proj": 64, LAYER.format(0): 2}
    folder = write(tmp_path, ranks={}, alphas=alphas, scan_base=bases[False][1])
    config = interop.load_peft(folder, bases[True][0])[0].config
    assert config.alphas_of("model/layers/self_attn/q_proj") == (64,)
    assert config.alphas_of("model/layers/mlp/up_proj") == (7.0,)


@pytest.mark.parametrize("absent", [None, {}])
def test_patterns_of_null_are_none_at_all(tmp_path, bases, absent):
    folder = write(tmp_path, ranks={}, alphas={}, scan_base=bases[False][1], rank_pattern=absent, alpha_pattern=absent)
    config = interop.load_peft(folder, bases[True][0])[0].config
    assert (config.rank_pattern, config.alpha_pattern) == ({}, {})


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"rank_pattern": {}},
            r"q_proj must be .* r = 3, as in .*, got \[5, \d+\] and \[\d+, 5\]",
        ),
        (
            {"rank_pattern": {"q_proj": 5}},
            r"layers.0.self_attn.q_proj must be .* r = 5, as in .*, got \[3, ",
        ),
    ],
)
def test_tensors_of_another_rank_than_the_config_says(tmp_path, bases, patterns, message):
    folder = write(tmp_path, scan_base=bases[False][1], **patterns)
    with pytest.raises(ValueError, match=message):
        interop.load_peft(folder, bases[True][0])
