"""The language of captions of a few words; measured on all of the stamps in test_stamps (slow)."""

import pytest

from experiments.datasets import caption_language

CAPTIONS = {
    "en": [
        "A cat.",
        "Some cherries.",
        "The letter y.",
        "Sweet yellow corn.",
        "Knitting.",
        "Two.",
        "A walnut sailboat.",
        "",
    ],
    "fr": [
        "Un chat.",
        "Des cerises.",
        "La lettre y.",
        "Du maïs sucré.",
        "Du tricot.",
        "Deux.",
        "L’horloge",
        "Un œil !",
    ],
    "es": [
        "Un gato.",
        "Algunas cerezas.",
        "La letra y.",
        "Maíz dulce.",
        "¡Un globo!",
        "Dos.",
        "Un camión.",
        "Una flor.",
    ],
}


@pytest.mark.parametrize(("language", "text"), [(name, text) for name, texts in CAPTIONS.items() for text in texts])
def test_short_captions(language, text):
    assert caption_language(text) == language
    assert caption_language(text.upper()) == language


def test_only_the_languages_asked_for():
    assert caption_language("Un tigre.", ("en", "fr")) == "fr"
    assert caption_language("Un tigre.", ("en", "es")) == "es"
    assert caption_language("xyz", ("fr", "en")) == "fr"  # no evidence: the first
