"""`python -m mcl_jax.metrics`: end to end, and each error with its line."""

import gzip
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from mcl_jax import metrics
from mcl_jax.metrics.__main__ import cli

ITEMS = [
    {"id": "a", "answers": ["the red house", "a house", ""], "references": ["the red house", "a red house"]},
    {"id": "b", "answers": ["old tree here", "old tree", "it"], "references": ["an old tree", "one old tree here"]},
    {"id": 3, "answers": [" ", "\n", ""], "references": ["not said", "silent"]},
    {"id": "ü", "answers": ["small\u2028cat", "cat", "dog"], "references": ["small cat", "a cat"], "note": "ignored"},
]
SPECIALIZED = [{**item, "mode": m, "winner": k} for item, m, k in zip(ITEMS, "xyxy", (0, 2, 0, 0), strict=True)]


@pytest.fixture
def write(tmp_path):
    def write(items, name="answers.jsonl"):
        lines = [item if isinstance(item, (str, bytes)) else json.dumps(item, ensure_ascii=False) for item in items]
        path = tmp_path / name
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
        return path

    return write


@pytest.fixture(autouse=True)
def no_minilm(monkeypatch):
    """As on a machine without the weights: loading them takes seconds, and tests of embeddings do it."""
    monkeypatch.setattr("mcl_jax.metrics.embedding.PACKAGE", "no-such-package-of-weights")


def test_end_to_end(write, tmp_path, capsys):
    cli([str(write(SPECIALIZED)), "--json", str(tmp_path / "scores.json"), "--resamples", "50", "--level", "0.8"])
    document = json.loads((tmp_path / "scores.json").read_text())
    answers, references = ([item[key] for item in ITEMS] for key in ("answers", "references"))
    expected = metrics.oracle_bleu(answers, references, bootstrap=metrics.Bootstrap(50, 0.8))
    scores = document["metrics"]
    assert document["ids"] == ["a", "b", 3, "ü"]
    assert scores["oracle_bleu"]["mean"] == pytest.approx(expected.mean)
    assert scores["oracle_bleu"]["per_item"] == pytest.approx(expected.per_item.tolist())
    assert scores["oracle_bleu"]["low"] == pytest.approx(expected.low)
    assert scores["purity"]["mean"] == 3 / 4
    assert document["win_matrix"] == {"counts": [[2, 0, 0], [1, 0, 1]], "modes": ["x", "y"]}
    assert document["win_rate"] == [0.75, 0, 0.25]
    assert "pip install --no-deps" in scores["oracle_similarity"]["reason"]
    names = {name for group in metrics.GROUPS.values() for name in group([], metrics.Settings())}
    assert set(scores) == names

    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert "4 items, 3 answers, 2 references" in printed
    assert "80 % interval" in printed
    assert "n/a: oracle_similarity, mean_similarity, embedding_diversity, vendi_score, distinct_k: " in printed


def test_every_metric_of_the_table_is_the_function_of_its_name(write):
    items = metrics.read_items(write(SPECIALIZED))
    scores = metrics.score_items(items, ["translation", "diversity", "specialization"])
    texts = [item.answers for item in items], [item.references for item in items]
    for name, score in scores.items():
        if name.startswith("div_"):
            expected = metrics.div_n(texts[0], int(name[-1]))
        elif "pairwise" in name or "mbleu" in name or name == "vocabulary":
            expected = getattr(metrics, name)(texts[0])
        elif name in ("purity", "nmi"):
            function = metrics.purity if name == "purity" else metrics.normalized_mutual_information
            expected = function([item.winner for item in items], [item.mode for item in items], 3)
        else:
            expected = getattr(metrics, name)(*texts)
        np.testing.assert_array_equal(score.per_item, expected.per_item, err_msg=name)
        for end in ("mean", "low", "high"):
            np.testing.assert_equal(getattr(score, end), getattr(expected, end), err_msg=name)


def test_a_selection_and_its_options(write, tmp_path):
    path = write([{"id": 1, "answers": ["A b", "a B", "c"], "references": ["a b"]}])
    cli([str(path), "--metrics", "diversity", "--lowercase", "--json", str(tmp_path / "s.json")])
    scores = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert set(scores) == {"div_1", "div_2", "mbleu_4", "corpus_mbleu_4", "vocabulary"}
    assert scores["div_1"]["mean"] == 3 / 5


