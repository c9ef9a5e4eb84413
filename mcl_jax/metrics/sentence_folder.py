"""Settings of a sentence encoder's folder: those of sentence-transformers beside those of the BERT itself."""

from pathlib import Path

from mcl_jax.json_io import read_json, read_json_object
from mcl_jax.metrics.bert import BertConfig
from mcl_jax.models.hf_config import errors_name, read_config

STEPS = ("Transformer", "Pooling", "Normalize")  # what a vector is made with here, the pooling being the mean
LOWER_CASE = "do_lower_case"


def check(folder: Path) -> None:
    """Raises a ValueError that names the file and the setting if the folder is of another encoder than is computed.

    Computed is the mean over tokens of the last hidden states of a BERT, of unit length.
    """
    config = read_config(folder)
    with errors_name(folder / "config.json"):
        BertConfig.from_hf(config)
    modules = folder / "modules.json"
    if modules.is_file():
        with errors_name(modules):
            steps = [module["type"].rsplit(".", 1)[-1] for module in read_json(modules)]
            if unknown := sorted(set(steps) - set(STEPS)):
                raise ValueError(f"a sentence encoder is made of {STEPS}, got {unknown} too")
    for file in sorted(folder.glob("*_Pooling/config.json")):
        pooling = read_json_object(file)
        modes = {name: of for name, of in pooling.items() if name.startswith("pooling_mode") and of}
        if modes not in ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
            raise ValueError(f"{file}: vectors must be the mean over tokens (pooling_mode_mean_tokens), got {modes}")
    own = folder / "sentence_bert_config.json"
    if own.is_file() and read_json_object(own).get(LOWER_CASE):
        raise ValueError(f"{own}: {LOWER_CASE} must be false: a tokenizer lowers letters itself, by its own setting")
