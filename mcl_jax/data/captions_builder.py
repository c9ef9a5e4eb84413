"""Captioned pictures and clips as TFDS data sets, made once and kept as array_record; TensorFlow is not needed.

    builder = Stamps(config="pictures", data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]     # {"id": b"animals/birds/owl", "media": {"data": b"\\x89PNG…", …}, …}

Pictures are kept as their files are, clips as FLAC of 16 kHz. Files that are missing or broken are left out: the
metadata of the data set names them and says why ("left_out").
"""

import abc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mcl_jax.data.features import FILE_FORMAT, as_features, read_corpus, record_features
from mcl_jax.data.media import Unreadable
from mcl_jax.data.published import (
    AUDIOCAPS_LAYOUT,
    CLOTHO_LAYOUT,
    TEXTCAPS_LAYOUT,
    read_audiocaps,
    read_clotho,
    read_textcaps,
)
from mcl_jax.data.records import SPLITS, Corpus, Record, describe_left_out, warn_of_left_out
from mcl_jax.data.stamps import KINDS, fetch_stamps, read_stamps

AHEAD = 64  # records whose files are read before the first of them is written


class _Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders have in common."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    @abc.abstractmethod
    def corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        """The records, whose pictures or clips are still in their files."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=record_features(media=True),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        corpus = self.corpus(dl_manager)
        self.info.metadata["left_out"] = [list(pair) for pair in corpus.left_out]
        return {split: self._generate_examples(corpus.split(split)) for split in SPLITS if corpus.counts()[split]}

    def _generate_examples(self, records: tuple[Record, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        broken = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(records), AHEAD):  # not all at once: what is done waits in memory
                part = records[start : start + AHEAD]
                for record, example in zip(part, pool.map(_features_or_error, part), strict=True):
                    if isinstance(example, Unreadable):
                        broken.append([example.name, example.reason])
                    else:
                        yield record.id, example
        if len(broken) == len(records):
            raise ValueError(f"none of the {len(records)} files could be read; {describe_left_out(broken)}")
        self.info.metadata["left_out"] += broken


def _features_or_error(record: Record) -> dict[str, Any] | Unreadable:
    try:
        return as_features(record)
    except Unreadable as error:
        return error


class Stamps(_Captions):
    """Tux Paint's stamps: pictures, spoken captions and sounds with captions in 12 languages; see `stamps`.

    Args:
      folder: of the stamps; None to fetch the Debian package.
      **options: of TFDS: config ("pictures", "spoken" or "sounds"), data_dir, file_format.
    """

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind, description=kind) for kind in KINDS]

    def __init__(self, *, folder: Path | str | None = None, **options: Any):
        super().__init__(**options)
        self.folder = folder

    def corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        folder = fetch_stamps(dl_manager.download_dir / "stamps") if self.folder is None else self.folder
        return read_stamps(folder, self.builder_config.name)


class TextCaps(_Captions):
    """TextCaps: pictures with captions that read their text; see `published`."""

    name = "textcaps"
    MANUAL_DOWNLOAD_INSTRUCTIONS = TEXTCAPS_LAYOUT
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="english", description="as published"),
        tfds.core.BuilderConfig(name="bilingual", description="captions that have a French text are French"),
    ]

    def corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        return read_textcaps(dl_manager.manual_dir, self.builder_config.name == "bilingual")


class AudioCaps(_Captions):
    """AudioCaps: clips of 10 s with captions; see `published`."""

    name = "audiocaps"
    MANUAL_DOWNLOAD_INSTRUCTIONS = AUDIOCAPS_LAYOUT

    def corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        return read_audiocaps(dl_manager.manual_dir)


class Clotho(_Captions):
    """Clotho v2.1: clips of 15 to 30 s with 5 captions; see `published`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = CLOTHO_LAYOUT

    def corpus(self, dl_manager: tfds.download.DownloadManager) -> Corpus:
        return read_clotho(dl_manager.manual_dir)


BUILDERS = {builder.name: builder for builder in (Stamps, TextCaps, AudioCaps, Clotho)}
CAPTIONS = tuple(  # names of the data sets, as TFDS has them
    f"{name}/{config}" if config else name
    for name, builder in BUILDERS.items()
    for config in builder.builder_configs or ("",)
)


def build_captions(name: str, data_dir: Path | str | None = None, folder: Path | str | None = None) -> Corpus:
    """Captions from the data set in `data_dir`, which is made if it is not there.

    Args:
      name: one of `CAPTIONS`.
      data_dir: of TFDS; its default if None.
      folder: what the data set is made of; None to fetch the stamps. Not looked at once it is made.
    Returns:
      The corpus; what was left out is warned of once, when the data set is made.
    Raises:
      FileNotFoundError, RuntimeError: if the files cannot be had; says how to get them.
      ValueError: if they have another layout, or all of a split's are broken.
    """
    dataset, _, config = name.partition("/")
    options = {"folder": folder} if dataset == Stamps.name else {}
    builder = BUILDERS[dataset](config=config or None, data_dir=data_dir, file_format=FILE_FORMAT, **options)
    if builder.info.initialized:  # it was made before
        return read_corpus(builder, name)
    layout = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if layout and (folder is None or not Path(folder).is_dir() or not any(Path(folder).iterdir())):
        raise FileNotFoundError(f"{name}: needed a folder with its files, got {folder and str(folder)!r}\n{layout}")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    corpus = read_corpus(builder, name)
    warn_of_left_out(corpus)
    return corpus
