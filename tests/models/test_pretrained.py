"""Loading and saving: parity with Hugging Face for every family (tests/golden/make_models.py), and what is refused."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from published_sizes import ALL, config_of, shapes_of
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax.likelihood import soft_cap
from mcl_jax.models import families, names, pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name for path in (GOLDEN / "models").iterdir())
# Their frequencies depend on the length so far, so keys kept from before were turned otherwise, as in Hugging Face.
TURNED_BY_LENGTH = ("llama_dynamic", "llama_longrope", "phi3_longrope")
ALIKE = ("qwen3", "smollm3_windows")  # what is special about them is in their siblings too
GREEDY = (
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3_longrope",
    "qwen3",
    "qwen3_windows",
    "smollm3",
    "smollm3_windows",
)  # and these generate, with keys that they keep
SLOW_TO_KEEP = ("llama_tied_biased", "llama_yarn", "qwen2", *GREEDY)


def slowly(names, slow):
    """The names, of which some are tested with `make test-slow` alone."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


KEEPING = slowly((name for name in NAMES if name not in TURNED_BY_LENGTH), SLOW_TO_KEEP)


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def expected(name):
    return np.load(GOLDEN / "models" / name / "expected.npz")


@pytest.mark.parametrize("name", slowly(NAMES, ALIKE))
def test_logits_are_hugging_faces(name):
    """With padding and without; hidden states times the unembedding, capped. For lists of layers, see "Saving"."""
    module, params, tokenizer = mcl.models.from_pretrained(GOLDEN / "models" / name)
    golden = expected(name)
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"])

    @jax.jit
    def run(params):
        hidden = module.apply({"params": params}, tokens, method="hidden")
        plain, padded = (module.apply({"params": params}, tokens, given) for given in (None, mask))
        return plain, padded, soft_cap(hidden @ module.unembedding(params), getattr(module, "logit_cap", None))

    plain, padded, product = map(np.asarray, run(params))
    assert_close(plain, golden["logits"])
    assert_close(product, golden["logits"])
    assert_close(padded[golden["mask"]], golden["padded_logits"][golden["mask"]])
    assert tokenizer is None


