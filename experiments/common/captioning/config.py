"""The configuration that both captioning experiments share."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import FlagCreatePairsOff, arg

from experiments.common import config, evaluation, groups
from experiments.common.decoders import Decoding
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from experiments.common.whisper_base import WHISPER_BASE, whisper_base
from mcl_jax.json_io import check_unicode


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Captions, and the pictures or clips that they describe."""

    NO_MESSAGE: ClassVar[str | None] = None  # prompt of the paper's presets, which holds what a chat template adds

    name: Annotated[str, arg(name="data")] = "stamps/pictures"
    """Name of a data set, or your own folder with captions.jsonl.
    Names: stamps/pictures, stamps/spoken, stamps/sounds, textcaps/english, textcaps/bilingual, audiocaps, clotho."""
    folder: Path | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Folder with the published files of a named data set. The data set is made again when they change.
    By default, the stamps are downloaded (Debian's package), and any data set in --cache is used."""
    modes: tuple[str, ...] | None = None
    """Modes whose captions are used. The default is en fr for the stamps, and all modes for other data. Stamps have
    languages, and also kind, the kind of thing in English ("A bird.")."""
    mode_weights: tuple[int, ...] = ()
    """How often to draw training captions of each of --modes, such as 9 1. The default is equally often."""
    spoken: tuple[str, ...] = ()
    """Use only the clips of stamps/spoken in these spoken languages, such as es fr. The default is all 14."""
    families: bool = False
    """Keep the 249 stamps (letters, digits, coins) of families that look and read nearly the same.
    Such families are modes in addition to the languages."""
    test_data: str | None = None
    """Another data set, whose test split is used instead, such as audiocaps for a model of clotho."""
    test_folder: Path | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """Folder with the published files of --test-data, as --folder is for --data."""
    prompt: str = ""
    """Prompt of the model, which the caption follows directly. It contains the placeholder of the base once.
    Whisper has no placeholder and takes a prompt such as <|startoftranscript|><|es|><|notimestamps|>.
    The default for the small base asks for a caption in the first of --modes."""
    chat: Annotated[bool, FlagCreatePairsOff] = False
    """Put the prompt into the chat template of the base, as the message of a user; the caption is the reply.
    The prompt needs no placeholder then: the picture or clip comes first. The default asks for a caption."""
    cache: Path = field(default=Path("runs/cache"), metadata=VOLATILE | NO_INFLUENCE)
    """Folder in which data sets and small bases are kept."""
    cache_features: bool = field(default=True, metadata=VOLATILE | NO_INFLUENCE)
    """Keep the features of all pictures or clips in memory, so that the tower does not run in every epoch."""

    def check(self) -> None:
        super().check()
        check_unicode(self.prompt, "--prompt")
        if self.chat and self.prompt == self.NO_MESSAGE:
            raise ValueError(
                "--chat needs a --prompt that is the message of a user alone, but that of the preset has what the chat "
                f"template adds: {self.prompt!r}"
            )
        if self.mode_weights and len(self.mode_weights) != len(self.kept_modes):
            raise ValueError(
                f"--mode-weights needs one number for each of --modes {self.kept_modes}, got {self.mode_weights}"
            )
        if any(weight < 1 for weight in self.mode_weights):
            raise ValueError(f"--mode-weights must be at least 1, got {self.mode_weights}")

    @property
    def kept_modes(self) -> tuple[str, ...]:
        """Modes whose captions are used; all of them if this is empty."""
        if self.modes is not None:
            return self.modes
        return ("en", "fr") if self.name.startswith("stamps/") else ()


@dataclasses.dataclass(frozen=True)
class Base(groups.Base):
    """The frozen base model."""

    path: Annotated[Path | None, arg(name="base")] = None
    """Base model: a Hugging Face folder, the model of image_captioning.base, or whisper-base for Whisper base from its
    Python packages. By default, a small model of the same family is trained first and kept in --cache.
    It learns the training captions of all modes; its prompt names the mode."""
    base_steps: int = field(default=600, metadata=COUNT)
    """Number of training steps of the small base, with batches of 32."""

    @property
    def folder(self) -> Path | None:
        """The folder of the base; None for a small one. Raises a ValueError if packages that hold it are missing."""
        return whisper_base() if self.path == Path(WHISPER_BASE) else self.path


@dataclasses.dataclass(frozen=True)
class Evaluation(evaluation.Evaluation):
    """Evaluation during and after the training."""

    retrieval_items: int = field(default=64, metadata=COUNT | VOLATILE)
    """Number of test captions in the score "retrieval": how often is the right one of 20 pictures or clips found?"""
    nearest_items: int = field(default=1000, metadata={"least": 0} | VOLATILE | NO_INFLUENCE)
    """Number of training pictures or clips among which the baseline "nearest" looks for those most like the one that is
    asked about, to copy their captions. 0 leaves it out."""
    corenlp: Path | None = field(default=None, metadata=VOLATILE)
    """Folder with the jars of CoreNLP 3.6.0, for SPICE and SPIDEr. These also need Java and pycocoevalcap."""

    @property
    def folders(self) -> dict[str, Path | None]:
        return super().folders | {"corenlp": self.corenlp}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    """Compares K hypotheses of a language model that sees or hears with one model."""

    evaluation: Evaluation = Evaluation()
    decoding: Decoding = field(default=Decoding(mle_decoders=("greedy", "beam", "diverse", "sampling")))
    data: Data = Data()
    base: Base = Base()

    def check(self) -> None:
        super().check()
        if self.training.pack:
            raise ValueError("--pack needs examples of text alone: a picture or a clip belongs to a whole row")
