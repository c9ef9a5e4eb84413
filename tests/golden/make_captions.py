"""Makes captions.json: captions of Tux Paint's stamps scored by pycocoevalcap, and sentences tokenized by its Java.

Run in an environment of its own, with pycocoevalcap==1.2 (--no-deps is enough), numpy>=2 and Java, on the stamps of
Debian's tuxpaint-stamps-default (`apt-get download`, `dpkg -x`; captions under GPL-2); takes a minute:

    python tests/golden/make_captions.py FOLDER/usr/share/tuxpaint/stamps

The file holds
    answers      41 items of 3 answers: captions that were changed at random, and the awkward ones of AWKWARD
    references   of each item, 1 to 5: the caption, and captions of stamps in the same folder that share words with it
    per_answer   bleu_1, bleu_4, rouge_l, cider_d and meteor, each [3][41]
    meteor_jar   what METEOR's jar counted, [41][3] lines of 23 numbers
    corpus       bleu_1, bleu_4 and meteor of all first, second and third answers, each [3]
    lines        SENTENCES, and captions in six languages, as the lines of one file
    tokenized    what PTBTokenizer makes of each
"""

import json
import sys
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

AWKWARD = [
    ["", "   ", "\t"],
    ["...", "?!", "' \" -"],
    ["Cat", "cat cat cat cat cat cat", "A cat."],
    ["3 cats, 10.50 each", "1/2 of a cat's tail", "12,000 cats at 10:30"],
    ['A "red" cat (small)', "A well-known jack-o-lantern", "It's the cats' cat-flap, isn't it?"],
    ["Un gâteau à l'érable", "L’été, c'est déjà fini", "El niño pequeño."],
]
SENTENCES = """
    A cat (small) isn't here. Don't! He's, I'm, they'll, we've, you're: CAN'T, cannot, gonna go.
    It’s O’Brien’s dog; the dogs’ bowl isn’t “full” – ‘yet’ — they don’t mind… or do they?
    "Hello," he said. 'Tis the season, 'twas the '90s, rock 'n' roll; fish'n'chips and goin' home 'til 5
    c'est l'eau qu'il n'a jamais, aujourd'hui d'accord, grand'mère et grand’mère, j'ai lorsqu'un ami s'il
    $5.99 or US$5, £1.50, 5€, 50¢, 10%, #1, ½ price, 1 1/2 cups, 3.5-inch, 6.5 cm, 10-year-old's, 1990s
    At 10:30am or 3 p.m. on 12/25/2010, -5° to +30°C, 1,000,000 people; 555-1234 or (555) 555-1234 or 1-800-555-1234
    Mr. Smith, Dr. No, St. John's Ave. at No. 5, U.S. troops in the U.S.A., J. R. Brown vs. Inc. and etc., approx. 5 lb.
    Vitamin C. The letter A. This one; J. Brown. he
    AT&T, R&B, M&M's, and/or, w/ fries, C++, 24/7, T-shirt, A-B-C, 7-Up, node.js, a.k.a. foo.bar, end.The start, Stop!Go
    www.example.org, http://a.org/b?c=d, me@b.org, @home #tag file1.txt <b>bold</b> <unk> a_b __ * ** = + ~ ^ | \\ / < >
    :-) :) ;) =( :P <3 ^_^ [sic] {x} (s) person(s) ... .. . -- --- ----- !! ?! ?? ,, ;: ``x'' « oui » ¿Qué? ¡Hola!
    red,white-striped cat., dog.; Cap'n Hook's nat'l s'mores ol' Dunkin' y'all ma'am Qur'an Hawai'i pro- and anti-
    crème brûlée, Ångström, naïve, Straße, Ελλάδα, Россия, x² + y³ = z, 20° C, ™ ® ©, a🙂b, soft\u00adly, cafe\u0301
    The letter A.
    The letter B.

    The next line is blank, and one letter and a period came before: The letter c.
    """
LANGUAGES = ("en", "fr", "es", "de", "pl", "el")


