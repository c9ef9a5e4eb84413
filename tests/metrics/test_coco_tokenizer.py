"""coco-caption's words: the Java program's on the same lines (tests/golden/make_captions.py), and what a file does."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets
from mcl_jax.metrics.coco_tokenizer import tokenize

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captions.json").read_text(encoding="utf-8"))


def test_words_are_the_java_programs():
    assert len(GOLDEN["lines"]) > 130
    for line, ours, expected in zip(GOLDEN["lines"], tokenize(GOLDEN["lines"]), GOLDEN["tokenized"], strict=True):
        assert ours == expected, line


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A red, red rose.", "a red red rose"),
        ("It isn't the dog's (old) bone; they cannot!", "it is n't the dog 's -lrb- old -rrb- bone they can not"),
        ("“Don’t” – it’s 5€…", "do n't it 's 5 $"),
        ("Mr. Fox and No. 5 at 10 p.m., no. Really", "mr. fox and no. 5 at 10 p.m. no really"),
        ("a 1,000-year-old jack-o-lantern", "a 1,000-year-old jack-o-lantern"),
        ("call (555) 555-1234", "call -lrb-555-rrb-\u00a0555-1234"),
        ("L'été à la Côte d'Azur", "l'été à la côte d'azur"),
        ("a🙂b\u200bc", "a b c"),
        ("? ! .,:; -- ... '\" “”", ""),
        ("Stop!! Really?! Yes!", "stop !! really ?! yes"),
        ("", ""),
    ],
)
def test_words_by_hand(caption, words):
    assert tokenize([caption]) == [words]


def test_what_follows_a_single_letter_may_be_in_a_later_line():
    """The Java program's doing: published numbers have it."""
    assert tokenize(["Vitamin C. The rest", "Vitamin C. Vitamin D."]) == ["vitamin c the rest", "vitamin c. vitamin d."]
    assert tokenize(["The letter A.", "The letter B."]) == ["the letter a", "the letter b."]
    assert tokenize(["The letter A.", "", "The letter B.", "x"]) == ["the letter a", "", "the letter b.", "x"]


def test_one_caption_is_one_line():
    assert tokenize(["a\nb\r\nc\u2028d\x85e", "f"]) == ["a b c d e", "f"]
    assert tokenize(["", "", "a", ""]) == ["", "", "a", ""]
    assert tokenize([]) == []


def test_fast_path_gives_what_all_rules_give(monkeypatch):
    words = tokenize(GOLDEN["lines"])
    monkeypatch.setattr("mcl_jax.metrics.coco_tokenizer.PLAIN", re.compile("(?!)"))
    assert tokenize(GOLDEN["lines"]) == words


@pytest.mark.slow
def test_words_are_the_java_programs_live(stamps_folder):
    """On the golden's lines in another order and on the captions of all stamps."""
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="needs pycocoevalcap")
    if not shutil.which("java"):
        pytest.skip("needs java")
    lines = [*np.random.default_rng(5).permutation(GOLDEN["lines"]), *_captions(stamps_folder)]
    java = module.PTBTokenizer().tokenize({n: [{"caption": line}] for n, line in enumerate(lines)})
    for n, (line, ours) in enumerate(zip(lines, tokenize(lines), strict=True)):
        assert ours == java[n][0], line


def _captions(folder: Path) -> list[str]:
    """Those in the languages of `datasets.LANGUAGES`, and Russian ones."""
    captions, languages = [], (*datasets.LANGUAGES, "ru")
    for path in sorted(folder.rglob("*.txt")):
        first, *others = path.read_text(encoding="utf-8").splitlines()
        captions += [first, *(line.split("=", 1)[1] for line in others if line.split(".")[0] in languages)]
    return [caption for caption in captions if caption.strip()]