def test_training_texts_are_read_for_novelty(write, tmp_path):
    path, train, found = write(ITEMS[:2]), tmp_path / "train.txt", tmp_path / "s.json"
    train.write_bytes(b"\xef\xbb\xbfThe red house\n\nold tree here\n")
    novel = lambda *options: (
        cli([str(path), "--metrics", "novelty", "--train", str(train), "--json", str(found), *options]),
        json.loads(found.read_text())["metrics"]["novel_answers"]["per_item"],
    )[1]
    assert novel() == pytest.approx([2 / 3, 2 / 3])
    assert novel("--lowercase") == novel("--captions") == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(SystemExit, match="^error: no metric of 'novelty' is available: novelty needs the texts"):
        cli([str(path), "--metrics", "novelty"])
    train.write_bytes(b" \n")
    with pytest.raises(SystemExit, match=rf"^error: {train} must hold at least one training answer"):
        novel()
    train.write_bytes(b"\xff")
    with pytest.raises(SystemExit, match=rf"^error: {train} must be UTF-8 text with one training answer per line"):
        novel()


def test_one_answer_and_one_reference(write, tmp_path, capsys):
    cli([str(write([{"id": 1, "answers": ["a"], "references": ["a"]}])), "--json", str(tmp_path / "s.json")])
    scores = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert scores["pairwise_bleu"] == {"per_item": [None], "mean": None, "low": None, "high": None}
    assert scores["oracle_bleu"]["mean"] == pytest.approx(100.0)
    assert "at least 2, got items with [1]" in scores["corpus_leave_one_out_bleu"]["reason"]
    assert "n/a: purity, nmi: every item needs a mode and a winner, but item 1" in capsys.readouterr().out


def test_unequal_numbers_of_answers_are_allowed(write, capsys):
    cli([str(write([ITEMS[0], {"id": 9, "answers": ["x y"], "references": ["x"]}]))])
    assert "2 items, 1 to 3 answers, 1 to 2 references" in capsys.readouterr().out


