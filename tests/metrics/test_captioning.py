"""Captioning metrics: pycocoevalcap's values (tests/golden/make_captions.py), worked examples, blank answers, Java."""

import json
import shutil
import stat
import sys
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets
from mcl_jax import metrics
from mcl_jax.metrics import Bootstrap, JavaMetricError, NotAvailable, java
from mcl_jax.metrics.__main__ import cli

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "captions.json").read_text(encoding="utf-8"))
ANSWERS, REFERENCES = GOLDEN["answers"], GOLDEN["references"]
BLANKS = ["", "  ", "\n", "...", "?"]
FEW = Bootstrap(resamples=7)


def captions(answers, references):
    return metrics.tokenize_captions(answers, references)


@pytest.fixture(scope="module")
def golden_captions():
    return captions(ANSWERS, REFERENCES)


@pytest.fixture(autouse=True)
def no_packages(monkeypatch):
    """As on a machine without weights and jars, whose loading takes seconds."""
    monkeypatch.setattr("mcl_jax.metrics.embedding.PACKAGE", "no-such-package-of-weights")
    monkeypatch.setattr("mcl_jax.metrics.java.PACKAGE", "no_such_package_of_jars")


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """A program `java`, first on the PATH, and a package with jars: fake_java(lines of Python) installs both."""

    def install(*lines):
        for name in (java.METEOR_JAR, java.SPICE_JAR, java.SPICE_LIBRARIES + "/any.jar"):
            path = tmp_path / "package_of_jars" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        program = tmp_path / "bin" / "java"
        program.parent.mkdir()
        program.write_text("\n".join([f"#!{sys.executable}", "import json, sys", *lines]) + "\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", str(program.parent))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("mcl_jax.metrics.java.PACKAGE", "package_of_jars")

    return install


@pytest.fixture
def corenlp(tmp_path):
    folder = tmp_path / "corenlp"
    folder.mkdir()
    for name in java.CORENLP_JARS:
        (folder / name).touch()
    return folder


# --- Parity -----------------------------------------------------------------------------------------------------------


def test_values_are_pycocoevalcaps(golden_captions):
    bleu = metrics.coco_bleu(golden_captions)
    values = {
        "bleu_1": bleu[0].per_answer(),
        "bleu_4": bleu[3].per_answer(),
        "rouge_l": metrics.rouge_l(golden_captions),
        "cider_d": metrics.cider_d(golden_captions),
    }
    for name, per_answer in values.items():
        expected = np.array(GOLDEN["per_answer"][name]).T
        np.testing.assert_allclose(np.array(per_answer), expected, rtol=0, atol=1e-6, err_msg=name)
        assert expected.std() > 0.1, name
    for n, name in ((0, "bleu_1"), (3, "bleu_4")):
        score = bleu[n].corpus_mean(FEW)
        assert score.mean == pytest.approx(np.mean(GOLDEN["corpus"][name]), abs=1e-6)


def test_meteor_is_the_jars(golden_captions, fake_java):
    """What the jar counted comes from the golden; formula, order and pooling are ours."""
    replies = {
        " ||| ".join(["SCORE", *references, answer]): reply
        for answers, references, item in zip(
            golden_captions.answers, golden_captions.references, GOLDEN["meteor_jar"], strict=True
        )
        for answer, reply in zip(answers, item, strict=True)
    }
    fake_java(f"replies = {replies!r}", "for line in sys.stdin: print(replies[line.rstrip('\\n')])")
    counts = metrics.meteor(golden_captions)
    expected = np.array(GOLDEN["per_answer"]["meteor"]).T
    np.testing.assert_allclose(np.array(counts.per_answer()), expected, rtol=0, atol=1e-6)
    assert counts.corpus_mean(FEW).mean == pytest.approx(np.mean(GOLDEN["corpus"]["meteor"]), abs=1e-6)


def test_score_captions_is_the_oracle_and_the_mean_of_pycocoevalcaps_values():
    scores = metrics.score_captions(ANSWERS, REFERENCES, FEW)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d"):
        expected = np.array(GOLDEN["per_answer"][name])
        np.testing.assert_allclose(scores[f"oracle_{name}"].per_item, expected.max(axis=0), rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores[f"mean_{name}"].per_item, expected.mean(axis=0), rtol=0, atol=1e-6)
        assert scores[f"mean_{name}"].mean == pytest.approx(expected.mean(), abs=1e-6)


