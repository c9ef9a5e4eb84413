"""Openclipart: a small folder with the traps of the real one."""

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import openclipart
from experiments.datasets.openclipart import caption, read_openclipart

DRAWING = """<?xml version="1.0"?><svg><title>no</title><metadata><cc:Work rdf:about=""><dc:title>{}</dc:title>
<dc:creator><cc:Agent><dc:title>Someone</dc:title></cc:Agent></dc:creator></cc:Work></metadata></svg>"""
TITLES = {
    "animals/mammals/goat_01": "goat",
    "animals/birds/penguin_tux": "A Penguin &amp; friend_02 (cartoon)",
    "food/fruit/cherries": "Cherries",
    "food/no_title": "",
    "tools/untold": "What this tool does is hard to tell",
    "tools/hammer": "hammer.svg",
    "tools/no_pixels": "saw",
    "buildings/poster": "poster",
    "recreation/games/cards/ace": "ace",
    "computer/icons/folder": "folder",
    **{f"people/nr{i}": "Clipart by Someone" for i in range(5)},
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(openclipart, "PIXELS_MOST", 100)
    pixels, titles = tmp_path / "png", tmp_path / "svg"
    for name, title in TITLES.items():
        for folder in (pixels, titles):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (titles / f"{name}.svg").write_text(DRAWING.format(title))
        size = (7, 11) if name != "buildings/poster" else (10, 11)
        if name != "tools/no_pixels":
            Image.fromarray(np.full((*size, 3), len(name), np.uint8)).save(pixels / f"{name}.png")
    return pixels, titles


def test_drawings_that_show_a_thing(folders):
    corpus = read_openclipart(*folders)
    assert {r.id: [(t.text, t.mode) for t in r.targets] for r in corpus.records} == {
        "animals/birds/penguin_tux": [("A penguin friend.", "en")],
        "animals/mammals/goat_01": [("A goat.", "en")],
        "food/fruit/cherries": [("Cherries.", "en")],
        "tools/hammer": [("A hammer.", "en")],
    }
    assert {r.split for r in corpus.records} == {"train"}
    assert corpus.records[1].media.read().shape == (7, 11, 3) and (corpus.records[1].media.read() == 23).all()


CAPTIONS = {
    "owl": "An owl.",
    "Gila monster": "A Gila monster.",
    "glass": "A glass.",
    "the sea": "A sea.",
    "scissors": "Scissors.",
    "a cat": "A cat.",
    "Afghan hound": "An Afghan hound.",
    "a": "An a.",
}


def test_captions():
    assert {noun: caption(noun) for noun in CAPTIONS} == CAPTIONS


def test_no_drawings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"svg must hold NAME\.svg with titles, and .*png NAME\.png"):
        read_openclipart(tmp_path / "png", tmp_path / "svg")
