"""Folders of sentence encoders: settings that are computed or refused, and weights under any of their names."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mcl_jax.metrics import sentence_folder
from mcl_jax.metrics.bert import BertConfig, params_from_hf

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "minilm.npz")
HF_CONFIG = json.loads(str(GOLDEN["config"]))
WEIGHTS = {name.removeprefix("weights/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("weights/")}
MEAN, CLS = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, {"pooling_mode_cls_token": True}
STEP = "sentence_transformers.models."


def write(folder, file, content):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """As all-MiniLM-L6-v2 is published."""
    write(tmp_path, "config.json", HF_CONFIG)
    write(tmp_path, "1_Pooling/config.json", MEAN | {"word_embedding_dimension": 384})
    write(tmp_path, "modules.json", [{"type": STEP + name} for name in ("Transformer", "Pooling", "Normalize")])
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    return tmp_path


@pytest.mark.parametrize("pooling", [MEAN, {"pooling_mode": "mean"}])
def test_what_is_computed_is_taken(folder, pooling):
    write(folder, "1_Pooling/config.json", pooling)
    sentence_folder.check(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", CLS, r"must be the mean over tokens .* got \{'pooling_mode_cls_token': True\}"),
        ("1_Pooling/config.json", MEAN | CLS, "must be the mean over tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "must be the mean over tokens"),
        ("modules.json", [{"type": STEP + "Transformer"}, {"type": STEP + "Dense"}], r"got also \['Dense'\]"),
        ("modules.json", {"type": 1}, "a value is missing or of the wrong type"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case must be false"),
        ("sentence_bert_config.json", [1], "must hold a JSON object, got list"),
        ("config.json", HF_CONFIG | {"model_type": "roberta"}, "model_type must be 'bert', got 'roberta'"),
        ("config.json", HF_CONFIG | {"is_decoder": True}, "is_decoder must be False, got True"),
        ("config.json", HF_CONFIG | {"hidden_size": "21"}, "hidden_size must be an integer, got '21'"),
        ("config.json", HF_CONFIG | {"num_attention_heads": 5}, "num_attention_heads must divide hidden_size"),
        ("config.json", HF_CONFIG | {"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
    ],
)
def test_what_is_not_computed_is_named_with_its_file(folder, file, content, message):
    write(folder, file, content)
    with pytest.raises(ValueError, match=message) as error:
        sentence_folder.check(folder)
    assert str(folder) in str(error.value)


def test_weights_of_a_model_with_a_head_are_read():
    config = BertConfig.from_hf(HF_CONFIG)
    headed = {f"bert.{name}": of for name, of in WEIGHTS.items()} | {"cls.predictions.bias": np.zeros(3, np.float32)}
    for ours, theirs in zip(*(_flat(params_from_hf(of, config)) for of in (headed, WEIGHTS)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda of: np.where(of == of.max(), np.nan, of).astype(np.float32), "must hold finite numbers, got NaN"),
        (lambda of: of.astype(np.int8), "must hold floating-point numbers .*, got int8"),
    ],
)
def test_weights_that_are_no_numbers_are_named(damage, message):
    name = "encoder.layer.0.output.dense.weight"
    with pytest.raises(ValueError, match=f"{name} {message}"):
        params_from_hf(WEIGHTS | {name: damage(WEIGHTS[name])}, BertConfig.from_hf(HF_CONFIG))


def _flat(tree):

    return jax.tree.leaves(tree)
