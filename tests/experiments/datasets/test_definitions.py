"""Words that are noun and verb, from files in WordNet's layout; the real ones where the package can be had."""

import subprocess

import pytest

from experiments.datasets.definitions import PACKAGE, read_definitions, read_words
from mcl_jax.data import Target
from mcl_jax.data.records import split_of

LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n"
NOUNS = {
    "fish": "any of various cold-blooded animals; usually with scales; \"the shark is a large fish\"; 'and'",
    "number": "a quantity",
    "sea_fish": "a fish of the sea",
    "zest": "vigorous enjoyment",
}
VERBS = {
    "fish": 'seek indirectly; "fish for compliments"',
    "number": "add up",
    "sea_fish": "go to sea",
    "zest": "add zest to",
}


def write(folder, part, glosses, tagged):
    """Writes an index and its data, with two senses per word, of which the second is never the first."""
    data, index = LICENCE.encode(), LICENCE
    for word, gloss in glosses.items():
        places = []
        for text in (gloss, "a rare sense"):
            places.append(len(data))
            data += f"{len(data):08d} 05 n 01 {word} 0 001 @ 00001740 n 0000 | {text}  \n".encode()
        index += f"{word} {part[0]} 2 2 @ ~ 2 {tagged.get(word, 1)} {places[0]:08d} {places[1]:08d}  \n"
    (folder / f"data.{part}").write_bytes(data)
    (folder / f"index.{part}").write_text(index, "utf-8")


def test_words_that_are_both_have_two_definitions(tmp_path):
    write(tmp_path, "noun", NOUNS, {})
    write(tmp_path, "verb", VERBS, {"zest": 0})
    corpus = read_definitions(tmp_path / "unused", tmp_path)
    assert corpus.modes == ("noun", "verb")
    assert [record.source for record in corpus.records] == ["fish", "number"]  # zest is rare as a verb
    fish = corpus.records[0]
    assert fish.targets == (
        Target("any of various cold-blooded animals; usually with scales", "noun"),
        Target("seek indirectly", "verb"),
    )
    assert fish.split == split_of("definitions fish")


def test_words_that_are_one_or_both(tmp_path):
    """Two words are both. Two nouns and one verb are no other part: the verb is taken, and one of the nouns."""
    write(tmp_path, "noun", NOUNS | {"vigour": "strength"}, {})
    write(tmp_path, "verb", VERBS | {"sing": "make music"}, {"zest": 0})
    corpus = read_words(tmp_path / "unused", tmp_path)
    modes = {record.source: tuple(target.mode for target in record.targets) for record in corpus.records}
    (noun,) = modes.keys() - {"fish", "number", "sing"}
    assert noun in ("vigour", "zest") and modes[noun] == ("noun",)
    assert modes["sing"] == ("verb",) and modes["fish"] == ("noun", "verb")
    (sing,) = (record for record in corpus.records if record.source == "sing")
    assert sing.targets == (Target("make music", "verb"),) and sing.split == split_of("definitions sing")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("index.noun", b"fish n 2 2", b"fish n 2 x", r"index\.noun, line 2, must be that of a word, got 'fish n 2 x"),
        ("index.noun", b"fish n 2 2", b"fish n 2 9", r"index\.noun, line 2, must be that of a word"),
        ("index.noun", b"fish", b"f\xffsh", r"index\.noun is not text in UTF-8"),
        ("data.verb", b"fish", b"whale", r"data\.verb must have a line of a sense at byte \d+, but has none"),
        ("data.verb", b"seek", b"s\xff\xffk", r"data\.verb must have a line of a sense at byte \d+, but has none"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, old, new, message):
    write(tmp_path, "noun", NOUNS, {})
    write(tmp_path, "verb", VERBS, {})
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_definitions(tmp_path, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, "noun", NOUNS, {})
    with pytest.raises(FileNotFoundError, match=r"--wordnet-dir must hold .* lacks index.verb, data.verb"):
        read_definitions(tmp_path, tmp_path)


@pytest.mark.slow
def test_the_real_ones(tmp_path):
    if subprocess.run(["apt-get", "download", "--print-uris", PACKAGE], capture_output=True).returncode:
        pytest.skip("there is no Debian package")
    corpus = read_definitions(tmp_path)
    assert corpus.counts() == {"train": 1221, "validation": 84, "test": 63}
    words = read_words(tmp_path)
    modes = [target.mode for record in words.records for target in record.targets]
    assert len(words.records) == 1368 + 2 * 684 and modes.count("noun") == modes.count("verb") == 2052
    by_word = {record.source: record for record in corpus.records}
    assert by_word["surface"].targets[1] == Target("come to the surface", "verb")
    assert not any('"' in target.text for record in corpus.records for target in record.targets)