def golden_texts(_):
    """Other answers to the golden's references."""
    order = np.random.default_rng(3).permutation(len(ANSWERS))
    answers = [[" ".join(reversed(t.split())), t, ANSWERS[n][0]] for n, t in zip(order, ANSWERS[0] * 14, strict=False)]
    return answers, [REFERENCES[n] for n in order]


def stamps_texts(request):
    """Captions of all stamps in three languages; to each its Spanish one, its words reversed, and another stamp's."""
    corpus = datasets.read_stamps(request.getfixturevalue("stamps_folder"), "pictures").with_modes("en", "fr", "es")
    references = [[target.text for target in record.references] for record in corpus.records]
    assert len(references) > 700
    others = references[1:] + references[:1]
    reverse = lambda text: " ".join(reversed(text.split()))
    answers = [[es, reverse(en), other[1]] for (en, _, es), other in zip(references, others, strict=True)]
    return answers, references


@pytest.mark.slow
@pytest.mark.parametrize("texts", [golden_texts, stamps_texts])
def test_values_are_pycocoevalcaps_live(texts, monkeypatch, request):
    """METEOR through its own jar included. `make test-slow` gets pycocoevalcap; Java must be there."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="needs pycocoevalcap").Bleu(4)
    if not shutil.which("java"):
        pytest.skip("needs java")
    monkeypatch.setattr("mcl_jax.metrics.java.PACKAGE", "pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    answers, references = texts(request)
    given = captions(answers, references)
    pooled = [*metrics.coco_bleu(given), metrics.meteor(given)]
    ours = [*(c.per_answer() for c in pooled), metrics.rouge_l(given), metrics.cider_d(given)]
    tokenized = lambda texts: PTBTokenizer().tokenize(
        {n: [{"caption": t} for t in item] for n, item in enumerate(texts)}
    )
    right, meteor, corpus = tokenized(references), Meteor(), []
    for k in range(3):
        theirs = tokenized([[item[k]] for item in answers])
        bleus, each = bleu.compute_score(right, theirs, verbose=0)
        of_all, meteors = meteor.compute_score(right, theirs)
        corpus.append([*bleus, of_all])
        expected = [*each, meteors, *(scorer.compute_score(right, theirs)[1] for scorer in (Rouge(), Cider()))]
        np.testing.assert_allclose([[item[k] for item in values] for values in ours], expected, rtol=0, atol=1e-6)
    means = [c.corpus_mean(FEW).mean for c in pooled]
    np.testing.assert_allclose(means, np.mean(corpus, axis=0), rtol=0, atol=1e-6)


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_bleu_by_hand():
    """p = 4/5, 3/4, 2/3, 1/2; one word too short; three words: BLEU-4 has a precision of 1e-15/1e-9 in it."""
    texts = captions([["a b c d x", "a b c d", "a b c"]], [["A b c d e."]])
    one, *_, four = metrics.coco_bleu(texts)
    np.testing.assert_allclose(one.per_answer()[0], [4 / 5, exp(-1 / 4), exp(1 - 5 / 3)], atol=1e-6)
    expected = [(4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, exp(-1 / 4), 1e-6**0.25 * exp(1 - 5 / 3)]
    np.testing.assert_allclose(four.per_answer()[0], expected, atol=1e-6)


def test_bleu_takes_the_nearest_and_shorter_reference():
    assert metrics.coco_bleu(captions([["a b c"]], [["a b", "a b c d"]]))[0].per_answer()[0] == pytest.approx(1.0)
    assert metrics.coco_bleu(captions([["a b c"]], [["a b c d", "a"]]))[0].per_answer()[0] == pytest.approx(exp(-1 / 3))


def test_rouge_l_by_hand():
    """The subsequence "a c" of "a x c"; the highest precision and recall of different references."""
    f = lambda p, r: 2.44 * p * r / (r + 1.44 * p)
    texts = captions([["a x c", "c b a", "q"]], [["a b c d", "x"]])
    np.testing.assert_allclose(metrics.rouge_l(texts)[0], [f(2 / 3, 1), f(1 / 3, 1 / 4), 0])


def test_cider_d_by_hand():
    """log 3 = idf of "a" and log 3/2 of "b"; "b a" and "c b" are rare pairs; lengths differ by one pair."""
    texts = captions([["b", "b a", "c b a"], ["b b"], ["z"]], [["b a"], ["b"], ["q"]])
    a, b = log(3), log(3 / 2)
    norm = sqrt(a**2 + b**2)
    first, second, third = metrics.cider_d(texts)
    one = b / norm * exp(-1 / 72)
    three = ((a**2 + b**2) / (norm * sqrt(2 * a**2 + b**2)) + 1 / sqrt(2)) * exp(-1 / 72)
    np.testing.assert_allclose(first, [10 / 4 * one, 10 / 4 * 2, 10 / 4 * three])
    np.testing.assert_allclose(second, [10 / 4 * b * b / (2 * b * b) * exp(-1 / 72)])  # clipped: min(2, 1)
    np.testing.assert_allclose(third, [0.0])


def test_cider_d_counts_documents_in_the_references_of_the_split():
    both = metrics.cider_d(captions([["a b c d e"], ["v w"]], [["a b c d e"], ["v w x"]]))
    assert both[0][0] == pytest.approx(10.0)
    assert metrics.cider_d(captions([["a b c d e"]], [["a b c d e"]]))[0][0] == 0.0
    texts = [["A b C d e"], ["v w"]], [["a b c d e"], ["v w x"]]
    assert metrics.score_captions(*texts, names=["oracle_cider_d"])["oracle_cider_d"].per_item[0] == pytest.approx(10.0)
    alone = [[of[0]] for of in texts]
    found = metrics.score_captions(*alone, names=["oracle_cider_d"], split=texts[1])["oracle_cider_d"]
    assert found.per_item == pytest.approx([10.0])


@pytest.mark.parametrize(
    ("references", "split"),
    [
        ([["a b"]], None),
        ([["a b", "b"], ["b", "a b"], ["b", "b", "a b"]], None),
        ([["a"], ["a"]], [["a", "q"], ["a"], ["q", "a"]]),
    ],
    ids=["one-item", "all-alike", "split-all-alike"],
)
def test_cider_d_that_is_0_whatever_the_answers_are_is_not_available(references, split):
    """coco-caption says 0: every n-gram is in every item, and weighs log(1)."""
    answers = [["a b", "c"]] * len(references)
    assert all((of == 0.0).all() for of in metrics.cider_d(captions(answers, references), split))
    found = metrics.score_captions(answers, references, names=["oracle_cider_d", "mean_cider_d"], split=split)
    for score in found.values():
        assert isinstance(score, NotAvailable) and "at least 2 items with different references" in score.reason
    assert metrics.score_captions([["a b"]] * 2, [["a"], ["a b"]], names=["mean_cider_d"])["mean_cider_d"].mean > 0.0


def test_corpus_scores_pool_the_counts(golden_captions):
    four = metrics.coco_bleu(golden_captions)[3]
    picks = [counts[values.argmax()] for counts, values in zip(four.counts, four.per_answer(), strict=True)]
    oracle = four.corpus_oracle(FEW)
    assert oracle.mean == pytest.approx(float(four.value(sum(picks))))
    assert oracle.mean > four.corpus_mean(FEW).mean
    np.testing.assert_allclose(oracle.per_item, [values.max() for values in four.per_answer()])
    drawn = next(FEW.counts(len(picks)))
    resampled = [float(four.value(sum(c * n for c, n in zip(picks, row, strict=True)))) for row in drawn]
    np.testing.assert_allclose([oracle.low, oracle.high], np.quantile(resampled, [0.025, 0.975]))


def test_meteor_by_hand():
    """3 of 4 words match in 2 chunks, one of them a stem, one a function word of the one in each text."""
    counts = np.zeros(23)
    counts[:4] = [4, 5, 1, 1]
    counts[4:8] = [1, 1, 1, 1]  # exact: a content word and a function word of each
    counts[8:12] = [1, 1, 0, 0]  # a stem
    counts[20:] = [2, 3, 3]
    matched = 0.75 * 1.6 + 0.25
    p, r = matched / (0.75 * 3 + 0.25), matched / (0.75 * 4 + 0.25)
    assert java.meteor_value(counts) == pytest.approx(p * r / (0.85 * p + 0.15 * r) * (1 - 0.6 * (2 / 3) ** 0.2))


# --- Blank answers, unequal numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", BLANKS)
def test_blank_answers_score_zero_and_blank_references_are_none(blank):
    answers, references = [[blank, "a red house here", blank], ["x y"]], [["a red house here", " "], ["x y", ""]]
    scores = metrics.score_captions(answers, references, FEW)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d"):
        values = scores[f"oracle_{name}"].per_item[0], scores[f"mean_{name}"].per_item[0]
        assert values == pytest.approx((10.0, 10 / 3) if name == "cider_d" else (1.0, 1 / 3), abs=1e-6)
    assert scores["mbleu_4"].per_item[0] == pytest.approx(2 / 3)  # the two blanks are one answer
    assert scores["vocabulary"].mean == 6


def test_wordless_references_count_as_in_coco_caption():
    """CIDEr-D is averaged over them too; an answer without words is still worth nothing."""
    texts = captions([["a b c d", "?"], ["x"]], [["a b c d", "!"], ["x"]])
    assert metrics.cider_d(texts)[0][0] == pytest.approx(5.0)
    assert metrics.rouge_l(texts)[0].tolist() == pytest.approx([1.0, 0.0])
    assert metrics.coco_bleu(texts)[0].per_answer()[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_unequal_numbers_of_answers():
    scores = metrics.score_captions([["a b", "c"], ["a"], ["b", "a b c", "c"]], [["a b"], ["a"], ["b c"]], FEW)
    assert scores["oracle_bleu_1"].num_defined == 3
    assert isinstance(scores["corpus_oracle_bleu_4"], metrics.Score)
    assert "same number of answers, got items with [1, 2, 3]" in scores["corpus_mean_bleu_4"].reason


def test_each_column_is_a_file():
    """The k-th answers follow each other, so "B." looks at "The": the answer of the next item, not of the same one."""
    given = captions([["letter B.", "x"], ["The y", "letter B."], ["z", "The"]], [["a"], ["b"], ["c"]])
    assert given.answers == [["letter b", "x"], ["the y", "letter b."], ["z", "the"]]


def test_diversity_is_in_coco_captions_words():
    scores = metrics.score_captions([["A 3-year dog's bone.", "a DOG bone"], ["...", "!"]], [["a"], ["b"]], FEW)
    assert scores["div_1"].per_item.tolist() == [5 / 8, 0]
    assert scores["vocabulary"].per_item.tolist() == [5, 0]
    assert scores["corpus_mbleu_4"].per_item[1] == pytest.approx(1.0)


def test_bad_items_are_refused():
    with pytest.raises(ValueError, match="same items, got 2 and 1"):
        metrics.score_captions([["a"], ["b"]], [["a"]])
    with pytest.raises(ValueError, match=r"references\[0\] must contain .*not blank"):
        captions([["a"]], [[" "]])


# --- Java -------------------------------------------------------------------------------------------------------------


def test_without_java_the_reason_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = metrics.score_captions([["a b"]], [["a b"]], FEW)
    assert "there is no program `java` on the PATH" in scores["oracle_meteor"].reason
    for name in ("oracle_spice", "mean_spice", "oracle_spider", "mean_spider"):
        assert "stanford-corenlp-3.6.0-models.jar, but none is configured" in scores[name].reason


def test_without_the_package_the_reason_is_said(monkeypatch, fake_java):
    fake_java()
    monkeypatch.setattr("mcl_jax.metrics.java.PACKAGE", "no_such_package_of_jars")
    with pytest.raises(
        JavaMetricError, match=r"jars of no_such_package_of_jars; install it with: pip install --no-deps"
    ):
        metrics.meteor(captions([["a"]], [["a"]]))


def test_spice_needs_both_jars(corenlp, fake_java):
    fake_java()
    (corenlp / java.CORENLP_JARS[1]).unlink()
    with pytest.raises(JavaMetricError, match=r"needs stanford-corenlp-3\.6\.0-models\.jar in .*corenlp"):
        metrics.spice(captions([["a"]], [["a"]]), corenlp)


def test_spice_and_spider(corenlp, fake_java):
    """A stand-in for the program: F is the share of the answer's words that is in the references."""
    fake_java(
        "asked = json.load(open(sys.argv[5]))",
        "share = lambda e: sum(w in ' '.join(e['refs']).split() for w in e['test'].split()) / len(e['test'].split())",
        "reply = [{'image_id': e['image_id'], 'scores': {'All': {'f': share(e)}}} for e in reversed(asked)]",
        "assert sys.argv[3].count('stanford-corenlp-3.6.0') == 2 and sys.argv[6] == '-out'",
        "json.dump(reply, open(sys.argv[7], 'w'))",
    )
    answers, references = (
        [["A red dog.", "", "cats"], ["two birds", "a b"]],
        [["a red cat", "a dog"], ["two dogs", "b"]],
    )
    expected = [np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5])]
    given = captions(answers, references)
    for values, right in zip(metrics.spice(given, corenlp), expected, strict=True):
        np.testing.assert_allclose(values, right)
    scores = metrics.score_captions(answers, references, FEW, corenlp=corenlp)
    spider = [(c + s) / 2 for c, s in zip(metrics.cider_d(given), expected, strict=True)]
    np.testing.assert_allclose(scores["oracle_spider"].per_item, [values.max() for values in spider])
    np.testing.assert_allclose(scores["mean_spider"].per_item, [values.mean() for values in spider])


