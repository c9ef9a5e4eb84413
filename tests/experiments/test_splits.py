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
    with pytest.raises(ValueError, match="corpus 'empty' has no records in 'test'"):
        with_test_split_of(own, corpus("empty", train=[1]))


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
