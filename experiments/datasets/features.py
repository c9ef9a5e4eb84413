"""Records as TFDS examples, stored as array_record and read without TensorFlow.

TFDS shuffles the examples, so `read_corpus` sorts the records by id.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets.sources import first_line
from mcl_jax.data.media import KINDS, Media
from mcl_jax.data.records import SPLITS, Corpus, Record, Target

FILE_FORMAT = "array_record"


def record_features(media: bool = False) -> tfds.features.FeaturesDict:
    """Returns the features of an example: a record's fields, and with `media` kind, name and bytes of its file."""
    text = tfds.features.Text
    answers = tfds.features.Sequence({"mode": text(), "text": text()})
    fields = {"id": text(), "source": text(), "targets": answers, "further_references": answers, "split": text()}
    data = tfds.features.Tensor(shape=(), dtype=np.object_)
    if media:
        fields["media"] = tfds.features.FeaturesDict({"kind": text(), "name": text(), "data": data})
    return tfds.features.FeaturesDict(fields)


def as_features(record: Record) -> dict[str, Any]:
    """Converts a record to a TFDS example; a missing mode becomes an empty text.

    Raises:
      Unreadable: if the image or clip is missing or damaged.
    """

    def answers(targets: Sequence[Target]) -> list[dict[str, str]]:
        return [{"mode": target.mode or "", "text": target.text} for target in targets]

    example = {
        "id": record.id,
        "source": record.source,
        "targets": answers(record.targets),
        "further_references": answers(record.further_references),
        "split": record.split,
    }
    if (media := record.media) is not None:
        example["media"] = {"kind": media.kind, "name": media.name, "data": media.pack()}
    return example


def from_features(example: dict[str, Any], media: Media | None = None) -> Record:
    """Converts an example back to a record; `media` is separate, so that the bytes do not stay in memory."""

    def answers(field: dict[str, Any]) -> tuple[Target, ...]:
        pairs = zip(field["text"], field["mode"], strict=True)
        return tuple(Target(_text(text), _text(mode) or None) for text, mode in pairs)

    return Record(
        id=_text(example["id"]),
        source=_text(example["source"]),
        targets=answers(example["targets"]),
        further_references=answers(example["further_references"]),
        split=_text(example["split"]),
        media=media,
    )


def read_corpus(builder: tfds.core.DatasetBuilder, name: str) -> Corpus:
    """Reads the records of all splits of a prepared builder with `record_features`.

    Args:
      builder: its metadata may have "left_out", see `Corpus`.
      name: of the corpus.
    Raises:
      ValueError: if a file of the data set is damaged; names its folder.
    """
    try:
        records = _records(builder)
    except Exception as error:  # array_record and TFDS raise nearly every kind
        raise ValueError(
            f"the data set in {builder.data_dir} is damaged ({first_line(error)}): move that folder away, and it is "
            "made again"
        ) from error
    left_out = (builder.info.metadata or {}).get("left_out", ())
    return Corpus(name, records, tuple((name, reason) for name, reason in left_out))


def _records(builder: tfds.core.DatasetBuilder) -> tuple[Record, ...]:
    sources = [builder.as_data_source(split) for split in SPLITS if split in builder.info.splits]
    return tuple(
        from_features(example, _stored_media(source, row, example))
        for source in sources
        for row, example in enumerate(source)
    )


def _stored_media(source: Sequence[Any], row: int, example: dict[str, Any]) -> Media | None:
    """Returns the image or clip of an example, which is read from the data set when needed."""
    if "media" not in example:
        return None
    media = example["media"]
    return KINDS[_text(media["kind"])](_text(media["name"]), functools.partial(_stored_bytes, source, row))


def _stored_bytes(source: Sequence[Any], row: int) -> bytes:
    return source[row]["media"]["data"]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
