"""Checks of a sentence encoder's folder: settings of sentence-transformers and of the BERT itself."""

from pathlib import Path

from mcl_jax.json_io import read_json, read_json_object
from mcl_jax.metrics.bert import BertConfig
from mcl_jax.models.hf_config import errors_name, read_config

STEPS = ("Transformer", "Pooling", "Normalize")  # supported modules; the pooling must be the mean
LOWER_CASE = "do_lower_case"


def check(folder: Path) -> None:
    """Checks that the encoder is the normalised mean over tokens of the last hidden states of a BERT.

    Raises:
      ValueError: if the folder holds another kind of encoder; names the file and the setting.
    """
    config = read_config(folder)
    with errors_name(folder / "config.json"):
        BertConfig.from_hf(config)
    modules = folder / "modules.json"
    if modules.is_file():
        with errors_name(modules):
            steps = [module["type"].rsplit(".", 1)[-1] for module in read_json(modules)]
            if unknown := sorted(set(steps) - set(STEPS)):
                raise ValueError(f"a sentence encoder must consist of {STEPS}, got also {unknown}")
    for file in sorted(folder.glob("*_Pooling/config.json")):
        pooling = read_json_object(file)
        modes = {name: value for name, value in pooling.items() if name.startswith("pooling_mode") and value}
        if modes not in ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
            raise ValueError(f"{file}: vectors must be the mean over tokens (pooling_mode_mean_tokens), got {modes}")
    own = folder / "sentence_bert_config.json"
    if own.is_file() and read_json_object(own).get(LOWER_CASE):
        raise ValueError(f"{own}: {LOWER_CASE} must be false, since the tokenizer's own settings decide about case")
