"""Hints of the mode: which sources get them, and that their answers follow."""

import pytest

from experiments.datasets.hints import with_hints
from experiments.translation.config import Config
from experiments.translation.task import load_data
from mcl_jax.data import Corpus, Record, Target

MODES = ("de", "es", "fr")
CORPUS = Corpus(
    "three",
    tuple(
        Record(str(i), f"source {i}", tuple(Target(f"{mode} {i}", mode) for mode in MODES[: 1 + i % 3]))
        for i in range(599)
    ),
)


def test_hinted_sources_have_the_answers_of_their_mode():
    found = with_hints(CORPUS, 0.3)
    hinted = 0
    for before, after in zip(CORPUS.records, found.records, strict=True):
        if before == after:
            continue
        hinted += 1
        (target,) = after.targets
        assert target in before.targets and after.source == f"{before.source} ({target.mode})"
        assert len(before.targets) > 1 and after.id == before.id
    several = sum(len(record.targets) > 1 for record in CORPUS.records)
    assert 0.2 < hinted / several < 0.4
    given = [record.targets[0].mode for record in found.records if record.source.endswith(")")]
    assert min(map(given.count, MODES)) > 20


def test_the_share_and_the_seed_decide():
    sources = lambda *options: [record.source for record in with_hints(CORPUS, *options).records]
    assert sources(0.0) == [record.source for record in CORPUS.records]
    assert sum(source.endswith(")") for source in sources(1.0)) == sum(len(r.targets) > 1 for r in CORPUS.records)
    assert sources(0.5, 1) == sources(0.5, 1) != sources(0.5, 2)


def test_text_without_modes_is_refused():
    one = Corpus("one", (Record("0", "a", (Target("b", "de"),)), Record("1", "c", (Target("d"), Target("e")))))
    with pytest.raises(ValueError, match="hints need sources with answers in two modes or more, and 'one' has none"):
        with_hints(one, 0.5)


def test_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.translation.task._check_base", lambda config: None)
    rows = [f"{'train' if i < 40 else 'test' if i < 50 else 'validation'},s{i},a{i},b{i}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["split,q,x,y", *rows]))
    options = dict(
        workdir=tmp_path / "run", data=tmp_path / "a.csv", columns=("source=q", "targets=x,y", "split=split")
    )
    found = load_data(Config.from_options(**options, hints=0.5)).records
    assert 10 < sum(record.source.endswith((" (x)", " (y)")) for record in found) < 50
    with pytest.raises(ValueError, match=r"--hints must be from 0 to 1, got 1\.5"):
        Config.from_options(**options, hints=1.5)
