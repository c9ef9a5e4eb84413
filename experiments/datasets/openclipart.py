"""Openclipart's drawings with their titles: what a projector learns to see, besides the classes of ImageNet.

They are in the Debian packages openclipart-svg (titles, in the metadata of each drawing) and openclipart-png (pixels),
both in the public domain, 25 and 131 MB. Two thirds of the 8,121 drawings are icons, flags, signs and patterns, whose
folders are left out. Anyone who drew chose a title. Titles that more than `MOST` drawings share name a collection, and
those of more than `WORDS` words say more than a caption does, so both are left out.
"""

import collections
import html
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.datasets.debian import fetch_package
from mcl_jax.data.media import Picture
from mcl_jax.data.records import Corpus, Record, Target

PIXELS, TITLES = ("openclipart-png", "usr/share/openclipart/png"), ("openclipart-svg", "usr/share/openclipart/svg")
SHOWN = "animals buildings containers education electronics food office people plants recreation tools transportation"
LEFT_OUT = ("roadsigns", "aiga-symbols", "cards", "smilies", "chess")  # folders of signs within those
MOST, WORDS, PIXELS_MOST = 4, 5, 4_000_000
WORK, TITLE = re.compile(r"<cc:Work.*?</cc:Work>", re.DOTALL), re.compile(r"<dc:title>(.*?)</dc:title>", re.DOTALL)


def fetch_openclipart(cache_dir: Path | str) -> tuple[Path, Path]:
    """Fetches both Debian packages into the cache, and returns their folders of pixels and of titles.

    Raises:
      RuntimeError: if they cannot be fetched, see `fetch_package`.
    """
    fetch = lambda package, contents: fetch_package(package, cache_dir, contents, "a folder of the cache")
    return fetch(*PIXELS), fetch(*TITLES)


def read_openclipart(pixels: Path | str, titles: Path | str) -> Corpus:
    """Reads the drawings that show a thing, all of them for training.

    Args:
      pixels: folder of NAME.png.
      titles: folder of NAME.svg with the same names.
    Returns:
      The corpus "openclipart", with one English caption for each drawing.
    Raises:
      FileNotFoundError: if there are no drawings with a title and pixels.
    """
    pixels, titled = Path(pixels), list(_titled(Path(titles)))
    shared = collections.Counter(title for _, title in titled)
    records = tuple(
        Record(name, "", (Target(caption(title), "en"),), (), "train", Picture(f"{name}.png", file.read_bytes))
        for name, title in titled
        for file in [pixels / f"{name}.png"]
        if shared[title] <= MOST and file.is_file() and _is_small(file)
    )
    if not records:
        raise FileNotFoundError(f"{titles} must hold NAME.svg with titles, and {pixels} NAME.png, but they have none")
    return Corpus("openclipart", records)


def _is_small(file: Path) -> bool:
    """Whether a PNG has at most `PIXELS_MOST` pixels by its header; a few have 169 million."""
    with open(file, "rb") as stream:
        header = stream.read(24)
    return int.from_bytes(header[16:20], "big") * int.from_bytes(header[20:24], "big") <= PIXELS_MOST


def _titled(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the name and the title of each drawing that has a short one."""
    for file in sorted(folder.rglob("*.svg")):
        name = file.relative_to(folder).with_suffix("").as_posix()
        top, *inner = name.split("/")
        if top in SHOWN.split() and not set(inner) & set(LEFT_OUT):
            words = _title(file).split()
            if 0 < len(words) <= WORDS:
                yield name, " ".join(words)


def _title(file: Path) -> str:
    """Returns the words of a drawing's title in lower case, without numbers; "" if it has none."""
    work = WORK.search(file.read_text(encoding="utf-8", errors="replace"))
    title = TITLE.search(work[0]) if work else None
    words = re.sub(r"[_\-]+", " ", html.unescape(title[1]) if title else "")
    return " ".join(re.findall(r"[^\W\d]{2,}|\ba\b", re.sub(r"\(.*?\)|\.svg\b", " ", words))).lower()


def caption(noun: str) -> str:
    """Returns "A noun.", "An noun." or, for a plural, "Nouns."."""
    noun = re.sub(r"^(an?|the) (?=\w)", "", noun)
    plural = noun.endswith("s") and not noun.endswith("ss")
    article = "" if plural else "an " if noun[0].lower() in "aeiou" else "a "
    return (article + noun)[0].upper() + (article + noun)[1:] + "."
