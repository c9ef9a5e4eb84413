"""Null in a config.json is what Hugging Face takes an entry left out for; NumPy's scalars are numbers."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from mcl_jax.data import BatchConfig
from mcl_jax.models import families
from mcl_jax.models.llava_next import LlavaNextConfig
from mcl_jax.models.rotary import Rope

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.rglob("config.json"))
# Where null is an answer of its own: as many as there are heads, and no window.
MEANT = ("num_key_value_heads", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
GPT_NEO = dict(
    model_type="gpt_neo",
    vocab_size=41,
    hidden_size=20,
    num_layers=3,
    num_heads=5,
    max_position_embeddings=32,
    window_size=4,
    attention_types=[[["global", "local"], 1], [["local"], 1]],
    attention_layers=None,
    intermediate_size=None,
    layer_norm_epsilon=None,
    initializer_range=None,
    activation_function=None,
    tie_word_embeddings=None,
)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def paths(entries, before=()):
    for name, value in entries.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths(value, (*before, name))


def changed(entries, path, change):
    """A copy of the entries, with `change` applied to the object that holds the entry at `path`."""
    copy = part = json.loads(json.dumps(entries))
    for name in path[:-1]:
        part = part[name]
    change(part)
    return copy


def built(hf_config):
    """The config that is built, or the error that says why none is."""
    try:
        return families.build(hf_config)[1].config
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_null_is_an_entry_left_out(folder):
    config = config_of(folder)
    assert not isinstance(built(config), str)
    for path in paths(config):
        null = built(changed(config, path, lambda part, path=path: part.update({path[-1]: None})))
        absent = built(changed(config, path, lambda part, path=path: part.pop(path[-1])))
        if path[-1] not in MEANT:
            assert null == absent, path


def test_null_where_it_says_something_is_read_as_hugging_face_reads_it():
    of = lambda name, **change: built({**config_of(GOLDEN / "models" / name), **change})
    without = lambda name, *gone: built({k: v for k, v in config_of(GOLDEN / "models" / name).items() if k not in gone})
    assert of("mistral", sliding_window=None).windows == (None,) * 3
    assert without("mistral", "sliding_window").windows == (4096,) * 3  # the default of its class
    assert of("mistral", num_key_value_heads=None).num_key_value_heads == 6
    assert of("qwen2", num_key_value_heads=None).num_key_value_heads == 6
    assert without("qwen2_windows", "max_window_layers", "layer_types").windows == (None,) * 3  # from layer 28 on
    assert without("qwen2_windows", "sliding_window").windows == (None, 4096, 4096)
    assert without("mistral", "max_position_embeddings").rope.max_positions == 131072


def test_gpt_neo_full_of_nulls():
    given = {name: value for name, value in GPT_NEO.items() if value is not None}
    assert built(GPT_NEO) == built(given)
    assert built(GPT_NEO).attention_layers == ("global", "local", "local")


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_parameters=dict(rope_type=None, type="linear", factor=3.0, rope_theta=None), rope_theta=500.0),
        dict(rope_scaling=dict(type="linear", factor=3.0), rope_parameters=None, rope_theta=500.0),
        dict(rope_scaling=dict(type="linear", factor=3.0), rope_parameters=dict(factor=None, rope_theta=500.0)),
        dict(
            rope_scaling=dict(rope_type="linear", factor=3.0),
            rope_theta=500.0,
            partial_rotary_factor=None,
            max_position_embeddings=None,
            original_max_position_embeddings=None,
        ),
    ],
)
def test_rotary_scaling_with_nulls(rope):
    assert Rope.from_hf(rope) == Rope(rope_theta=500.0, rope_type="linear", factor=3.0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_numpys_scalars_are_numbers(folder):
    """The same config, equal, with the same hash (it is static under jit), and JSON again."""
    config = config_of(folder)
    scalars = {int: np.int64, float: np.float64, bool: np.bool_}
    as_numpy = lambda x: scalars[type(x)](x) if type(x) in scalars else x
    found, wanted = built(jax.tree.map(as_numpy, config)), built(config)
    assert found == wanted and hash(found) == hash(wanted) and repr(found) == repr(wanted)
    assert json.dumps(found.to_hf()) == json.dumps(wanted.to_hf())


def test_none_as_an_option_is_the_default():
    folder = GOLDEN / "models" / "llama"
    found = mcl.models.from_pretrained(folder, dtype=None, param_dtype=None, scan=None, rope=None)[0].config
    assert (found.dtype, found.param_dtype, found.scan, found.rope) == (jnp.float32, jnp.float32, True, Rope())
    tower = built(config_of(GOLDEN / "llava" / "llama")).vision_config
    assert LlavaNextConfig(found, tower, 3, image_grid_pinpoints=((24, 12),), vision_feature_layer=None)


def test_none_is_the_default_of_adapters_experts_and_batches_too():
    config = mcl.LoraConfig(rank=np.int64(5), alpha=None, dropout=None, targets=None, rank_pattern={"q": np.int32(3)})
    same = mcl.LoraConfig(rank=5, rank_pattern={"q": 3})
    assert config == same and hash(config) == hash(same)
    batches = BatchConfig(np.int64(4), lengths=(np.int64(3), 5), seed=None, window=np.int8(2))
    assert json.dumps(dataclasses.asdict(batches)) == json.dumps(dataclasses.asdict(BatchConfig(4, (3, 5), 0, 2)))
    module = mcl.models.GPT2(built(config_of(GOLDEN / "models" / "gpt2")))
    experts = mcl.MixtureOfExperts(module, config, num_experts=np.int64(3), top_k=np.int64(2))
    assert experts == mcl.MixtureOfExperts(module, same, num_experts=3, top_k=2)
    with pytest.raises(ValueError, match="MixtureOfExperts needs a value for num_experts, .*, got None"):
        mcl.MixtureOfExperts(module, config, num_experts=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(vocab_size="41"), "vocab_size must be an integer of at least 1, got '41'"),
        (dict(num_hidden_layers=3.0), "num_hidden_layers must be an integer of at least 1, got 3.0"),
        (dict(head_dim=0), "head_dim must be at least 1, got 0"),
        (dict(hidden_size=None), r"must have \['hidden_size'\]"),
    ],
)
def test_sizes_that_are_none_are_refused(change, message):
    assert message.replace("\\", "") in built({**config_of(GOLDEN / "models" / "llama"), **change})


@pytest.mark.parametrize(
    ("folder", "entry", "message"),
    [
        (
            "llava/llama",
            ("image_processor", "do_normalize"),
            r"image_processor.do_normalize'\] must not be null",
        ),
        (
            "llava/llama",
            ("image_processor", "crop_size"),
            "cannot be read .* null: .*image_processor.crop_size'",
        ),
        ("llava/llama", ("image_token",), "cannot be read .* that are null: .*: image_token'"),
        (
            "qwen2_audio/grouped",
            ("feature_extractor", "hop_length"),
            "cannot be read .*: feature_extractor.hop_length'",
        ),
        ("qwen2_audio/grouped", ("feature_extractor", "dither"), r"feature_extractor.dither'\] must not be null"),
    ],
)
def test_nulls_that_transformers_takes_for_values_are_named(folder, entry, message, tmp_path):
    shutil.copytree(GOLDEN / folder, tmp_path / "model")
    file = tmp_path / "model" / "processor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(changed(config, entry, lambda part: part.update({entry[-1]: None}))))
    family, module = families.build(config_of(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        family.processor.from_pretrained(tmp_path / "model", module.config)


def test_a_tokenizer_without_padding_or_an_end_pads_with_something():
    """What stands at padding does not matter: the mask says so."""
    family, module = families.build(config_of(GOLDEN / "llava" / "llama"))
    processor = family.processor.from_pretrained(GOLDEN / "llava" / "llama", module.config)
    processor.tokenizer = type("Bare", (), dict(pad_token_id=None, eos_token_id=None))()
    found = processor.padded([np.array([3, 4, 5]), np.array([7])], 4)
    np.testing.assert_array_equal(found["tokens"], [[0, 3, 4, 5], [0, 0, 0, 7]])


def test_adapters_of_peft_with_nulls(tmp_path):
    """r and lora_alpha are 8 where they are not given, as in PEFT."""
    shutil.copytree(GOLDEN / "peft" / "llama", tmp_path / "adapters")
    module = mcl.models.from_pretrained(GOLDEN / "models" / "llama")[0]
    for file in (tmp_path / "adapters").glob("*/adapter_config.json"):
        config = json.loads(file.read_text())
        nulls = dict.fromkeys(("lora_dropout", "use_rslora", "alpha_pattern", "rank_pattern", "lora_alpha"))
        file.write_text(json.dumps(config | nulls))
    model, _ = mcl.interop.load_peft(tmp_path / "adapters", module)
    assert (model.config.rank, model.config.alpha, model.config.dropout) == (3, 8.0, 0.0)
    assert not model.config.rank_stabilized and not model.config.alpha_pattern


@pytest.mark.parametrize(("name", "entry"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_more_layers_than_tensors_are_refused(tmp_path, name, entry):
    """Their shapes would take days to trace."""
    folder = Path(__file__).parents[1] / "golden" / "models" / name
    shutil.copy(folder / "model.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {entry: 2**40}))
    with pytest.raises(ValueError, match=r"layers is 1099511627776, but the weights are only \d+ tensors"):
        mcl.models.from_pretrained(tmp_path)
