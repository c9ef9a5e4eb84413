"""What comes in as text is text, and such as must be Unicode: checked with file, line and field wherever it is read."""

import json
import os

import fake_stamps
import pytest
from published_files import textcaps_rows, write_textcaps
from tiny_media import png, write

from experiments.datasets import read_stamps
from experiments.datasets.textcaps import read_textcaps
from mcl_jax.data import Corpus, Instruction, Prompt, Record, Target, read_captions, read_jsonl
from mcl_jax.metrics.items import read_items

HALF = "a \ud83d b"
HELD = r"must be Unicode, got half a character, '\\ud83d', in 'a "


def lines(path, *objects):
    write(
        path, "".join(json.dumps(line) + "\n" for line in objects)
    )  # ASCII alone: halves are escapes, as JSON has them
    return path


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict(id=HALF), "id"),
        (dict(source=HALF), "source"),
        (dict(target=HALF), "target"),
        (dict(mode=HALF), "mode"),
        (dict(references=["fine", HALF]), "references"),
        (dict(references=[{"target": HALF}]), "target of references"),
        (dict(references=[{"target": "fine", "mode": HALF}]), "mode"),
    ],
)
def test_half_an_emoji_in_json_lines(tmp_path, change, name):
    line = {"id": "1", "source": "s", "target": "t"}
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {name} {HELD}"):
        read_jsonl(lines(tmp_path / "a.jsonl", line, {**line, "id": "2", **change}))
    whole = lines(tmp_path / "b.jsonl", line | {"target": "\ud83d\ude00 whole"})
    assert read_jsonl(whole).records[0].targets == (Target("\U0001f600 whole"),)


@pytest.mark.parametrize("field", ["caption", "mode", "id", "file"])
def test_half_an_emoji_in_a_folder(tmp_path, field):
    write(tmp_path / "1.png", png())
    lines(tmp_path / "captions.jsonl", {"file": "1.png", "caption": "c", field: HALF})
    with pytest.raises(ValueError, match=rf"captions\.jsonl, line 1: {field} {HELD}"):
        read_captions(tmp_path)


@pytest.mark.parametrize("field", ["id", "mode", "answers", "references"])
def test_half_an_emoji_in_answers_to_be_scored(tmp_path, field):
    item = {"id": 1, "answers": ["a", "b", "c"], "references": ["r"]}
    value = [HALF] if field in ("answers", "references") else HALF
    with pytest.raises(ValueError, match=rf"a\.jsonl line 2: {field} {HELD}"):
        read_items(lines(tmp_path / "a.jsonl", item, item | {"id": 2, field: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(caption_str=None), "caption_str must be a text, got None"),
        (dict(caption_str=["a", "b"]), r"caption_str must be a text, got \['a', 'b'\]"),
        (dict(caption_str=HALF), f"caption_str {HELD}"),
        (dict(image_id=7), "image_id must be a text, got 7"),
        (dict(image_id=None), "image_id must be a text, got None"),
        (dict(caption_id=None), "caption_id must be an integer or a text, got None"),
        (dict(caption_id=True), "caption_id must be an integer or a text, got True"),
        (dict(caption_id=1.5), "caption_id must be an integer or a text, got 1.5"),
    ],
)
def test_types_of_textcaps(tmp_path, change, message):
    write_textcaps(tmp_path)
    rows = textcaps_rows("val", 100, 3)
    rows[4] |= change
    write(tmp_path / "TextCaps_0.1_val.json", json.dumps({"data": rows}))
    with pytest.raises(ValueError, match=rf"TextCaps_0\.1_val\.json, data\[4\]: {message}"):
        read_textcaps(tmp_path)


