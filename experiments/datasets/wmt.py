"""WMT's parallel text, loaded with TFDS."""

import importlib
from pathlib import Path

import tensorflow_datasets as tfds

from experiments.datasets.features import FILE_FORMAT
from experiments.datasets.sources import quiet
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
    """Loads WMT; TFDS downloads and prepares the data set if it does not exist.

    Args:
      name: a WMT data set of TFDS and its pair of languages, usually with English second.
      data_dir: folder of TFDS; None means its default.
      source, target: the direction, in either order.
      most: number of training pairs, the first in TFDS's shuffled order; None means all (35 million of wmt19 de-en).
    Returns:
      The corpus.
    Raises:
      ValueError: if TFDS does not know the name, the data set lacks a language, or there are no training pairs.
      RuntimeError: if the data set cannot be prepared here; says how to prepare it elsewhere.
    """
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1 training pair, or None for all, got {most}")
    importlib.import_module("tensorflow_datasets.translate")  # without TensorFlow, TFDS does not import it itself
    names = sorted(known for known in tfds.list_builders(with_community_datasets=False) if known.startswith("wmt"))
    if name.split("/")[0] not in names:
        raise ValueError(f"--data: a WMT data set of TFDS {describe_unknown(name, names)}")
    builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
    _check_languages(builder, source, target)
    quiet(builder, "this happens once, and downloading may take hours")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise RuntimeError(
            f"the data set {name} cannot be prepared in {builder.data_dir}: {error}\nOn a machine with network access, "
            f"run `tfds.builder({name!r}, data_dir=DIR, file_format={FILE_FORMAT!r}).download_and_prepare()`, copy DIR "
            f"here and pass it as data_dir. Or write the lines to FOLDER/train.{source} and FOLDER/train.{target}, and "
            "pass FOLDER as data."
        ) from error
    return read_wmt(builder, source=source, target=target, most=most)


def read_wmt(
    builder: tfds.core.DatasetBuilder, *, source: str = "en", target: str = "de", most: int | None = None
) -> Corpus:
    """Reads a corpus from a prepared builder whose examples have a text per language; arguments as in `load_wmt`.

    Raises:
      ValueError: if the data set lacks a language.
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
