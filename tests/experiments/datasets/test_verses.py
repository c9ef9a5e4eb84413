"""Verses: markup, alignment, splits; the real ones where the packages can be had."""

import re
import subprocess
from collections import Counter

import fake_sword
import pytest

from experiments.datasets import Verse, is_archaic, language_of, read_verses, sword, to_corpus
from experiments.datasets.verses import align
from mcl_jax.data import Target, split_of


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('<w lemma="strong:G1">In</w> <w>the</w> <seg type="nested">be</seg>ginning', "In the beginning"),
        ('God<note type="study">Heb. <hi>x</hi></note> said', "God said"),
        ('God<note n="1"/> said', "God said"),
        ('God <note n="1"/>said<note>no</note>.', "God said."),
        ("<title>Psalm</title><title type='x'>A song</title>Blessed", "Blessed"),
        ("one<lb/>two<l>three</l><l>four</l>", "one two three four"),
        ('the <divineName>Lord</divineName>\'s <w src="1"></w>day', "the Lord's day"),
        ("  a\n b\t\u00a0c  , d ;", "a b c, d;"),
        ("¶ Tom &amp; &#225;", "Tom & á"),
        ('<q marker="“" who="Jesus">Come', "Come"),
        ("Christ,<note>or <rdg>x</rdg></note><w>the</w> Son", "Christ, the Son"),
        ('Amen. <chapter eID="Rev.22"/> <div type="glossary"/>Abba is', "Amen."),
        ("<w>la</w><transChange>que</transChange><w>es</w>", "la que es"),
        ("<w>oyéndo</w><transChange>lo</transChange> <w>y</w><transChange>los</transChange> dos", "oyéndolo y los dos"),
        ("<w>tear</w>s <q>went.”</q><w>Then</w>", "tears went.” Then"),
        ("said:<note>x</note>“Come”<note>y</note>.", "said: “Come”."),
        ("", ""),
    ],
)
def test_markup_is_taken_out_without_gluing_words(raw, text):
    assert sword.strip_markup(raw) == text


def test_alignment_drops_chapters_numbered_differently_and_missing_verses(monkeypatch, tmp_path, says):
    read = fake_sword.install(monkeypatch)
    with says(r"kept 18; .* differently \(Rom 16\) .* \(1\)"):
        aligned = read_verses(tmp_path)
    assert sorted(read) == ["engKJV2006eb", "engWEB2015eb", "spaRV1909eb"]
    assert aligned.dropped_chapters == ("Rom 16",) and aligned.dropped_verses == 1
    assert Counter((v.book, v.chapter) for v in aligned.verses) == {
        **{("Matt", c): 2 for c in range(1, 9)},
        ("Luke", 17): 2,
    }
    assert aligned.verses[0] == Verse(
        "Matt", 1, 1, "And he saith unto them 1,", "He said to them 1,", "Y les dijo — 1,"
    )
    assert [v.verse for v in aligned.verses if v.book == "Luke"] == [1, 3]
    assert read_verses(tmp_path) == aligned and len(read) == 3  # from the cache


def test_verses_of_very_different_lengths_do_not_correspond():
    place = sword.Place("nt", "Rom", 14, 1)
    texts = {"kjv": "a" * 100, "web": "b" * 200, "spanish": "c" * 110}
    assert len(align({name: {place: text} for name, text in texts.items()}).verses) == 1
    texts["web"] += "b"
    aligned = align({name: {place: text} for name, text in texts.items()})
    assert aligned.verses == () and aligned.dropped_verses == 1 and aligned.dropped_chapters == ()


def test_tasks(monkeypatch, tmp_path):
    fake_sword.install(monkeypatch)
    verses = read_verses(tmp_path).verses
    far, near = to_corpus(verses, "languages"), to_corpus(verses, "styles")
    record = next(r for r in far.records if r.id == "Matt 2:2")
    assert record.source == "Blessed are ye 2." and record.split == split_of("verses Matt 2")
    assert record.targets == (Target("Bienaventurados sois 2.", "es"), Target("Blessed are you 2.", "en"))
    record = next(r for r in near.records if r.id == "Matt 2:2")
    assert record.source == "Bienaventurados sois 2."
    assert record.targets == (Target("Blessed are ye 2.", "archaic"), Target("Blessed are you 2.", "modern"))
    with pytest.raises(ValueError, match="task must be one of .* did you mean 'styles'"):
        to_corpus(verses, "style")