def test_a_program_that_fails_is_quoted_and_not_asked_twice(tmp_path, corenlp, fake_java):
    log_file = tmp_path / "calls"
    fake_java(f"print('x', file=open({str(log_file)!r}, 'a'))", "sys.exit('No model of English\\nat line 3')")
    scores = metrics.score_captions([["a"]], [["a"]], FEW, corenlp=corenlp)
    for name in ("oracle_meteor", "corpus_mean_meteor", "mean_spice", "oracle_spider"):
        assert isinstance(scores[name], NotAvailable)
        assert scores[name].reason.endswith("ended with status 1 and printed: No model of English")
    assert log_file.read_text().split() == ["x", "x"]


def test_only_what_is_named_is_computed(tmp_path, corenlp, fake_java):
    fake_java(f"print('x', file=open({str(tmp_path / 'calls')!r}, 'a'))")
    scores = metrics.score_captions(ANSWERS, REFERENCES, FEW, corenlp=corenlp, names=("mean_cider_d", "div_1"))
    whole = metrics.score_captions(ANSWERS, REFERENCES, FEW)
    assert {name: score.mean for name, score in scores.items()} == {
        name: whole[name].mean for name in ("mean_cider_d", "div_1")
    }
    assert (tmp_path / "calls").read_text().split() == ["x"]  # METEOR of the second call
    with pytest.raises(ValueError, match=r"names must be among \['oracle_bleu_1', .*, got \['cider'\]"):
        metrics.score_captions(ANSWERS, REFERENCES, FEW, names=("cider", "div_1"))


