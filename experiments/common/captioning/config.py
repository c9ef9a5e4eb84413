"""Configuration of the captioning experiments: data, base, and what both media have in common."""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from experiments.common import config, groups
from experiments.common.options import COUNT, NO_INFLUENCE, VOLATILE, Options
from mcl_jax.json_io import check_unicode


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Captions, and the pictures or clips that they describe."""

    name: Annotated[str, arg(name="data")] = "stamps/pictures"
    """A data set by name (stamps/pictures, stamps/spoken, stamps/sounds, textcaps/english, textcaps/bilingual,
    audiocaps, clotho), or a folder of your own with captions.jsonl."""
    folder: Path | None = field(default=None, metadata=VOLATILE | NO_INFLUENCE)
    """The files that a named data set is made of; it is made again when they change. By default the stamps are fetched
    (Debian's package), and a data set that was made before is taken as it is."""
    modes: tuple[str, ...] | None = None
    """Modes whose captions are used. By default en fr of the stamps, and all modes of other data."""
    mode_weights: tuple[int, ...] = ()
    """How often a training caption of each of --modes is drawn, such as 9 1. Equally often by default."""
    families: bool = False
    """Keep the 249 stamps (letters, digits, coins) that come in families which look and read nearly the same: modes of
    their own beside the languages."""
    prompt: str = ""
    """What the model is asked: a text with the base's placeholder once; the caption follows it directly. The small base
    is asked for a caption of the first of --modes."""
    cache: Path = field(default=Path("runs/cache"), metadata=VOLATILE | NO_INFLUENCE)
    """Folder for data sets and small bases that were made."""
    cache_features: bool = field(default=True, metadata=VOLATILE | NO_INFLUENCE)
    """Keep the tower's features of every picture or clip in memory, so that the tower runs once for each, and not in
    every epoch."""

    def check(self) -> None:
        super().check()
        check_unicode(self.prompt, "--prompt")
        if self.mode_weights and len(self.mode_weights) != len(self.kept_modes):
            raise ValueError(
                f"--mode-weights needs a number for each of --modes {self.kept_modes}, got {self.mode_weights}"
            )
        if any(weight < 1 for weight in self.mode_weights):
            raise ValueError(f"--mode-weights must be 1 or more, got {self.mode_weights}")

    @property
    def kept_modes(self) -> tuple[str, ...]:
        """The modes whose captions are used; all if empty."""
        if self.modes is not None:
            return self.modes
        return ("en", "fr") if self.name.startswith("stamps/") else ()


@dataclasses.dataclass(frozen=True)
class Base(groups.Base):
    """The frozen base model."""

    path: Annotated[Path | None, arg(name="base")] = None
    """Base model: a Hugging Face folder. By default a small model of the same family, which is trained first, on the
    training captions of all modes, each asked for by its mode, and kept in --cache."""
    base_steps: int = field(default=600, metadata=COUNT)
    """Training steps of the small base, with batches of 32."""


@dataclasses.dataclass(frozen=True)
class Evaluation(groups.Evaluation):
    """What is evaluated, and how often."""

    corenlp: Path | None = field(default=None, metadata=VOLATILE)
    """Folder with the jars of CoreNLP 3.6.0, for SPICE and SPIDEr; they need Java and pycocoevalcap too."""


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    """K hypotheses of a language model that sees or hears."""

    evaluation: Evaluation = Evaluation()
    data: Data = Data()
    base: Base = Base()