def test_empty_lines_and_a_byte_order_mark_are_skipped(write):
    path = write(["", b"\xef\xbb\xbf" + json.dumps(ITEMS[0]).encode()])
    with pytest.raises(ValueError, match="line 2: must be one JSON object"):
        metrics.read_items(path)
    path = write([b"\xef\xbb\xbf" + json.dumps(ITEMS[0]).encode(), "", "  ", ITEMS[1]])
    assert [item.id for item in metrics.read_items(path)] == ["a", "b"]
    assert metrics.read_items(write(ITEMS))[3].answers[0] == "small\u2028cat"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, ', r"line 3: must be one JSON object \("),
        (b'{"id": "\xff"}', "line 3: must be UTF-8"),
        ("[1, 2]", "line 3: must be a JSON object .*, got list"),
        (
            {"id": 1, "references": ["a"], "answer": ["b"]},
            r"line 3: must have the key 'answers', .* instead of 'answer'",
        ),
        ({"answers": ["a"], "references": ["a"]}, "line 3: must have the key 'id'"),
        ({"id": 1, "answers": [], "references": ["a"]}, r"line 3: answers must be a list of at least 1 text, got \[\]"),
        ({"id": 1, "answers": "a", "references": ["a"]}, "line 3: answers must be a list of at least 1 text, got 'a'"),
        ({"id": 1, "answers": ["a", None], "references": ["a"]}, "line 3: answers must be a list"),
        (
            {"id": 1, "answers": ["a"], "references": [" "]},
            "line 3: references must contain at least 1 text",
        ),
        (
            {"id": "a", "answers": ["a"], "references": ["a"]},
            "line 3: every id must be unique, but line 1 has 'a'",
        ),
        ({"id": None, "answers": ["a"], "references": ["a"]}, "line 3: id must be text or an integer, got None"),
        ({"id": 1, "answers": ["a"], "references": ["a"], "mode": False}, "line 3: mode must be text .*, got False"),
        ({"id": 1, "answers": ["a"], "references": ["a"], "winner": 1}, "line 3: winner must be .*0 to 0, got 1"),
        ({"id": 1, "answers": ["a"], "references": ["a"], "winner": True}, "line 3: winner must be .*got True"),
    ],
)
def test_broken_lines_are_named(write, line, message):
    path = write([ITEMS[0], "", line])
    with pytest.raises(ValueError, match=message) as caught:
        metrics.read_items(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--metrics", "specialization"],
            "no metric of 'specialization' is available: .* but item 'a' lacks one",
        ),
        (["--metrics", "embedding"], "no metric of 'embedding' is available: .*pip install --no-deps"),
        (["--json", "no/such/folder/s.json"], "--json needs a file in an existing folder"),
        (["--json", "."], "--json needs a file, got the folder [.]"),
        (["--level", "2"], "level must be between 0 and 1"),
    ],
)
def test_bad_options_are_one_line(write, args, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        cli([str(write(ITEMS)), *args])


def test_files_that_are_not_there_or_empty(write, tmp_path):
    with pytest.raises(SystemExit, match="^error: .*nothing.jsonl must be a file"):
        cli([str(tmp_path / "nothing.jsonl")])
    with pytest.raises(SystemExit, match="^error: .*at least one item, got an empty file"):
        cli([str(write([""]))])
    with pytest.raises(ValueError, match=r"metrics must be among \['translation'.*got \['translatoin'\]"):
        metrics.score_items(metrics.read_items(write(ITEMS)), ["translatoin"])


def test_as_a_program(write, tmp_path):
    """In a process of its own, without jax's test settings."""
    path = write(["{"])
    run = subprocess.run(
        [sys.executable, "-m", "mcl_jax.metrics", str(path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {path} line 1: must be one JSON object")
    assert "Traceback" not in run.stderr


# ------------------------------------------------------------------------------ Names, pipes, disks, degenerate numbers


@pytest.mark.parametrize("name", ["[/en]", "[fr]", "[bold]x[/]", ":smile:", "a\nb\x1b[2J"])
def test_names_are_no_markup(write, tmp_path, capsys, name):
    path = write([{**ITEMS[0], "mode": name, "winner": 0}, {**ITEMS[1], "mode": "x", "winner": 2}], "[i] :cat:.jsonl")
    cli([str(path), "--json", str(tmp_path / "s.json"), "--metrics", "specialization"])
    assert json.loads((tmp_path / "s.json").read_text())["win_matrix"]["modes"] == sorted([name, "x"])
    printed = capsys.readouterr().out
    assert "[i] :cat:.jsonl: 2 items" in printed
    assert "a" in printed if "\n" in name else f"│ {name}" in printed
    assert "\x1b" not in printed


def test_the_file_is_written_before_anything_is_printed(write, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no terminal")

    monkeypatch.setattr("mcl_jax.metrics.__main__.table", fail)
    with pytest.raises(SystemExit, match="^error: no terminal"):
        cli([str(write(ITEMS)), "--json", str(tmp_path / "s.json"), "--metrics", "diversity"])
    assert json.loads((tmp_path / "s.json").read_text())["ids"] == ["a", "b", 3, "ü"]


def test_a_file_that_cannot_be_written_does_not_cost_the_table(write, tmp_path, monkeypatch, capsys):
    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("mcl_jax.metrics.__main__.write_json", full)
    with pytest.raises(SystemExit, match=r"^error: .*s\.json: No space left on device; free some space"):
        cli([str(write(ITEMS)), "--json", str(tmp_path / "s.json"), "--metrics", "diversity"])
    assert "div_1" in capsys.readouterr().out


def test_a_pipe_is_read(write, tmp_path):
    """As /dev/stdin, or <(zcat answers.jsonl.gz)."""
    read, written = os.pipe()
    os.write(written, write(ITEMS).read_bytes())
    os.close(written)
    assert [item.id for item in metrics.read_items(f"/dev/fd/{read}")] == ["a", "b", 3, "ü"]
    os.close(read)
    os.mkfifo(tmp_path / "fifo")
    threading.Thread(target=lambda: (tmp_path / "fifo").write_text(json.dumps(ITEMS[0])), daemon=True).start()
    assert [item.id for item in metrics.read_items(tmp_path / "fifo")] == ["a"]


def test_what_is_no_text_is_refused_in_a_line(write, tmp_path):
    refused = lambda path, message: pytest.raises(SystemExit, match=f"^error: {path}{message}$")
    with refused(tmp_path, " must be a file with one JSON object per line, but it is a folder"):
        cli([str(tmp_path)])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(ITEMS[0]).encode()))
    with refused(packed, r" line 1: must be UTF-8 \(.*\)"):
        cli([str(packed)])
    with refused(write(["[" * 100_000]), r" line 1: must be one JSON object \(its brackets are nested too deep\)"):
        cli([str(write(["[" * 100_000]))])


@pytest.mark.parametrize("key", ["id", "answers", "references", "mode"])
def test_half_an_emoji_is_refused_with_its_line(write, key):
    half = json.dumps(ITEMS[0] | {key: "\ud83d" if key in ("id", "mode") else ["a", "b \ud83d"]})
    with pytest.raises(ValueError, match=rf"line 2: {key} must be Unicode, got half a character, '\\ud83d', in '"):
        metrics.read_items(write([ITEMS[1], half]))


def test_what_one_item_cannot_say_is_not_available(write, tmp_path, capsys):
    item = {"id": 1, "answers": ["a b", "c d", "a"], "references": ["a b"], "mode": "en", "winner": 2}
    cli([str(write([item])), "--captions", "--json", str(tmp_path / "s.json")])
    scores = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert scores["oracle_bleu_1"]["mean"] == pytest.approx(1.0)
    assert scores["oracle_bleu_1"]["low"] is scores["corpus_oracle_bleu_1"]["high"] is None
    assert {scores[name]["reason"].split()[0] for name in ("oracle_cider_d", "mean_cider_d")} == {"CIDEr-D"}
    assert all("at least 2 modes, got 1" in scores[name]["reason"] for name in ("purity", "nmi"))
    printed = capsys.readouterr().out
    assert "n/a: all intervals: an interval needs at least 2 items" in printed
    assert "n/a: oracle_cider_d, mean_cider_d: CIDEr-D weights an n-gram" in printed


def test_specialisation_needs_modes_and_hypotheses(write):
    several = [{**item, "mode": m, "winner": 0} for item, m in zip(ITEMS, "xyxy", strict=True)]
    one_answer = [{**item, "answers": item["answers"][:1]} for item in several]
    one_mode = [{**item, "mode": "x"} for item in several]
    reason = lambda items: metrics.score_items(metrics.read_items(write(items)))["purity"].reason
    assert "at least 2 hypotheses, got 1" in reason(one_answer)
    assert "at least 2 modes, got 1; purity is always 1 then" in reason(one_mode)
    assert metrics.score_items(metrics.read_items(write(several)))["purity"].mean == 0.5  # collapse says something


def test_pairs_of_words_need_two_words():
    item = lambda *answers: metrics.Item(1, answers, ("a",))
    div_2 = lambda *items: metrics.score_items(items, ["diversity"])["div_2"]
    assert "no answer has two words" in div_2(item("a", "b", ""), item("c", "c", "d")).reason
    assert div_2(item("a", "b c", ""), item("c", "c", "d")).mean == pytest.approx(1 / 6)
    assert div_2(item("", " ")).mean == 0.0  # blank answers score 0


def test_a_damaged_encoder_is_named(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"\xff{")
    settings = metrics.Settings(encoder=tmp_path)
    score = metrics.score_items([metrics.Item(1, ("a",), ("a",))], settings=settings)["oracle_similarity"]
    assert str(tmp_path / "config.json") in score.reason


def test_what_results_say():
    scores = metrics.score_captions(
        [["a b", "c"]] * 2, [["a b"], ["c"]], names=["mean_bleu_1", "vocabulary", "mbleu_4"]
    )
    single = metrics.score_items([metrics.Item(1, ("a",), ("a", "b"))], ["translation"])
    found = metrics.for_results(scores | single | {"spice": metrics.NotAvailable("no Java")})
    json.dumps(found, allow_nan=False)
    assert set(found["intervals"]) == {"mean_bleu_1", "mbleu_4"}  # vocabulary has none, nor has a single item
    assert found["pairwise_bleu"] is None and "two answers" in found["not_available"]["pairwise_bleu"]
    assert found["spice"] is None and found["not_available"]["spice"] == "no Java"
    assert found["oracle_bleu"] == pytest.approx(100.0)