def captions_of(folder: Path) -> list[dict[str, str]]:
    """Of each stamp, its captions by language, and its folder's name."""
    stamps = []
    for path in sorted(folder.rglob("*.txt")):
        first, *others = path.read_text(encoding="utf-8").splitlines()
        pairs = (line.split(".utf8=", 1) for line in others if ".utf8=" in line)
        stamps.append({"en": first.strip(), "folder": path.parent.name, **{name: text.strip() for name, text in pairs}})
    return [stamp for stamp in stamps if stamp["en"]]


def changed(caption: str, vocabulary: list[str], rng: np.random.Generator) -> str:
    """The caption with a word left out, put in, exchanged or repeated, up to three times."""
    words = caption.split()
    for change in rng.integers(4, size=rng.integers(4)):
        at = int(rng.integers(len(words)))
        if change == 0 and len(words) > 1:
            del words[at]
        elif change == 1:
            words.insert(at, str(rng.choice(vocabulary)))
        elif change == 2:
            words[at] = str(rng.choice(vocabulary))
        else:
            words.insert(at, words[at])
    return " ".join(words)


def items_of(stamps: list[dict[str, str]], rng: np.random.Generator) -> tuple[list[list[str]], list[list[str]]]:
    """(answers, references) of 35 stamps and of AWKWARD."""
    vocabulary = sorted({word for stamp in stamps for word in stamp["en"].split()})
    answers, references = [], []
    for n in rng.choice(len(stamps), size=35 + len(AWKWARD), replace=False):
        caption = stamps[n]["en"]
        words = set(caption.split())
        near = sorted({s["en"] for s in stamps if s["folder"] == stamps[n]["folder"]} - {caption})
        near.sort(key=lambda text: -len(words & set(text.split())))
        references.append([caption, *near[: rng.integers(5)]])
        answers.append([changed(str(rng.choice(references[-1])), vocabulary, rng) for _ in range(3)])
    answers[-len(AWKWARD) :] = AWKWARD
    for texts, awkward in zip(references[-len(AWKWARD) :], AWKWARD, strict=True):
        texts[-1] = next((text for text in awkward if text.strip(" .?!'\"-\t")), texts[-1])
    return answers, references


def tokenized(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    return PTBTokenizer().tokenize({n: [{"caption": text} for text in texts] for n, texts in captions.items()})


def main(folder: Path) -> None:
    rng = np.random.default_rng(1235)
    stamps = captions_of(folder)
    answers, references = items_of(stamps, rng)
    golden = {"answers": answers, "references": references, "per_answer": {}, "corpus": {}}
    golden["meteor_jar"] = [[] for _ in answers]

    right = tokenized(dict(enumerate(references)))
    scorer = Meteor()
    for k in range(3):
        given = tokenized({n: [texts[k]] for n, texts in enumerate(answers)})
        corpus, each = Bleu(4).compute_score(right, given, verbose=0)
        meteor, meteors = scorer.compute_score(right, given)
        values = {
            "bleu_1": each[0],
            "bleu_4": each[3],
            "rouge_l": Rouge().compute_score(right, given)[1],
            "cider_d": Cider().compute_score(right, given)[1],
            "meteor": meteors,
        }
        for lines, (n, (text,)) in zip(golden["meteor_jar"], given.items(), strict=True):
            lines.append(scorer._stat(text, right[n]))
        for name, value in values.items():
            golden["per_answer"].setdefault(name, []).append([round(float(v), 9) for v in value])
        for name, value in {"bleu_1": corpus[0], "bleu_4": corpus[3], "meteor": meteor}.items():
            golden["corpus"].setdefault(name, []).append(round(float(value), 9))

    golden["lines"] = [line.strip() for line in SENTENCES.strip().splitlines()]
    for language in LANGUAGES:
        golden["lines"] += sorted({stamp[language] for stamp in stamps if language in stamp})[::40]
    golden["tokenized"] = [
        texts[0] for texts in tokenized({n: [text] for n, text in enumerate(golden["lines"])}).values()
    ]
    path = Path(__file__).with_name("captions.json")
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
