"""The data sets of the experiments, by name.

Reading order: `features` and `sources` (shared by all); texts from `debian`, `sword`, `verses`, `verses_builder` and
`wmt`; captions from `stamps` (and `stamp_kinds`), and from `textcaps`, `audiocaps` and `clotho` (over `published`);
`captions_builder`; `loading` loads any of them by name. `language_id` identifies the language or style of a text.
"""

from experiments.datasets.captions_builder import CAPTIONS, AudioCaps, Clotho, Stamps, TextCaps
from experiments.datasets.language_id import caption_language, is_archaic, language_of
from experiments.datasets.loading import load_captions, load_corpus
from experiments.datasets.stamps import LANGUAGES, in_family, read_stamps, spoken_language, without_families
from experiments.datasets.verses import Verse, read_verses, to_corpus
from experiments.datasets.verses_builder import Verses, load_verses
from experiments.datasets.wmt import load_wmt, read_wmt

__all__ = [
    "CAPTIONS",
    "LANGUAGES",
    "AudioCaps",
    "Clotho",
    "Stamps",
    "TextCaps",
    "Verse",
    "Verses",
    "caption_language",
    "in_family",
    "is_archaic",
    "language_of",
    "load_captions",
    "load_corpus",
    "load_verses",
    "load_wmt",
    "read_stamps",
    "read_verses",
    "read_wmt",
    "spoken_language",
    "to_corpus",
    "without_families",
]