def test_chapters_are_never_split(monkeypatch, tmp_path):
    fake_sword.install(monkeypatch, chapters=60)
    records = to_corpus(read_verses(tmp_path).verses).records
    splits = {}
    for record in records:
        splits.setdefault(record.id.split(":")[0], set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_unknown_testament_and_folder(tmp_path):
    with pytest.raises(ValueError, match="testament must be one of .'new', 'whole'., got 'old'"):
        read_verses(tmp_path, testament="old")
    with pytest.raises(FileNotFoundError, match="must hold mods.d and modules"):
        read_verses(tmp_path, sword_dir=tmp_path / "nowhere")
    (tmp_path / "mods.d").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold the module 'engKJV2006eb', got"):
        read_verses(tmp_path, sword_dir=tmp_path)


def test_package_that_cannot_be_had_tells_the_command(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(RuntimeError, match=r"(?s)Unable to locate.*`apt-get download sword-text-kjv && dpkg -x"):
        sword.fetch_module("sword-text-kjv", tmp_path)


def test_without_apt_the_error_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"(?s)apt-get.*pass FOLDER/usr/share/sword as sword_dir"):
        sword.fetch_module("sword-text-kjv", tmp_path)


def test_fetched_package_is_kept(monkeypatch, tmp_path):
    commands = []

    def run(command, cwd, **options):
        commands.append(command[0])
        if command[0] == "apt-get":
            (cwd / "sword-text-kjv_1_all.deb").write_bytes(b"")
        else:
            (cwd / "usr" / "share" / "sword" / "mods.d").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert (sword.fetch_module("sword-text-kjv", tmp_path) / "mods.d").is_dir()
    assert commands == ["apt-get", "dpkg"] and [p.name for p in tmp_path.iterdir()] == ["sword-text-kjv"]


@pytest.mark.parametrize(
    ("text", "archaic"),
    [
        ("And he saith to them", True),
        ("Go ye therefore", True),
        ("He that believeth", True),
        ("UNTO Adam", True),
        ("Jesus of Nazareth said to Elizabeth", False),
        ("the sixtieth, with gnashing of teeth", False),
        ("You shall not steal.", False),
        ("", False),
    ],
)
def test_archaic_words(text, archaic):
    assert is_archaic(text) is archaic


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("En el principio era el Verbo", "es"),
        ("In the beginning was the Word", "en"),
        ("Jesús lloró.", "es"),
        ("Jesus wept.", "en"),
        ("Y Salomón engendró á Roboam", "es"),
        ("David became the father of Solomon", "en"),
        ("", "en"),
    ],
)
def test_language(text, language):
    assert language_of(text) == language


@pytest.mark.slow
def test_real_verses(tmp_path):
    """Needs the Debian packages or a network; about 5 s."""
    try:
        aligned = read_verses(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    verses = aligned.verses
    assert len(verses) == 7860 and aligned.dropped_chapters == ("Acts 19", "Rom 16", "2Cor 13")
    assert aligned.dropped_verses == 15
    counts = to_corpus(verses).counts()
    assert 0.04 < counts["test"] / len(verses) < 0.06 and 0.04 < counts["validation"] / len(verses) < 0.06
    everything = " ".join(text for v in verses for text in (v.kjv, v.web, v.spanish))
    assert not re.search(r"[<>\0¶]|&\w+;|  |[a-záéíóú][A-Z]|[,;:?!.”][^\W\d_]|Glossary", everything)
    rate = lambda rule, texts: sum(map(rule, texts)) / len(verses)
    assert 0.5 < rate(is_archaic, (v.kjv for v in verses)) < 0.6 and rate(is_archaic, (v.web for v in verses)) < 0.005
    for name, language in (("kjv", "en"), ("web", "en"), ("spanish", "es")):
        assert rate(lambda text: language_of(text) == language, (getattr(v, name) for v in verses)) > 0.999  # noqa: B023