@pytest.mark.parametrize("content", [{"data": {"a": 1}}, {"data": [{}, 3]}, {"data": None}, 3, {"data": ["text"]}])
def test_another_layout_of_textcaps(tmp_path, content):
    write_textcaps(tmp_path)
    write(tmp_path / "TextCaps_0.1_train.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"TextCaps_0\.1_train\.json must be .* got another layout"):
        read_textcaps(tmp_path)


@pytest.mark.parametrize(
    ("french", "message"),
    [
        (["Un."], r"must be texts by caption_id, such as .*, got \['Un.'\]"),
        ({"1": None}, "the text of caption 1 must be a text, got None"),
        ({"1": ["Un."]}, "the text of caption 1 must be a text"),
        ({"1": HALF}, f"the text of caption 1 {HELD}"),
    ],
)
def test_types_of_french_texts(tmp_path, french, message):
    write_textcaps(tmp_path)
    write(tmp_path / "TextCaps_0.1_train_fr.json", json.dumps(french))
    with pytest.raises(ValueError, match=rf"TextCaps_0\.1_train_fr\.json:? {message}"):
        read_textcaps(tmp_path, bilingual=True)


def test_french_texts_of_no_caption_are_said(tmp_path):
    write_textcaps(tmp_path)
    write(tmp_path / "TextCaps_0.1_train_fr.json", json.dumps({"1": "Un.", "1000": "Mille."}))
    corpus = read_textcaps(tmp_path, bilingual=True)
    assert corpus.left_out == (("1000", "a French text whose caption is not in TextCaps_0.1_train.json"),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(references=0), "references must be a list, got 0"),
        (dict(references=""), "references must be a list, got ''"),
        (dict(references={}), r"references must be a list, got \{\}"),
        (dict(references=[None]), "references must be a non-empty text, got None"),
        (dict(references=[{"target": 3}]), "target of references must be a non-empty text, got 3"),
        (dict(references=[{"taget": "a"}]), "without target; did you mean 'target' instead of 'taget'"),
        (dict(references=[{"target": "a", "modes": "en"}]), "unknown fields; did you mean 'mode' instead of 'modes'"),
        (dict(split=["train"]), r"split must be one of .* got \['train'\]"),
        (dict(split=True), "split must be one of .* got True"),
        (dict(source={"text": "s"}), "source must be a non-empty text"),
    ],
)
def test_types_of_json_lines(tmp_path, change, message):
    path = lines(tmp_path / "a.jsonl", {"id": "1", "source": "s", "target": "t"} | change)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 1: .*{message}"):
        read_jsonl(path)


def test_null_is_absent_in_json_lines(tmp_path):
    line = {"id": 1, "source": "s", "target": "t", "mode": None, "split": None, "references": None}
    (record,) = read_jsonl(lines(tmp_path / "a.jsonl", line)).records
    assert record.targets == (Target("t"),) and record.further_references == ()


def test_brackets_without_end_are_a_broken_line(tmp_path):
    write(tmp_path / "a.jsonl", "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: needed a JSON object"):
        read_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl line 1: must be one JSON object"):
        read_items(tmp_path / "a.jsonl")


def test_records_and_prompts_of_ones_own_program():
    fine = dict(id="1", source="s", targets=(Target("t", "m"),))
    targets = [(Target(HALF),), (Target("t", HALF),)]
    for change in (
        dict(id=HALF),
        dict(source=HALF),
        *(dict(targets=t) for t in targets),
        dict(further_references=targets[0]),
    ):
        with pytest.raises(ValueError, match=HELD):
            Record(**fine | change)
    for prompt in (lambda: Prompt("{source}" + HALF), lambda: Instruction(HALF)):
        with pytest.raises(ValueError, match="must be Unicode"):
            prompt()


def test_names_of_files_that_are_no_utf8(tmp_path):
    fake_stamps.write_stamps(tmp_path)
    name = os.fsdecode(b"ours\xff")
    try:
        write(tmp_path / f"animals/{name}.txt", "A bear.\n")
        write(tmp_path / f"animals/{name}.png", png())
    except OSError:
        pytest.skip("names of files must be UTF-8 here")
    corpus = read_stamps(tmp_path, "pictures")
    assert ("animals/ours\\udcff", "a file name that is not UTF-8") in corpus.left_out and len(corpus.records) == 92
    assert Corpus(name, corpus.records).name == "ours\\udcff"
