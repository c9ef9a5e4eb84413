"""answers.html: the answers of several runs side by side, and that no text becomes a tag."""

import json

import made_up_run as made_up
import numpy as np
import pytest
from test_page import Parsed

from experiments.common import page
from experiments.compare import answers
from experiments.compare.__main__ import Config, main
from experiments.compare.runs import FinishedRun, read
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

ANSWERED = 61  # sources, of which the samples are evenly spread
METRICS = {"oracle_bleu": 41.5, "div_2": 0.5}


def made(folder, seed, dropped=()):
    """A finished run; its scores of source n are n + seed/8."""
    methods = to_json(made_up.results(), "results")["methods"]
    samples = methods["mcl"]["samples"][:20]
    methods["mcl"]["samples"] = [sample for place, sample in enumerate(samples) if place not in dropped]
    for scores in methods.values():
        scores |= METRICS | {"per_item": {"oracle_bleu": [n + seed / 8 for n in range(ANSWERED)]}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"seed": seed, "workdir": str(folder)}))
    (folder / "results.json").write_text(json.dumps({"methods": methods}))
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    base = tmp_path_factory.mktemp("compared")
    runs = [made(base / f"r{seed}", seed) for seed in (0, 1, 3)]
    main(Config(tuple(runs), base / "out", names=("<b>one</b>",) * 3))
    html = (base / "out" / "answers.html").read_text("utf-8")
    return Parsed(html), html, read(runs[0]).methods["mcl"]["samples"]


def test_each_source_has_the_answers_of_all_runs_side_by_side(found):
    page, _, samples = found
    assert len(page.tables) == len(page.all("article")) == 20
    places = np.linspace(0, ANSWERED - 1, 20).round().astype(int)
    for number, (table, sample) in enumerate(zip(page.tables, samples, strict=True)):
        assert table[0] == ["", "", "<b>one</b>, seed 0", "<b>one</b>, seed 1", "<b>one</b>, seed 3"]
        assert len(table) == 1 + sum(made_up.METHODS.values()) + len(made_up.METHODS)  # and a row of scores each
        assert table[1][:2] == ["LoRA-MCL", "0"]
        for k, (text, nats) in enumerate(zip(sample["answers"]["mcl"], sample["log_likelihoods"]["mcl"], strict=True)):
            assert table[1 + k][-3:] == [f"{text} | {nats:.3f}"] * 3
        assert table[4] == ["oracle_bleu", *(f"{places[number] + seed / 8:.3f}" for seed in (0, 1, 3))]


def test_texts_stay_texts(found):
    page, html, samples = found
    assert not page.all("script") and not page.all("img") and "{{" in html
    shown = "".join(page.texts)
    for sample in samples:
        assert all(reference["text"] in shown for reference in sample["references"]) and sample["source"] in shown


def test_images_and_clips_are_those_of_the_runs(tmp_path):
    """The second run has kept them: its page wrote them."""
    runs = [read(made(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    page.write(Run(tmp_path / "b", {}), {"methods": runs[1].methods}, made_up.records(), made_up.COLUMNS)
    answers.write(tmp_path / "answers.html", runs, ["a", "b"], [])
    shown = Parsed((tmp_path / "answers.html").read_text("utf-8"))
    (image,), (clip,) = shown.all("img"), shown.all("audio")
    assert image["src"].startswith("data:image/jpeg;base64,") and image["alt"] == made_up.NAMES[0]
    assert clip["src"].startswith("data:audio/flac;base64,")
    text = "".join(shown.texts)
    assert "no such file" in text  # of the lost one


def test_only_sources_that_all_runs_answered_and_with_the_same_text(tmp_path):
    a, b = read(made(tmp_path / "a", 0, dropped=(2,))), read(made(tmp_path / "b", 1, dropped=(3, 5)))
    b.methods["mcl"]["samples"][0]["source"] = "another"
    del b.methods["moe/tta"]
    assert answers.write(tmp_path / "answers.html", [a, b], ["a", "b"], ["oracle_bleu"]) == 16
    assert "n/a" not in (tmp_path / "answers.html").read_text("utf-8")
    nothing = FinishedRun(tmp_path, {}, {"mcl": {"samples": []}})
    with pytest.raises(ValueError, match="the runs have answered no source in common"):
        answers.write(tmp_path / "answers.html", [a, nothing], ["a", "b"], [])
