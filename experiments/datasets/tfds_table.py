"""Tables and data sets of TFDS in any layout, whose columns --columns names."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.features import FILE_FORMAT
from experiments.datasets.layout import Layout
from experiments.datasets.sources import first_line, quiet
from mcl_jax.data.columns import Row, corpus_of_rows
from mcl_jax.data.records import SPLITS, Corpus, describe_unknown
from mcl_jax.data.tables import READERS, read_table

INFO = "dataset_info.json"  # in the folder of a prepared data set


def load_table(data: Path | str, data_dir: Path | str | None, layout: Layout) -> Corpus:
    """Reads a table, a folder of tables or a data set of TFDS.

    Args:
      data: a file or folder of `read_table`, the folder of a prepared data set of TFDS, or the name of one.
      data_dir: folder of TFDS; None means its default.
      layout: what the columns and splits are.
    Raises:
      ValueError, FileNotFoundError, RuntimeError: as `read_table` and `load_tfds` do.
    """
    path = Path(data)
    if path.suffix in READERS or (path.is_dir() and not (path / INFO).is_file()):
        columns = layout.columns
        names = {"source": columns.source, "targets": columns.targets, "mode": columns.mode, "split": columns.split}
        return read_table(path, **names, splits=layout.splits)
    return load_tfds(str(data), data_dir, layout)


def load_tfds(name: str, data_dir: Path | str | None, layout: Layout) -> Corpus:
    """Loads a data set of TFDS, which downloads and prepares it if it does not exist.

    Args:
      name: its name, such as squad/v1.1, or the folder of a prepared one.
      data_dir: folder of TFDS; None means its default.
      layout: what its features and splits are. Labels of classes are texts.
    Returns:
      The corpus. Records are in the order of TFDS, which is the same each time.
    Raises:
      ValueError: if TFDS does not know the name (names the nearest), or it lacks a feature or a split.
      RuntimeError: if the data set cannot be prepared here; says how to prepare it elsewhere.
    """
    builder = _builder(name, data_dir)
    full_name, features = builder.info.full_name, builder.info.features
    try:
        layout.columns.check(list(features))
    except ValueError as error:
        raise ValueError(f"{full_name}: {error}") from None
    _prepare(builder, name)
    splits = _splits(builder, layout.splits)
    rows = (row for ours, theirs in splits.items() for row in _rows(builder, ours, theirs, layout))
    return corpus_of_rows(full_name, rows, layout.columns)


def _builder(name: str, data_dir: Path | str | None) -> tfds.core.DatasetBuilder:
    if (Path(name) / INFO).is_file():
        return tfds.builder_from_directory(name)
    importlib.import_module("tensorflow_datasets.translate")  # without TensorFlow, TFDS does not import it itself
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        raise ValueError(
            f"--data with --columns must be a table ({', '.join(READERS)}), a folder of tables or of a prepared data "
            f"set of TFDS, or the name of one, which {_nearest(name.split('/')[0], known)}"
        )
    return tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)


def _nearest(name: str, known: list[str]) -> str:
    """Returns the end of an error about one of hundreds of names."""
    _, _, hint = describe_unknown(name, known).rpartition("; ")
    return f"{name!r} is not" + (f"; {hint}" if hint.startswith("did") else "")


def _prepare(builder: tfds.core.DatasetBuilder, name: str) -> None:
    if builder.info.splits:
        return
    quiet(builder, "this happens once, and downloading may take long")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise RuntimeError(
            f"the data set {name} cannot be prepared in {builder.data_dir}: {first_line(error)}\nOn a machine with "
            f"network access, run `tfds.builder({name!r}, data_dir=DIR, file_format={FILE_FORMAT!r})"
            ".download_and_prepare()`, copy DIR here and give the folder in it that holds dataset_info.json to --data."
        ) from error


def _splits(builder: tfds.core.DatasetBuilder, given: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the splits to read by ours; by default, those of the same name."""
    known = sorted(builder.info.splits)
    for theirs in (given or {}).values():
        try:
            builder.info.splits[theirs]
        except (KeyError, ValueError, AssertionError):
            raise ValueError(
                f"{builder.info.full_name}: --splits: a split {describe_unknown(theirs, known)}, or a slice such as "
                f"{known[0]}[:1000]"
            ) from None
    found = given or {split: split for split in SPLITS if split in known}
    if not found:
        raise ValueError(f"{builder.info.full_name} has only the splits {known}; say which is which with --splits")
    return dict(found)


def _rows(builder: tfds.core.DatasetBuilder, ours: str, theirs: str, layout: Layout) -> Iterator[tuple[str, str, Row]]:
    """Yields place, split and values of the examples of a split."""
    heads = {name if name in builder.info.features else name.partition(".")[0] for name in layout.columns.names}
    features = builder.info.features
    for number, example in enumerate(builder.as_data_source(theirs), 1):
        row = {name: _plain(example[name], features[name]) for name in sorted(heads)}
        yield f"{builder.info.full_name}, {theirs}, example {number}", ours, row


def _plain(value: Any, feature: Any = None) -> Any:
    """Converts what TFDS gives: bytes to texts, arrays to lists, numbers of classes to their names."""
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else None  # -1: the class is unknown
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value] if value.ndim else _plain(value.item())
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