@pytest.mark.parametrize("name", KEEPING)
def test_tokens_behind_kept_keys_are_those_of_one_pass(name):
    """The prompt in one piece, then two tokens, then two single ones, each behind all segments before it."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / name)
    golden = expected(name)
    tokens, mask = jnp.asarray(golden["tokens"]), jnp.asarray(golden["mask"]).at[1].set(True)  # padded on the left only
    positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
    whole = jax.jit(lambda: module.apply({"params": params}, tokens, mask, method="hidden"))()

    @jax.jit
    def parts():
        past, parts = (), []
        for start, stop in [(0, 7), (7, 9), (9, 10), (10, 11)]:
            here = slice(start, stop)
            hidden, segment = module.apply(
                {"params": params}, tokens[:, here], mask[:, here], positions[:, here], past, method="extend"
            )
            past, parts = (*past, segment), [*parts, hidden]
        return jnp.concatenate(parts, 1)

    assert_close(np.asarray(parts())[mask], np.asarray(whole)[mask])


@pytest.mark.parametrize(
    "name", slowly(GREEDY, (*ALIKE, "gemma", "gemma2", "gemma3", "phi3", "phi3_longrope", "smollm3"))
)
def test_greedy_tokens_are_hugging_faces(name):
    """After prompts with padding on the left, past the windows, by hypotheses that are the base."""
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / name)
    golden = expected(name)
    inputs = {"tokens": golden["tokens"], "mask": golden["mask"] | (np.arange(3) == 1)[:, None]}
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=("down_proj",)))
    adapters = model.init(jax.random.key(0), params, inputs["tokens"], num_hypotheses=3)
    found = mcl.generate(model, params, adapters, inputs, max_new_tokens=13)
    for tokens in found[:, :, 0]:
        np.testing.assert_array_equal(tokens, golden["greedy"])


@pytest.mark.parametrize(
    "name",
    slowly(("llama", "gemma3", "phi3", "qwen2_windows", "gpt2"), ("gemma3", "phi3", "qwen2_windows", "gpt2")),
)
def test_remat_and_scan_change_no_gradient(name):
    tokens = jnp.asarray(expected(name)["tokens"])

    def gradient(**options):
        module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / name, **options)
        loss = lambda params: jnp.sin(module.apply({"params": params}, tokens)).mean()
        return pretrained.state_dict(jax.jit(jax.grad(loss))(params), families.of_config(module.config.to_hf()))

    plain = gradient(scan=False)
    stored = [
        dict(scan=True),
        *(dict(scan=True, remat=remat) for remat in ("full", "dots")),
        dict(scan=False, remat=True),
    ]
    for options in stored:
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), gradient(**options), plain)


def test_dots_saves_products_with_matrices_and_computes_the_rest_again():
    """The backward pass of a layer repeats seven products of its forward pass with full, none of them with dots."""
    tokens = jnp.asarray(expected("llama")["tokens"])

    def products(remat):
        module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", remat=remat)
        text = jax.jit(jax.grad(lambda x: module.apply({"params": x}, tokens).mean())).lower(params).as_text()
        return text.count("stablehlo.dot_general")

    assert products("full") - products("none") >= 7
    assert 0 < products("dots") - products("none") < products("full") - products("none")  # attention is repeated


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_unknown_remat_is_refused(family):
    with pytest.raises(ValueError, match="remat must be one of none, full, dots, or true or false, got 'some'"):
        mcl.models.from_pretrained(GOLDEN / "models" / family, remat="some")


# ------------------------------------------------------------------------------------------------------------ Saving


@pytest.mark.parametrize("name", slowly(NAMES, (*ALIKE, "gemma", "gemma2", "phi3", "phi3_longrope")))
def test_what_is_saved_loads_again_and_is_hugging_faces(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "MAX_SHARD_BYTES", 9000)
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / name)
    mcl.models.save_pretrained(tmp_path, module, params)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    again, params_again, _ = mcl.models.from_pretrained(tmp_path, scan=False)
    assert_close(again.apply({"params": params_again}, expected(name)["tokens"]), expected(name)["logits"])
    tensors = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    theirs = load_file(GOLDEN / "models" / name / "model.safetensors")
    assert set(tensors) == set(theirs)
    jax.tree.map(np.testing.assert_array_equal, tensors, theirs)
    fields = {key: value for key, value in again.config.__dict__.items() if key != "scan"}
    assert fields == {key: value for key, value in module.config.__dict__.items() if key != "scan"}


def test_weights_come_in_the_dtype_asked_for(tmp_path):
    module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    mcl.models.save_pretrained(tmp_path, module, params)
    _, again, _ = mcl.models.from_pretrained(tmp_path, param_dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_weights_are_read_into_a_sharding():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("model",))
    spec = jax.sharding.PartitionSpec
    last = lambda path, shape: jax.sharding.NamedSharding(
        mesh, spec(*[None] * (len(shape) - 1), "model" if shape[-1] % 2 == 0 else None)
    )
    _, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama", sharding=last)
    _, plain, _ = mcl.models.from_pretrained(GOLDEN / "models" / "llama")
    kernel = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == spec(None, None, "model")
    jax.tree.map(np.testing.assert_array_equal, params, plain)


# --------------------------------------------------------------------------------------------------------- Full size


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "scan", [pytest.param(False, marks=pytest.mark.slow, id="list"), pytest.param(True, id="scan")]
)
def test_every_tensor_of_a_full_size_model_has_its_place(name, scan):
    family, module = families.build(config_of(name), scan=scan)
    places = names.places(names.abstract_params(module), family)
    ours = {tensor: place.shape for place in places.values() for tensor in place.all_names}
    assert ours == shapes_of(name)


# ------------------------------------------------------------------------------------------------------------ Errors


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "models" / "llama", tmp_path / "llama")
    return tmp_path / "llama"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"Missing: \['model.norm.weight'\]. Unexpected: \[\]"),
        (lambda t: t.update(x=np.zeros(3, np.float32)), r"Missing: \[\]. Unexpected: \['x'\]"),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((24, 41), np.float32)}),
            r"lm_head.weight must have shape \(41, 24\), got \(24, 41\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(folder)


def test_a_file_cut_short_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is damaged or not a safetensors file"):
        mcl.models.from_pretrained(folder)


@pytest.mark.parametrize("how", ["link", "directory"])
def test_an_index_that_cannot_be_read_is_named_and_not_passed_over(folder, how):
    index = folder / "model.safetensors.index.json"
    index.symlink_to(folder / "unmounted") if how == "link" else index.mkdir()
    with pytest.raises(ValueError, match="index.json must be a file, but it is a directory or a link to nothing"):
        mcl.models.from_pretrained(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="no weight file .*model.safetensors"):
        mcl.models.from_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(ValueError, match="no weight file .*part-1.safetensors"):
        mcl.models.from_pretrained(folder)
    with pytest.raises(ValueError, match="nowhere must be a Hugging Face folder or a GGUF file"):
        mcl.models.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold a config.json"):
        mcl.models.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="llamas"), r"unknown model_type 'llamas'; .*nearest: llama"),
        (dict(hidden_act="relu"), "hidden_act must be 'silu', got 'relu'"),
        (dict(rope_parameters=dict(rope_type="spiral")), "rope_type must be one of .* got 'spiral'"),
        (dict(num_key_value_heads=4), "num_key_value_heads must divide num_attention_heads, got 4 and 6"),
        (dict(vocab_size=None), r"must have \['vocab_size'\]"),
    ],
    ids=["family", "activation", "rope", "heads", "absent"],
)
def test_configs_that_cannot_be_built_are_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(folder)


def test_tied_embeddings_must_be_equal_where_both_are_stored(tmp_path):
    shutil.copytree(GOLDEN / "models" / "qwen2", tmp_path / "tied")
    embedding = load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path / "tied", lambda t: t.update({"lm_head.weight": embedding}))
    mcl.models.from_pretrained(tmp_path / "tied")
    rewrite(tmp_path / "tied", lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ValueError, match="lm_head.weight must equal model.embed_tokens.weight"):
        mcl.models.from_pretrained(tmp_path / "tied")


# -------------------------------------------------------------------------------------------------------- Hypotheses


@pytest.mark.parametrize(
    "name",
    slowly(
        ("gpt2", "llama", "qwen2", "gemma3", "qwen3_windows", "smollm3"), ("gpt2", "gemma3", "qwen3_windows", "smollm3")
    ),
)
def test_hypotheses_of_a_scanned_model_are_those_of_a_list_of_layers(name):
    targets = dict(gpt2=("c_attn", "c_fc")).get(name, ("q_proj", "v_proj", "down_proj"))
    tokens = jnp.asarray(expected(name)["tokens"])
    config = mcl.LoraConfig(rank=3, alpha=7, targets=targets)
    logits = []
    for scan in (False, True):
        module, params, _ = mcl.models.from_pretrained(GOLDEN / "models" / name, scan=scan)
        model = mcl.Hypotheses(module, config)
        adapters = model.init(jax.random.key(0), params, tokens, num_hypotheses=3)
        if not scan:
            keys = iter(jax.random.split(jax.random.key(1), 1000))
            drawn = jax.tree.map(lambda x, keys=keys: 0.3 * jax.random.normal(next(keys), x.shape), adapters)
            listed = flatten_dict(drawn)
        else:
            stacks = {
                path: jnp.stack([listed[tuple(_at(part, i) for part in path)] for i in range(3)], 1)
                for path in flatten_dict(adapters)
            }
            drawn = unflatten_dict(stacks)
            assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, adapters)
        logits.append(jax.jit(model.apply_all)(params, drawn, tokens))
        merged = jax.jit(module.apply)({"params": model.merge(params, drawn, 2)}, tokens)
        assert_close(merged, logits[-1][2])
    assert_close(logits[0], logits[1])


def _at(part, i):
    return f"{part}_{i}" if part in ("layers", "h") else part


@pytest.mark.parametrize(
    "folder", ["models/gpt2", "models/gemma3", "models/llama", "models/qwen2", "llava/llama", "qwen2_audio/tied"]
)
def test_targets_of_a_family_are_its_queries_keys_values_and_mlp(folder):
    layers = adapted(mcl.models.from_pretrained(GOLDEN / folder)[0])
    mlp, of_llama = {"mlp/c_fc", "mlp/c_proj"}, {"mlp/up_proj", "mlp/down_proj"}
    projections = {f"self_attn/{name}_proj" for name in "qkv"}
    assert layers == ({"attn/c_attn"} | mlp if folder == "models/gpt2" else projections | of_llama)


def test_targets_of_another_module_are_refused():
    with pytest.raises(TypeError, match="must be one of .*GPT2, GPTNeo, .*, got Dense"):
        mcl.models.lora_targets(nn.Dense(3))


def test_targets_of_gpt_neo():
    config = mcl.models.GPTNeoConfig(
        vocab_size=11,
        hidden_size=6,
        num_layers=2,
        num_heads=3,
        max_position_embeddings=5,
        window_size=3,
        attention_layers=("global",) * 2,
    )
    projections = {f"attention/{name}_proj" for name in "qkv"}
    assert adapted(mcl.models.GPTNeo(config)) == projections | {"mlp/c_fc", "mlp/c_proj"}


def adapted(module):
    """Layers that get adapters, without what is above them."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=mcl.models.lora_targets(module)))

    def init(key):
        tokens = jnp.zeros((1, 2), jnp.int32)
        return model.init(key, module.init(key, tokens)["params"], tokens, num_hypotheses=3)

    return {"/".join(path[-3:-1]) for path in flatten_dict(jax.eval_shape(init, jax.random.key(0)))}