def test_meteor_that_says_something_else_is_refused(fake_java):
    fake_java("print('Error: specify SCORE')")
    with pytest.raises(JavaMetricError, match=r"23 counts for each of 1 lines, got \['Error: specify SCORE'\]"):
        metrics.meteor(captions([["a"]], [["a"]]))


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "captions.jsonl"
    items = zip(ANSWERS, REFERENCES, strict=True)
    path.write_text(
        "".join(json.dumps({"id": n, "answers": a, "references": r}) + "\n" for n, (a, r) in enumerate(items))
    )
    return path


def test_the_command_line(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cli([str(file), "--captions", "--resamples", "7", "--json", str(tmp_path / "scores.json")])
    scores = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    expected = np.array(GOLDEN["per_answer"]["cider_d"])
    assert scores["oracle_cider_d"]["mean"] == pytest.approx(expected.max(axis=0).mean(), abs=1e-6)
    assert scores["vocabulary"]["low"] is None
    assert "purity" in scores
    assert "oracle_bleu" not in scores
    printed = capsys.readouterr().out
    assert "n/a: oracle_spice, mean_spice, oracle_spider, mean_spider: SPICE needs a folder with stan" in printed
    assert "n/a: oracle_meteor, mean_meteor, corpus_oracle_meteor, corpus_mean_meteor: METEOR and SPICE need" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--captions", "--lowercase"], "--captions uses coco-caption's tokenizer"),
        (["--captions", "--tokenize", "zh"], "--captions uses coco-caption's tokenizer"),
        (["--captions", "--metrics", "translation"], r"must be among \['captioning', .*got \['translation'\]"),
        (["--metrics", "captioning"], r"must be among \['translation', .*got \['captioning'\]"),
    ],
)
def test_options_that_do_not_go_together(file, args, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        cli([str(file), *args])
