"""Checks and changes of the splits of a corpus."""

import json

import pytest

from experiments.common.splits import with_test_split_of
from experiments.translation.config import Config
from experiments.translation.task import load_data
from mcl_jax.data import Corpus, Record, Target


def corpus(name, **splits):
    records = [
        Record(str(i), f"{name} {split} {i}", (Target("a", f"mode of {name}"),), split=split)
        for split, ids in splits.items()
        for i in ids
    ]
    return Corpus(name, tuple(records))


def test_the_test_split_of_another_corpus_takes_the_place_of_the_own_one():
    own, other = corpus("own", train=[1, 2], validation=[3], test=[4]), corpus("other", train=[5], test=[1, 6, 7])
    found = with_test_split_of(own, other)
    assert (found.name, found.counts()) == ("own", {"train": 2, "validation": 1, "test": 3})
    assert [record.id for record in found.split("test")] == ["other/1", "other/6", "other/7"]
    assert {record.source for record in found.split("test")} == {"other test 1", "other test 6", "other test 7"}
    assert found.modes == ("mode of other", "mode of own")
    whole = with_test_split_of(own, corpus("whole", train=[1, 8]))
    assert [record.id for record in whole.split("test")] == ["whole/1", "whole/8"]
    with pytest.raises(ValueError, match="corpus 'empty' has no records in 'test'"):
        with_test_split_of(own, corpus("empty", train=[1], validation=[2]))


def test_text_is_tested_on_another_file(tmp_path, monkeypatch):
    for name in ("own", "other"):
        lines = [
            {"id": str(i), "source": f"{name} {i}", "target": "t", "split": split}
            for i, split in enumerate(["train"] * 8 + ["validation", "test"])
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr("experiments.translation.task._check_base", lambda config: None)
    config = Config.from_options(workdir=tmp_path, data=tmp_path / "own.jsonl", test_data=tmp_path / "other.jsonl")
    found = load_data(config)
    assert [record.source for record in found.split("test")] == ["other 9"]
    assert found.counts() == {"train": 8, "validation": 1, "test": 1}


def test_other_text_without_splits_is_used_as_a_whole(tmp_path, monkeypatch, capsys):
    """Without them, a hash of its id would decide for each record."""
    monkeypatch.setattr("experiments.translation.task._check_base", lambda config: None)
    line = lambda name, i: json.dumps({"id": str(i), "source": f"{name} {i}", "target": "t"}) + "\n"
    for name in ("own", "other"):
        (tmp_path / f"{name}.jsonl").write_text("".join(line(name, i) for i in range(97)))
        (tmp_path / name).mkdir()
        for ending in ("en", "de"):
            (tmp_path / name / f"train.{ending}").write_text("".join(f"{name} {i}\n" for i in range(97)))
    for own, other in [("own.jsonl", "other.jsonl"), ("own", "other"), ("own.jsonl", "other")]:
        config = Config.from_options(workdir=tmp_path, data=tmp_path / own, test_data=tmp_path / other)
        tested = load_data(config).split("test")
        assert sorted(record.source for record in tested) == sorted(f"other {i}" for i in range(97))
        assert "has no splits, so all its 97 records are used for testing" in capsys.readouterr().out


def test_a_table_gets_the_splits_that_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.translation.task._check_base", lambda config: None)
    lines = [f"source {n // 2},t{n},m{n % 2}\n" for n in range(120)]
    (tmp_path / "a.csv").write_text("q,a,kind\n" + "".join(lines))
    (tmp_path / "b.csv").write_text("q,a,kind\nother,t,m\n")
    options = dict(workdir=tmp_path / "run", data=tmp_path / "a.csv", columns=("source=q", "targets=a", "mode=kind"))
    found = load_data(Config.from_options(**options))
    counts = found.counts()
    assert sum(counts.values()) == 60 and min(counts.values()) >= 1 and found.modes == ("m0", "m1")
    said = capsys.readouterr().out
    assert f"'a.csv' has no test split. {counts['test']} of its 60 training records are used for it" in said
    assert "'a.csv' has no validation split." in said
    assert load_data(Config.from_options(**options, seed=7)) == found
    assert load_data(Config.from_options(**options, split_seed=7)).split("test") != found.split("test")
    capsys.readouterr()
    elsewhere = load_data(Config.from_options(**options, test_data=tmp_path / "b.csv"))
    assert [record.source for record in elsewhere.split("test")] == ["other"]
    said = capsys.readouterr().out
    assert "'b.csv' has no splits, so all its 1 records are used for testing" in said and "no test split" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(columns=("source=q", "targets=a")), "--columns and --splits need --data"),
        (dict(data="a.csv", splits=("test=dev",)), "--splits needs --columns"),
        (dict(data="a.csv", columns=("source=q",)), "--columns needs targets=NAME"),
    ],
)
def test_columns_that_will_not_do_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Config.from_options(workdir=tmp_path, **options)
