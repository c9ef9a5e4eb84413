"""Messages of programs, from catalogues that gettext reads too; the real ones where the packages can be had."""

import gettext
import struct
import subprocess

import pytest

from experiments.datasets.messages import MAGIC, PROGRAMS, read_catalogue, read_messages
from mcl_jax.data.records import split_of

HEADER = "Content-Type: text/plain; charset=UTF-8\n"


def write(path, messages):
    """Writes a compiled catalogue; its texts lie in another order than its tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = sorted((a.encode(), b.encode()) for a, b in ({"": HEADER} | messages).items())
    texts, places, start = b"", {}, 28 + 16 * len(pairs)
    for column in (1, 0):
        for row, pair in enumerate(pairs):
            places[row, column] = (len(pair[column]), start + len(texts))
            texts += pair[column] + b"\0"
    tables = [places[row, column] for column in (0, 1) for row in range(len(pairs))]
    numbers = [number for pair in tables for number in pair]
    head = struct.pack("<7I", MAGIC, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 28 + 16 * len(pairs))
    path.write_bytes(head + struct.pack(f"<{len(numbers)}I", *numbers) + texts)


def locales(folder, texts):
    """Writes catalogues of both programs; texts are in English, German, Spanish and French."""
    for program in PROGRAMS:
        for column, lang in enumerate(("de", "es", "fr"), 1):
            of = {row[0]: row[column] for row in texts.get(program, []) if row[column]}
            write(folder / lang / "LC_MESSAGES" / f"{program}.mo", of)
    return folder


def test_catalogues_are_read_as_gettext_reads_them(tmp_path):
    messages = {
        "no such file\n": "keine Datei\n",
        "%s: größer": "%s: ça\xa0!",
        "one\0many": "ein\0viele",
        "kept": "blieb",
    }
    write(tmp_path / "x.mo", messages)
    with (tmp_path / "x.mo").open("rb") as file:
        known = gettext.GNUTranslations(file)
    found = read_catalogue(tmp_path / "x.mo")
    assert found == {"no such file": "keine Datei", "%s: größer": "%s: ça\xa0!", "kept": "blieb"}  # no plural forms
    assert known.gettext("no such file\n").strip() == found["no such file"] and known.gettext("kept") == found["kept"]


def test_messages_with_three_translations_are_kept(tmp_path):
    git = [
        ("cannot open %s", "kann %s nicht öffnen", "no puede abrir %s", "impossible d'ouvrir %s\xa0:"),
        ("only in German, yes", "nur auf Deutsch, ja", "", ""),
        ("two words", "zwei Wörter", "dos palabras", "deux mots"),
        ("the same in all", "the same in all", "lo mismo en todos", "pareil en tout"),
        ("line one\nline two", "Zeile eins\nZeile zwei", "a\nb", "c\nd"),
        ("word " * 26, "Wort " * 26, "palabra " * 26, "mot " * 26),
    ]
    other = [("out of memory here\n", "kein Speicher hier\n", "sin memoria aquí\n", "pas de mémoire ici\n")]
    corpus = read_messages(tmp_path / "unused", locales(tmp_path, {"git": git, "coreutils": other}))
    assert corpus.modes == ("de", "es", "fr")
    assert {record.source: [target.text for target in record.targets] for record in corpus.records} == {
        "cannot open %s": ["kann %s nicht öffnen", "no puede abrir %s", "impossible d'ouvrir %s\xa0:"],
        "out of memory here": ["kein Speicher hier", "sin memoria aquí", "pas de mémoire ici"],
    }
    assert corpus.records[0].split == split_of("messages cannot open %s")


def test_missing_and_wrong_catalogues_are_named(tmp_path):
    locales(tmp_path, {})
    file = tmp_path / "es" / "LC_MESSAGES" / "git.mo"
    file.write_bytes(struct.pack(">7I", MAGIC, *[0] * 6))
    with pytest.raises(ValueError, match=r"git.mo is no catalogue of GNU gettext"):
        read_messages(tmp_path, tmp_path)
    file.write_bytes(struct.pack("<7I", MAGIC, 0, 2**31, 28, 28, 0, 0))
    with pytest.raises(ValueError, match=r"git.mo is damaged: its tables must end within its 28 bytes"):
        read_messages(tmp_path, tmp_path)
    one = lambda text, length: struct.pack("<7I4I", MAGIC, 0, 1, 28, 28, 0, 0, length, 36, 0, 0)[:36] + text
    file.write_bytes(one(b"ab\0", 99))
    with pytest.raises(ValueError, match=r"git.mo is damaged: no text of 99 bytes begins at byte 36"):
        read_messages(tmp_path, tmp_path)
    file.write_bytes(one(b"\xff\xff\0", 2))
    with pytest.raises(ValueError, match=r"git.mo must hold texts in UTF-8"):
        read_messages(tmp_path, tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"--locale-dir must hold es/LC_MESSAGES/git.mo"):
        read_messages(tmp_path, tmp_path)


@pytest.mark.slow
def test_the_real_ones(tmp_path):
    if subprocess.run(["apt-get", "download", "--print-uris", *PROGRAMS], capture_output=True).returncode:
        pytest.skip("there are no Debian packages")
    counts = read_messages(tmp_path).counts()  # which grow with the versions of the programs
    assert counts["train"] > 4000 and min(counts.values()) > 150
