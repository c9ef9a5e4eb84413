"""What kind of thing a stamp shows, by its folder: a second right answer in English to what is in the picture.

"A seagull." and "A bird." are both right for animals/birds/seagull.png. Nothing in the picture tells whether the name
or the kind is wanted, and an English model knows the words of both.
"""

import dataclasses

from mcl_jax.data.records import Corpus, Record, Target

KIND = "kind"  # the mode of these answers
KINDS = {  # of a folder and those below it, unless these have their own
    "animals": "An animal.",
    "animals/amphibians": "An amphibian.",
    "animals/birds": "A bird.",
    "animals/dinosaur": "A dinosaur.",
    "animals/fish": "A fish.",
    "animals/insects": "An insect.",
    "animals/lizards": "A reptile.",
    "animals/mammals": "A mammal.",
    "animals/marsupials": "A marsupial.",
    "animals/shellfish": "A shellfish.",
    "clothes": "A piece of clothing.",
    "food": "Food.",
    "food/dessert": "A dessert.",
    "food/fruit": "A fruit.",
    "food/nuts": "A nut.",
    "food/spices": "A spice.",
    "food/vegetables": "A vegetable.",
    "hobbies/music": "A musical instrument.",
    "household": "A household item.",
    "household/arttools": "A tool.",
    "household/dishes": "A kitchen item.",
    "household/tools": "A tool.",
    "medical": "A medical item.",
    "military/vehicles": "A vehicle.",
    "naturalforces": "A force of nature.",
    "people": "A person.",
    "plants": "A plant.",
    "plants/flowers": "A flower.",
    "plants/mushrooms": "A mushroom.",
    "plants/trees": "A tree.",
    "seasonal/christmas": "Something for Christmas.",
    "seasonal/easter": "Something for Easter.",
    "seasonal/halloween": "Something for Halloween.",
    "seasonal/hanukkah": "Something for Hanukkah.",
    "seasonal/newyears": "Something for New Year.",
    "space": "Something in space.",
    "sports": "Sports equipment.",
    "town/flags": "A flag.",
    "town/houses": "A building.",
    "town/monuments": "A monument.",
    "town/roadsigns": "A road sign.",
    "vehicles": "A vehicle.",
}


def kind_of(name: str) -> str | None:
    """Returns the kind of the stamp at a path such as "animals/birds/seagull"; None if its folder says none."""
    folders = name.split("/")[:-1]
    known = ("/".join(folders[:n]) for n in range(len(folders), 0, -1))
    return next((KINDS[folder] for folder in known if folder in KINDS), None)


def with_kinds(corpus: Corpus) -> Corpus:
    """Adds an answer of the mode "kind" to each record of a corpus of stamps whose folder says one.

    A clip's kind is that of its stamp. A stamp whose caption is its kind ("A bird.") has both answers alike.
    """
    return dataclasses.replace(corpus, records=tuple(map(_with_kind, corpus.records)))


def _with_kind(record: Record) -> Record:
    kind = kind_of(record.id)
    return record if kind is None else dataclasses.replace(record, targets=(*record.targets, Target(kind, KIND)))
