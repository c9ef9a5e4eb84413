"""Adapters to and from PEFT (tests/golden/make_peft.py), and merged weights as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax import interop
from mcl_jax.models.names import abstract_params

GOLDEN = Path(__file__).parent / "golden"
PEFT = GOLDEN / "peft" / "llama"
BASES = {
    "gemma2": "models/gemma2",
    "gemma3": "models/gemma3",
    "llama": "models/llama",
    "llava": "llava/llama",
    "paligemma": "paligemma/gemma2",
    "phi3": "models/phi3_longrope",
    "qwen2_audio": "qwen2_audio/grouped",
    "qwen3": "models/qwen3_windows",
    "smollm3": "models/smollm3",
    "smolvlm": "smolvlm/smolvlm",
    "whisper": "whisper/tiny",
}
EXPECTED = np.load(PEFT / "expected.npz")
TOKENS = jnp.asarray(EXPECTED["tokens"])


def load_base(scan=True):
    return mcl.models.from_pretrained(GOLDEN / "models" / "llama", scan=scan)[:2]


def assert_close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
def test_adapters_of_peft_give_its_logits(scan):
    module, params = load_base(scan)
    model, adapters = interop.load_peft(PEFT, module)
    assert (model.config.rank, model.config.alpha) == (3, 7.0)
    assert_close(jax.jit(model.apply_all)(params, adapters, TOKENS), EXPECTED["logits"])


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gemma3", "phi3", "smollm3"))]
)
def test_adapters_of_peft_for_relatives_of_llama_give_its_logits(name):
    module, params, _ = mcl.models.from_pretrained(GOLDEN / BASES[name])
    model, adapters = interop.load_peft(GOLDEN / "peft" / name, module)
    golden = np.load(GOLDEN / "peft" / name / "expected.npz")
    assert_close(jax.jit(model.apply_all)(params, adapters, jnp.asarray(golden["tokens"])), golden["logits"])


def test_adapters_with_the_settings_and_the_layout_of_the_authors():
    """All linear layers, α = 2 r, a dropout; lora0, lora1 and lora2 were saved by one call of PEFT."""
    module, params = load_base()
    model, adapters = interop.load_peft(GOLDEN / "peft" / "authors", module)
    assert (model.config.rank, model.config.alpha, model.config.dropout) == (2, 4.0, 0.05)
    layers = {path[-2] for path in flatten_dict(adapters)}
    assert layers == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    golden = np.load(GOLDEN / "peft" / "authors" / "expected.npz")
    logits = golden["logits"]
    assert_close(model.apply_all(params, adapters, jnp.asarray(golden["tokens"])), logits)
    assert np.abs(logits[0] - logits[1]).max() > 0.1 and np.abs(logits[1] - logits[2]).max() > 0.1


def test_one_folder_is_one_hypothesis():
    module, params = load_base()
    model, adapters = interop.load_peft(PEFT / "lora1", module)
    assert_close(jax.jit(model.apply_all)(params, adapters, TOKENS), EXPECTED["logits"][1:2])
    model, adapters = interop.load_peft([PEFT / "lora2", PEFT / "lora0"], module)
    assert_close(jax.jit(model.apply_all)(params, adapters, TOKENS), EXPECTED["logits"][[2, 0]])


@pytest.mark.parametrize("name", BASES)
def test_what_is_saved_is_what_peft_saved(name, tmp_path):
    """The same tensors under the same names, so PEFT reads them (`make_peft.py --check` has PEFT itself do so)."""
    module = mcl.models.from_pretrained(GOLDEN / BASES[name])[0]
    model, adapters = interop.load_peft(GOLDEN / "peft" / name, module)
    for k, folder in enumerate(interop.save_peft(tmp_path, model, adapters, base="tiny")):
        assert folder == tmp_path / f"lora{k}"
        theirs = load_file(GOLDEN / "peft" / name / f"lora{k}" / "adapter_model.safetensors")
        ours = load_file(folder / "adapter_model.safetensors")
        assert set(ours) == set(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        config = json.loads((folder / "adapter_config.json").read_text())
        theirs = json.loads((GOLDEN / "peft" / name / f"lora{k}" / "adapter_config.json").read_text())
        for field in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "bias"):
            assert config[field] == theirs[field], field


@pytest.mark.parametrize(
    ("name", "place", "layers"),
    [
        ("llava", "language_model/model/layers", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}),
        pytest.param("phi3", "model/layers", {"qkv_proj", "o_proj", "gate_up_proj"}, marks=pytest.mark.slow),
        ("qwen3", "model/layers", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"}),
        ("whisper", "model/decoder/layers", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1"}),
    ],
)
def test_all_linear_is_every_layer_of_the_language_model_but_its_output(name, place, layers):
    """What PEFT adapts with this word in a language model; the towers here have layers of these names too."""
    module = mcl.models.from_pretrained(GOLDEN / BASES[name])[0]
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets="all-linear"))
    features = {"features": jnp.zeros((1, 1, module.feature_size))} if name == "whisper" else {}
    tokens, params = jnp.zeros((1, 2), jnp.int32), abstract_params(module)
    init = lambda params: model.init(jax.random.key(0), params, tokens, num_hypotheses=3, method="hidden", **features)
    adapters = jax.eval_shape(init, params)
    paths = {"/".join(path[:-1]) for path in flatten_dict(adapters)}
    last = {"whisper": {"fc2"}, "phi3": {"down_proj"}}.get(name, {"up_proj", "down_proj"})
    assert {path.rsplit("/", 1)[-1] for path in paths} == layers | last
    assert all(path.startswith(place) for path in paths)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), adapters)
    call = lambda params, one: model.apply(params, one, tokens, **features)
    assert jax.eval_shape(call, params, one).shape[:2] == (1, 2)  # the output layer is called without adapters


@pytest.mark.parametrize("stabilized", [False, True])
def test_patterns_of_rank_and_alpha_survive_the_journey(tmp_path, stabilized):
    module, params = load_base(scan=False)
    config = mcl.LoraConfig(
        rank=3,
        alpha=7,
        targets=("q_proj", "o_proj", "up_proj"),
        rank_stabilized=stabilized,
        rank_pattern={"o_proj": 5},
        alpha_pattern={r"model/layers_1/.*/up_proj": 2.0},
    )
    model = mcl.Hypotheses(module, config)
    adapters = model.init(jax.random.key(0), params, TOKENS, num_hypotheses=4)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    adapters = jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), adapters)
    interop.save_peft(tmp_path, model, adapters)
    again, adapters_again = interop.load_peft(tmp_path, module)
    jax.tree.map(np.testing.assert_array_equal, adapters, adapters_again)
    found, wanted = (
        jax.jit(again.apply_all)(params, adapters_again, TOKENS),
        jax.jit(model.apply_all)(params, adapters, TOKENS),
    )
    assert_close(found, wanted)


def test_grouped_adapters_of_the_authors_are_unstacked(tmp_path):
    """All K in one folder, as weights of grouped convolutions."""
    files = [load_file(PEFT / f"lora{k}" / "adapter_model.safetensors") for k in range(3)]
    shutil.copytree(PEFT / "lora0", tmp_path / "lora0")
    grouped = {name: np.concatenate([file[name] for file in files])[..., None] for name in files[0]}
    save_file(grouped, tmp_path / "lora0" / "adapter_model.safetensors")
    module, params = load_base()
    model, adapters = interop.load_peft(tmp_path, module)
    assert_close(jax.jit(model.apply_all)(params, adapters, TOKENS), EXPECTED["logits"])


def test_merged_weights_load_as_a_model_of_their_own(tmp_path):
    module, params = load_base()
    model, adapters = interop.load_peft(PEFT, module)
    interop.save_merged(tmp_path, model, params, adapters, 1)
    merged, weights, _ = mcl.models.from_pretrained(tmp_path)
    assert_close(merged.apply({"params": weights}, TOKENS), EXPECTED["logits"][1])


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.fixture
def folder(tmp_path):
    for k in range(3):
        shutil.copytree(PEFT / f"lora{k}", tmp_path / f"lora{k}")
    return tmp_path


def change_config(folder, **change):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def without_a_half(folder):
    file = folder / "lora1" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))]
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "lora1"), r"must hold lora0 … lora1, got \['lora0', 'lora2'\]"),
        (lambda f: (f / "lora2" / "adapter_model.safetensors").unlink(), "lora2 is not a complete PEFT adapter folder"),
        (lambda f: (f / "lora0" / "adapter_model.safetensors").write_bytes(b"1234"), "lora0 is not a complete PEFT"),
        (without_a_half, "adapter_model.safetensors must hold lora_A and lora_B .* only one of them for .*q_proj"),
        (
            lambda f: change_config(f / "lora1", use_rslora=True),
            "must have the same settings, but .*lora1 has use_rslora = True, .*lora0 has False",
        ),
        (
            lambda f: [shutil.rmtree(f / f"lora{k}") for k in range(3)],
            "must hold adapter_config.json or the folders lora0, lora1, …, got neither",
        ),
    ],
    ids=["gap", "absent", "broken", "half", "differ", "none"],
)
def test_folders_that_cannot_be_read_are_named(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        interop.load_peft(folder, load_base()[0])


def test_adapters_of_another_model_are_refused(folder):
    module = mcl.models.from_pretrained(GOLDEN / "models" / "gpt2")[0]
    with pytest.raises(
        ValueError, match="GPT2 does not have, or does not adapt, the layers .*model.layers.0.mlp.down_proj"
    ):
        interop.load_peft(folder, module)
