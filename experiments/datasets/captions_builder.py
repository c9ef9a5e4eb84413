"""Captioned images and audio clips as TFDS data sets, prepared once and stored as array_record, without TensorFlow.

    builder = Stamps(config="pictures", data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source("train")[0]     # {"id": b"animals/birds/owl", "media": {"data": b"\\x89PNG…", …}, …}

Image files are stored unchanged, clips as FLAC at 16 kHz. Missing or damaged files are left out: the metadata of the
data set name them with the reason ("left_out"), and describe the files it was made from ("sources"). When those files
change, it is prepared again.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from experiments.datasets import audiocaps, clotho, textcaps
from experiments.datasets.features import FILE_FORMAT, as_features, read_corpus, record_features
from experiments.datasets.sources import made_of, prepare
from experiments.datasets.stamps import KINDS, fetch_stamps, read_stamps
from mcl_jax.data.media import Unreadable
from mcl_jax.data.records import SPLITS, Corpus, Record, describe_left_out, warn_of_left_out

AHEAD = 64  # number of records whose files are read ahead


Check = Callable[[Corpus], object]  # raises an error for unsuitable records


class _Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Common base of the builders.

    Attributes:
      SOURCES: globs of the files of the data set.
      check: checks the records before any image or clip is read.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    SOURCES: ClassVar[tuple[str, ...]]
    check: Check | None = None

    @abc.abstractmethod
    def corpus(self, folder: Path) -> Corpus:
        """Returns the records, with images or clips not yet read."""

    def source(self, dl_manager: tfds.download.DownloadManager) -> tuple[Path, bool]:
        """Returns the folder with the files, and whether it was fetched."""
        return Path(dl_manager.manual_dir), False

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=record_features(media=True),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        folder, fetched = self.source(dl_manager)
        self.info.metadata["sources"] = made_of(folder, self.SOURCES) | {"fetched": fetched}
        corpus = self.corpus(folder)
        if self.check is not None:
            self.check(corpus)
        self.info.metadata["left_out"] = [list(pair) for pair in corpus.left_out]
        return {split: self._generate_examples(corpus.split(split)) for split in SPLITS if corpus.counts()[split]}

    def _generate_examples(self, records: tuple[Record, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
        broken = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(records), AHEAD):  # not all at once, since results wait in memory
                part = records[start : start + AHEAD]
                for record, example in zip(part, pool.map(_features_or_error, part), strict=True):
                    if isinstance(example, Unreadable):
                        broken.append([example.name, example.reason])
                    else:
                        yield record.id, example
        if len(broken) == len(records):
            raise ValueError(f"none of the {len(records)} files can be read; {describe_left_out(broken)}")
        self.info.metadata["left_out"] += broken


def _features_or_error(record: Record) -> dict[str, Any] | Unreadable:
    try:
        return as_features(record)
    except Unreadable as error:
        return error


class Stamps(_Captions):
    """Tux Paint's stamps: images, spoken captions and sounds with captions in 12 languages; see `stamps`.

    Args:
      folder: folder of the stamps; None fetches the Debian package.
      **options: options of TFDS: config ("pictures", "spoken" or "sounds"), data_dir, file_format.
    """

    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind, description=kind) for kind in KINDS]
    SOURCES = tuple(f"**/*.{ending}" for ending in ("txt", "png", "ogg", "wav"))

    def __init__(self, *, folder: Path | str | None = None, **options: Any):
        super().__init__(**options)
        self.folder = folder

    def source(self, dl_manager: tfds.download.DownloadManager) -> tuple[Path, bool]:
        if self.folder is None:
            return fetch_stamps(dl_manager.download_dir / "stamps"), True
        return Path(self.folder), False

    def corpus(self, folder: Path) -> Corpus:
        return read_stamps(folder, self.builder_config.name)


class TextCaps(_Captions):
    """TextCaps: images with captions that read the text in them; see `published`."""

    name = "textcaps"
    MANUAL_DOWNLOAD_INSTRUCTIONS = textcaps.LAYOUT
    SOURCES = ("TextCaps_0.1_*.json", "train_images/*")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="english", description="as published"),
        tfds.core.BuilderConfig(name="bilingual", description="captions with a French text are French"),
    ]

    def corpus(self, folder: Path) -> Corpus:
        return textcaps.read_textcaps(folder, self.builder_config.name == "bilingual")


class AudioCaps(_Captions):
    """AudioCaps: clips of 10 s with captions; see `published`."""

    name = "audiocaps"
    MANUAL_DOWNLOAD_INSTRUCTIONS = audiocaps.LAYOUT
    SOURCES = ("*.csv", "train/*", "val/*", "test/*")

    def corpus(self, folder: Path) -> Corpus:
        return audiocaps.read_audiocaps(folder)


class Clotho(_Captions):
    """Clotho v2.1: clips of 15 to 30 s with 5 captions; see `published`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = clotho.LAYOUT
    SOURCES = ("clotho_captions_*.csv", "development/*", "validation/*", "evaluation/*")

    def corpus(self, folder: Path) -> Corpus:
        return clotho.read_clotho(folder)


BUILDERS = {builder.name: builder for builder in (Stamps, TextCaps, AudioCaps, Clotho)}
CAPTIONS = tuple(  # names of the data sets in TFDS
    f"{name}/{config}" if config else name
    for name, builder in BUILDERS.items()
    for config in builder.builder_configs or ("",)
)


def build_captions(
    name: str, data_dir: Path | str | None = None, folder: Path | str | None = None, check: Check | None = None
) -> Corpus:
    """Loads captions; prepares the data set if it does not exist, or was made from other files.

    Args:
      name: one of `CAPTIONS`.
      data_dir: folder of TFDS; None means its default.
      folder: files of the data set; None fetches the stamps, or uses an existing data set.
      check: checks the records before any image or clip is read, and may raise an error.
    Returns:
      The corpus. A line on the console says each time what is left out.
    Raises:
      FileNotFoundError, RuntimeError: if the files are missing or cannot be fetched; says how to get them.
      ValueError: if the files have another layout, or all files of a split are missing or damaged.
    """
    dataset, _, config = name.partition("/")
    make = functools.partial(_builder, dataset, config, data_dir, folder, check)
    download = tfds.download.DownloadConfig(manual_dir=folder)
    builder, _ = prepare(make, folder, BUILDERS[dataset].SOURCES, download_config=download)
    corpus = read_corpus(builder, name)
    corpus = dataclasses.replace(corpus, made_of=(builder.info.metadata.get("sources") or {}).get("checksum", ""))
    warn_of_left_out(corpus)
    return corpus


def _builder(
    dataset: str, config: str, data_dir: Path | str | None, folder: Path | str | None, check: Check | None
) -> _Captions:
    """Makes a builder, after checking that its data set exists or can be prepared."""
    options = {"folder": folder} if dataset == Stamps.name else {}
    builder = BUILDERS[dataset](config=config or None, data_dir=data_dir, file_format=FILE_FORMAT, **options)
    builder.check = check
    layout = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if builder.info.initialized or not layout:
        return builder
    if folder is None or not Path(folder).is_dir() or not any(Path(folder).iterdir()):
        name = f"{dataset}/{config}" if config else dataset
        raise FileNotFoundError(f"{name} needs a folder with its files, got {folder and str(folder)!r}\n{layout}")
    return builder
