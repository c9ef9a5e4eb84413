"""WMT's parallel text through TFDS."""

import importlib
from pathlib import Path

import tensorflow_datasets as tfds

from experiments.datasets.features import FILE_FORMAT
from mcl_jax.data.parallel_text import corpus_of
from mcl_jax.data.records import SPLITS, Corpus, describe_unknown


def load_wmt(
    name: str = "wmt19_translate/de-en",
    data_dir: Path | str | None = None,
    *,
    source: str = "en",
    target: str = "de",
    most: int | None = None,
) -> Corpus:
    """WMT from the data set in `data_dir`, downloaded and made by TFDS if it is not there.

    Args:
      name: a WMT data set of TFDS and its pair of languages, English second in most.
      data_dir: of TFDS; its default if None.
      source, target: the direction, in either order.
      most: training pairs, the first of them in TFDS's shuffled order; all (35 million of wmt19 de-en) if None.
    Raises:
      ValueError: for a name that TFDS does not know, a language that it does not have, or no training pairs.
      RuntimeError: if it cannot be made here; says how it can elsewhere.
    """
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1 training pair, or None for all; got {most}")
    importlib.import_module("tensorflow_datasets.translate")  # without TensorFlow, TFDS does not import it itself
    names = sorted(found for found in tfds.list_builders(with_community_datasets=False) if found.startswith("wmt"))
    if name.split("/")[0] not in names:
        raise ValueError(f"data: WMT by TFDS {describe_unknown(name, names)}")
    builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
    _check_languages(builder, source, target)
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise RuntimeError(
            f"could not make {name} in {builder.data_dir}: {error}\nWhere it can be, run `tfds.builder({name!r}, "
            f"data_dir=DIR, file_format={FILE_FORMAT!r}).download_and_prepare()` and bring DIR here as data_dir, or "
            f"write its lines to FOLDER/train.{source} and FOLDER/train.{target} and give FOLDER as data."
        ) from error
    return read_wmt(builder, source=source, target=target, most=most)


def read_wmt(
    builder: tfds.core.DatasetBuilder, *, source: str = "en", target: str = "de", most: int | None = None
) -> Corpus:
    """The corpus of a prepared builder whose examples are a text for each language; arguments as in `load_wmt`.

    Raises:
      ValueError: for a language it does not have.
    """
    _check_languages(builder, source, target)
    rows = {}
    for split in SPLITS:
        if split in builder.info.splits:
            number = builder.info.splits[split].num_examples
            end = number if split != "train" or most is None else min(most, number)
            examples = builder.as_data_source(f"{split}[:{end}]")
            rows[split] = [(e[source].decode().strip(), (e[target].decode().strip(),)) for e in examples]
    return corpus_of(builder.info.full_name, rows, 0.05, 0.05)


def _check_languages(builder: tfds.core.DatasetBuilder, *languages: str) -> None:
    for language in languages:
        if language not in builder.info.features:
            raise ValueError(f"{builder.info.full_name}: language {describe_unknown(language, builder.info.features)}")
