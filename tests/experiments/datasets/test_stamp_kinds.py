"""The kind of thing that a stamp shows, by its folder."""

import fake_stamps
import pytest

from experiments.datasets import load_captions
from experiments.datasets.stamp_kinds import KINDS, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("animals/birds/cartoon/owl", "A bird."),
        ("animals/mammals/bears/toys/teddy", "A mammal."),
        ("animals/emu_desc_es", "An animal."),
        ("food/fruitcake", "Food."),
        ("animals", None),
        ("symbols/chess/pawn", None),
    ],
)
def test_the_nearest_folder_says_the_kind(name, kind):
    assert kind_of(name) == kind


def test_kinds_are_short_sentences():
    assert all(kind[0].isupper() and kind.endswith(".") and len(kind.split()) < 5 for kind in KINDS.values())


def test_kinds_are_answers_only_if_they_are_asked_for(tmp_path):
    fake_stamps.write_stamps(tmp_path / "stamps")
    load = lambda *modes: load_captions("stamps/pictures", tmp_path / "data", tmp_path / "stamps", modes=modes)
    assert "kind" not in load().modes
    records = load("en", "kind").records
    assert records and all(record.id.startswith("animals/") for record in records)
    assert {tuple(target.mode for target in record.targets) for record in records} == {("en", "kind")}
    assert {record.targets[1].text for record in records} == {"An animal."}
