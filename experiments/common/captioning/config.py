"""What a captioning run is made of besides its method: data, modes, base."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from experiments.common import config
from mcl_jax.json_io import check_unicode


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    """K hypotheses of a language model that sees or hears."""

    data: str = "stamps/pictures"
    """A data set by name (stamps/pictures, stamps/spoken, stamps/sounds, textcaps/english, textcaps/bilingual,
    audiocaps, clotho), or a folder of your own with captions.jsonl."""
    folder: Path | None = None
    """The files that a named data set is made of; it is made again when they change. By default the stamps are fetched
    (Debian's package), and a data set that was made before is taken as it is."""
    modes: tuple[str, ...] | None = None
    """Captions of these modes alone; by default en fr of the stamps, and all of other data."""
    mode_weights: tuple[int, ...] = ()
    """How often a training caption of each of --modes is drawn, such as 9 1; equally often by default."""
    families: bool = False
    """Keep the 249 stamps (letters, digits, coins) that come in families which look and read nearly the same: modes of
    their own beside the languages."""
    prompt: str = ""
    """What the model is asked: a text with the base's placeholder once; the caption follows it directly. The small base
    is asked for a caption of the first of --modes."""
    base: Path | None = None
    """Base model: a Hugging Face folder. By default a small one of the same family, which is trained first, on the
    training captions of all modes, each asked for by its mode, and kept in --cache."""
    base_steps: int = 600
    """Training steps of the small base, of batch 32."""
    cache: Path = Path("runs/cache")
    """Where data sets and the small base are kept."""
    cache_features: bool = True
    """Keep what the tower makes of every picture or clip in memory: it is run once, not in every epoch."""
    corenlp: Path | None = None
    """Folder with the jars of CoreNLP 3.6.0, for SPICE and SPIDEr; they need Java and pycocoevalcap too."""

    COUNTS: ClassVar[tuple[str, ...]] = (*config.Config.COUNTS, "base_steps")
    VOLATILE: ClassVar[tuple[str, ...]] = (*config.Config.VOLATILE, "cache", "folder", "cache_features", "corenlp")

    def __post_init__(self):
        super().__post_init__()
        check_unicode(self.prompt, "--prompt")
        if self.mode_weights and len(self.mode_weights) != len(self.kept_modes):
            raise ValueError(
                f"--mode-weights needs a number for each of --modes {self.kept_modes}, got {self.mode_weights}"
            )
        if any(weight < 1 for weight in self.mode_weights):
            raise ValueError(f"--mode-weights must be 1 or more, got {self.mode_weights}")

    @property
    def kept_modes(self) -> tuple[str, ...]:
        """Of `modes`, or those of the data set by default; all if empty."""
        if self.modes is not None:
            return self.modes
        return ("en", "fr") if self.data.startswith("stamps/") else ()
