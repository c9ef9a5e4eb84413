"""The verses as a TFDS data set, prepared once and stored as array_record; TensorFlow is not needed.

builder = Verses(config="languages", data_dir=..., file_format="array_record")
builder.download_and_prepare()
builder.as_data_source("train")[0]     # {"id": b"Matt 5:3", "source": ..., "targets": {"mode": [...], "text": ...}}
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from experiments.datasets.features import FILE_FORMAT, as_features, read_corpus, record_features
from experiments.datasets.sources import made_of, prepare
from experiments.datasets.verses import SOURCES, TASKS, read_verses, summary_of_dropped, to_corpus
from mcl_jax.console import say
from mcl_jax.data.records import SPLITS, Corpus, Record


@dataclasses.dataclass(kw_only=True)
class VersesConfig(tfds.core.BuilderConfig):
    """Configuration of the data set.

    Attributes:
      task: "languages" or "styles", see `verses`.
      testament: "new" (8,000 verses) or "whole" (31,000).
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
      sword_dir: folder with mods.d and the three SWORD modules; None fetches the Debian packages.
      **options: options of TFDS: config, data_dir, file_format.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def __init__(self, *, sword_dir: Path | str | None = None, **options: Any):
        super().__init__(**options)
        self.sword_dir = sword_dir

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Verses in archaic English, modern English and Spanish: one source, two answers.",
            features=record_features(),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        cache = Path(dl_manager.download_dir) / "verses"
        fetched = self.sword_dir is None
        sources = {"folder": str(cache)} if fetched else made_of(self.sword_dir, SOURCES)
        aligned = read_verses(cache, self.sword_dir, self.builder_config.testament)
        self.info.metadata["sources"] = sources | {"fetched": fetched}
        self.info.metadata["dropped"] = [list(aligned.dropped_chapters), aligned.dropped_verses]
        corpus = to_corpus(aligned.verses, self.builder_config.task)
        return {split: self._generate_examples(corpus.split(split)) for split in SPLITS}

    def _generate_examples(self, records: tuple[Record, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records:
            yield record.id, as_features(record)


def load_verses(
    config: str = "languages", data_dir: Path | str | None = None, sword_dir: Path | str | None = None
) -> Corpus:
    """Loads the verses; prepares the data set if it does not exist, or was made from another folder.

    Args:
      config: "languages", "styles", "languages_whole" or "styles_whole".
      data_dir: folder of TFDS; None means its default.
      sword_dir: folder with the unpacked SWORD modules; None fetches the Debian packages, or uses an existing data set.
    Returns:
      The corpus.
    Raises:
      RuntimeError, FileNotFoundError: if the texts cannot be fetched or found; gives the commands to get them.
    """
    make = functools.partial(Verses, config=config, data_dir=data_dir, file_format=FILE_FORMAT, sword_dir=sword_dir)
    builder, made = prepare(make, sword_dir, SOURCES)
    corpus = read_corpus(builder, config)
    chapters, verses = (builder.info.metadata or {}).get("dropped", ((), 0))
    if not made and (chapters or verses):  # otherwise `read_verses` has said it
        say(summary_of_dropped(len(corpus.records), chapters, verses))
    return corpus
