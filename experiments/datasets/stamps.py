"""Tux Paint's stamps: small images and sounds with a short caption in many languages.

    pictures   785 PNG stamps
    spoken     7,405 clips in 14 languages, in which a stamp's caption is read aloud; two more are truncated
    sounds     111 clips with the sound of the thing on the stamp

All three are captioned in the 12 languages of `LANGUAGES`, which are the modes. A clip of a caption read in Russian is
also captioned in English, French and so on, so the language of the clip does not reveal the language of the answer.

They are in the Debian package tuxpaint-stamps-default (GPL-2, 161 MB), with this layout:

    animals/birds/owl.txt            UTF-8: the English caption, then lines such as "fr.utf8=Un hibou."
    animals/birds/owl.png            167 stamps have only a drawing (SVG) and are left out
    animals/birds/owl_desc_fr.ogg    the caption read in French; without a language, in English
    animals/birds/owl.ogg            the sound of the thing

Notes on the data:

  * The English caption decides the split, since several stamps may share a caption (952 stamps have 775 captions).
  * The 249 stamps in symbols/ are letters, digits, coins, notes and the like, in families that look and read nearly the
    same; `without_families` removes them from a corpus, or from the items that are reported.
  * 14 French and 11 Spanish captions translate several English ones (un lapin: a rabbit, a bunny), so they may be in
    two splits. "Six." and "Plus." are both English and French.
  * Sounds in symbols/alphabets and symbols/math name the letter or digit and are left out.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.datasets.debian import fetch_package
from mcl_jax.data.media import Clip, Media, Picture
from mcl_jax.data.records import Corpus, Record, Target, describe_unknown, printable, split_of

KINDS = ("pictures", "spoken", "sounds")
LANGUAGES = ("en", "fr", "es", "de", "it", "pt", "nl", "ca", "gl", "ro", "da", "sv")  # 919 to 952 stamps have each
PACKAGE, CONTENTS = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
VALIDATION, TEST = 0.1, 0.15  # shares of the captions

TRANSLATION = re.compile(r"(\w+)\.utf8=(.*)")
SPOKEN = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?))?(?:\.ogg)?")
NAMED_ALOUD = ("symbols/alphabets/", "symbols/math/")
FAMILIES = "symbols/"


class Stamp(NamedTuple):
    """A stamp: its path in the folder without the ending, and its captions by language."""

    name: str
    captions: dict[str, str]

    @property
    def split(self) -> str:
        """Split of its English caption; case and punctuation do not matter."""
        return split_of("stamps " + " ".join(re.findall(r"\w+", self.captions["en"].casefold())), VALIDATION, TEST)


def fetch_stamps(cache_dir: Path | str) -> Path:
    """Fetches the Debian package into the cache, and returns its folder of stamps; see `fetch_package`."""
    return fetch_package(PACKAGE, cache_dir, CONTENTS, "folder")


def read_stamps(folder: Path | str, kind: Literal["pictures", "spoken", "sounds"]) -> Corpus:
    """Reads the stamps in a folder, one record per image or clip.

    Args:
      folder: a folder with the layout of the package or of Tux Paint, see the top of this file.
      kind: one of `KINDS`.
    Returns:
      The corpus "stamps/KIND": ids are paths in the folder without the ending, modes are `LANGUAGES`; files are read
      when needed. `left_out` has stamps without an English caption or a PNG, and clips without a stamp.
    Raises:
      ValueError: if the kind is unknown.
      FileNotFoundError: if there are no stamps; says what is needed.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of stamps {describe_unknown(kind, KINDS)}")
    folder = Path(folder)
    left_out: list[tuple[str, str]] = []
    stamps = {stamp.name: stamp for stamp in _stamps(folder, left_out)}
    if not stamps:
        raise FileNotFoundError(
            f"{folder} must hold NAME.txt and NAME.png of each stamp, like {CONTENTS} of the package {PACKAGE}, but it "
            "has no stamps"
        )
    captioned = _pictures(folder, stamps, left_out) if kind == "pictures" else _clips(folder, stamps, kind, left_out)
    records = (
        Record(name, "", tuple(Target(text, mode) for mode, text in stamp.captions.items()), (), stamp.split, media)
        for name, stamp, media in captioned
    )
    return Corpus(f"stamps/{kind}", tuple(records), tuple(left_out))


def in_family(record: Record) -> bool:
    """Whether a record belongs to the 249 stamps in families that look and read nearly the same."""
    return record.id.startswith(FAMILIES)


def without_families(corpus: Corpus) -> Corpus:
    """Removes those families from a corpus of stamps."""
    return dataclasses.replace(corpus, records=tuple(r for r in corpus.records if not in_family(r)))


def of_languages(corpus: Corpus, languages: Sequence[str]) -> Corpus:
    """Keeps the clips of a corpus "stamps/spoken" in which one of these languages is spoken.

    Raises:
      ValueError: if the corpus is another one, or no clip is in one of the languages.
    """
    heard = {spoken_language(record) for record in corpus.records}
    if unknown := sorted(set(languages) - heard):
        raise ValueError(f"--spoken must be languages of the clips of stamps/spoken, got {unknown} for {corpus.name}")
    records = tuple(record for record in corpus.records if spoken_language(record) in languages)
    return dataclasses.replace(corpus, records=records)


def spoken_language(record: Record) -> str:
    """Returns the spoken language of a record of "spoken", such as "ru"."""
    return record.id.rpartition("_desc_")[2]


def _stamps(folder: Path, left_out: list[tuple[str, str]]) -> Iterator[Stamp]:
    for path in sorted(folder.rglob("*.txt")):
        name = _name(path, folder)
        if not (folder / f"{name}.txt").exists():
            left_out.append((name, "a file name that is not UTF-8"))
            continue
        try:
            first, *others = path.read_text(encoding="utf-8-sig").splitlines() or [""]
        except UnicodeDecodeError:
            left_out.append((name, "captions that are not UTF-8"))
            continue
        texts = {"en": first} | {m[1]: m[2] for line in others if (m := TRANSLATION.fullmatch(line.strip()))}
        captions = {language: " ".join(texts.get(language, "").split()) for language in LANGUAGES}
        if captions["en"]:
            yield Stamp(name, {language: text for language, text in captions.items() if text})
        else:
            left_out.append((name, "no English caption"))


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder).with_suffix("").as_posix())


Captioned = Iterator[tuple[str, Stamp, Media]]  # a record's id, its stamp, and the image or clip


def _pictures(folder: Path, stamps: dict[str, Stamp], left_out: list[tuple[str, str]]) -> Captioned:
    for name, stamp in stamps.items():
        path = folder / f"{name}.png"
        if path.exists():
            yield name, stamp, Picture(f"{name}.png", path.read_bytes)
        else:
            left_out.append((name, "no PNG, only a drawing (SVG)"))


def _clips(folder: Path, stamps: dict[str, Stamp], kind: str, left_out: list[tuple[str, str]]) -> Captioned:
    for path in sorted([*folder.rglob("*.ogg"), *folder.rglob("*.wav")]):
        name = _name(path, folder)
        spoken = SPOKEN.fullmatch(name)
        if bool(spoken) != (kind == "spoken"):
            continue
        stamp = spoken["stamp"] if spoken else name
        if not spoken and name.startswith(NAMED_ALOUD):
            left_out.append((name, "a spoken letter or digit"))
        elif stamp not in stamps:
            left_out.append((name, "no stamp of this name"))
        else:
            key = f"{stamp}_desc_{spoken['language'] or 'en'}" if spoken else name
            yield key, stamps[stamp], Clip(path.relative_to(folder).as_posix(), path.read_bytes)
