"""The head noun of captions, and answers that name it."""

import numpy as np
import pytest

from mcl_jax import metrics

HEADS = {
    "A dog.": "dog",
    "Cathedral.": "cathedral",
    "Two wild boars.": "boars",
    "A baby sheep (a lamb).": "sheep",
    "A Seville orange, also called a bitter orange.": "orange",
    "A floppy-eared bunny.": "bunny",
    "A plumber’s wrench.": "wrench",
    "A “Stop” sign. Stop here.": "sign",
    "“School Crossing”.": "crossing",
    "Mars—the red planet.": "mars",
    "A tower with a red flag.": "tower",
    "A rake for sweeping leaves.": "rake",
    "Down at the docks.": "docks",
    "A candy cane is a traditional treat.": "cane",
    "It's a cep, or they are two ceps?": "cep",
    "A red and white anemone flower.": "flower",
    "A man and a dog on a hill": "man",
    # Quantities and pictures.
    "A bunch of grapes.": "grapes",
    "A pair of closed scissors.": "scissors",
    "This is a picture of a house": "house",
    "A pair.": "pair",
    "A model of the earth.": "model",
    # Participles.
    "A woman dancing in a ball gown.": "woman",
    "A chick hatched from an egg.": "chick",
    "A tall building in a city": "building",
    "A painting of a house": "painting",
    "A big gathering of birds": "gathering",
    "Swimming in a lake": "swimming",
    # No words, or only determiners.
    "": None,
    " ?! ": None,
    "It is this.": None,
}


@pytest.mark.parametrize(("caption", "noun"), HEADS.items())
def test_head_noun(caption, noun):
    assert metrics.head_noun(caption) == noun


def test_one_of_the_answers_must_have_the_noun_of_a_reference_as_a_word():
    references = [["A rabbit.", "A white bunny."], ["Two wild boars."], ["A berry."], ["A cat."], ["!"]]
    answers = [["A dog.", "The BUNNY."], ["a boar", ""], ["red berries", "-"], ["a cathedral", "cattle"], ["a", "b"]]
    score = metrics.noun_named(answers, references)
    np.testing.assert_array_equal(score.per_item, [1, 1, 1, 0, np.nan])
    assert score.mean == 0.75 and score.low < 0.75 < score.high
    assert metrics.noun_named([["Two foxes on a bench."]], [["A fox."]]).mean == 1
    assert metrics.noun_named([["A white cat."]], [["A white dog."]]).mean == 0


def test_nouns_that_training_captions_have():
    references = [["A fox."], ["A bear.", "A panda."], ["An owl."], ["!"]]
    assert metrics.seen_in(references, ["Two foxes.", "the panda's cub", "A panda", "howl"]).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert not metrics.seen_in(references, []).any()
