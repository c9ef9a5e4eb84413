"""The verses as a TFDS data set, made once and kept as array_record; TensorFlow is not needed.

    builder = Verses(config="languages", data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]     # {"id": b"Matt 5:3", "source": ..., "targets": {"mode": [...], "text": ...}}

TFDS shuffles what it writes, so `read_corpus` puts records in the order of their ids.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mcl_jax.data.records import SPLITS, Corpus, Record, Target
from mcl_jax.data.verses import TASKS, read_verses, to_corpus

FILE_FORMAT = "array_record"


@dataclasses.dataclass(kw_only=True)
class VersesConfig(tfds.core.BuilderConfig):
    """What the data set is made of.

    Attributes:
      task: "languages" or "styles", see `verses`.
      testament: "new" (8 thousand verses) or "whole" (31 thousand).
    """

    task: str = "languages"
    testament: str = "new"


def _configs() -> list[VersesConfig]:
    new = [VersesConfig(name=task, task=task, description="New Testament") for task in TASKS]
    whole = [
        VersesConfig(name=f"{task}_whole", task=task, testament="whole", description="whole Bible") for task in TASKS
    ]
    return new + whole


class Verses(tfds.core.GeneratorBasedBuilder):
    """Builder of the configurations languages, styles, languages_whole and styles_whole.

    Args:
      sword_dir: a folder with mods.d that has the three SWORD modules; None to fetch the Debian packages.
      **options: of TFDS: config, data_dir, file_format.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def __init__(self, *, sword_dir: Path | str | None = None, **options: Any):
        super().__init__(**options)
        self.sword_dir = sword_dir

    def _info(self) -> tfds.core.DatasetInfo:
        answers = tfds.features.Sequence({"mode": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(
            builder=self,
            description="Verses in archaic English, modern English and Spanish: one source, two answers.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "source": tfds.features.Text(),
                    "targets": answers,
                    "further_references": answers,
                    "split": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        cache = Path(dl_manager.download_dir) / "verses"
        aligned = read_verses(cache, self.sword_dir, self.builder_config.testament)
        corpus = to_corpus(aligned.verses, self.builder_config.task)
        return {split: self._generate_examples(corpus.split(split)) for split in SPLITS}

    def _generate_examples(self, records: tuple[Record, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records:
            yield record.id, as_features(record)


def load_verses(
    config: str = "languages", data_dir: Path | str | None = None, sword_dir: Path | str | None = None
) -> Corpus:
    """The verses, from the data set in `data_dir`, which is made if it is not there.

    Args:
      config: "languages", "styles", "languages_whole" or "styles_whole".
      data_dir: of TFDS; its default if None.
      sword_dir: a folder with the unpacked SWORD modules; None to fetch the Debian packages.
    Raises:
      RuntimeError, FileNotFoundError: if the texts cannot be had; says by which commands.
    """
    builder = Verses(config=config, data_dir=data_dir, file_format=FILE_FORMAT, sword_dir=sword_dir)
    builder.download_and_prepare()
    return read_corpus(builder)


def read_corpus(builder: tfds.core.DatasetBuilder) -> Corpus:
    """The records of all splits of a prepared builder with the features of `Verses`."""
    sources = (builder.as_data_source(split) for split in SPLITS if split in builder.info.splits)
    return Corpus(builder.builder_config.name, tuple(from_features(e) for source in sources for e in source))


def as_features(record: Record) -> dict[str, Any]:
    """A record as an example of TFDS; no mode is an empty text there."""
    answers = lambda targets: [{"mode": target.mode or "", "text": target.text} for target in targets]
    return {
        "id": record.id,
        "source": record.source,
        "targets": answers(record.targets),
        "further_references": answers(record.further_references),
        "split": record.split,
    }


def from_features(example: dict[str, Any]) -> Record:
    """The record that `as_features` made an example of."""
    answers = lambda field: tuple(
        Target(_text(text), _text(mode) or None) for text, mode in zip(field["text"], field["mode"], strict=True)
    )
    return Record(
        id=_text(example["id"]),
        source=_text(example["source"]),
        targets=answers(example["targets"]),
        further_references=answers(example["further_references"]),
        split=_text(example["split"]),
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
