"""Makes captions.json: captions scored by pycocoevalcap, and sentences tokenized by its Java; all texts are ours.

Run in an environment of its own, with pycocoevalcap==1.2 (--no-deps is enough), numpy>=2 and Java; takes a minute:

    python tests/golden/make_captions.py

The file holds
    answers      41 items of 3 answers: captions that were changed at random, and the awkward ones of AWKWARD
    references   of each item, 1 to 5: the caption, and those of CAPTIONS that share most words with it
    per_answer   bleu_1, bleu_4, rouge_l, cider_d and meteor, each [3][41]
    meteor_jar   what METEOR's jar counted, [41][3] lines of 23 numbers
    corpus       bleu_1, bleu_4 and meteor of all first, second and third answers, each [3]
    lines        SENTENCES, CAPTIONS and FOREIGN, as the lines of one file
    tokenized    what PTBTokenizer makes of each
"""

import json
from pathlib import Path
from typing import Any

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
    Platform A.
    Platform B.

    The next line is blank, and one letter and a period came before: Platform c.
    """
CAPTIONS = """
    Our dog.
    Two dogs asleep
    A brown dog runs along the beach.
    A brown dog with a stick in its mouth runs out of the sea.
    Three dogs run after one ball.
    A small white dog sleeps on the kitchen floor beside its bowl.
    The dog's bowl is empty again!
    A dog and a cat sleep on one bed.
    A grey cat looks out of the kitchen window.
    A cat in the window
    A cat climbs the old apple tree to look at two young birds.
    The cat doesn't want to come down from the tree.
    Birds sit on a wire above the empty street.
    Two birds drink from a bowl of water in the garden.
    A bird's nest with 4 eggs
    Somebody feeds bread to the birds in the park.
    Her horse
    A horse pulls an old cart along a country road.
    Two horses stand under a tree in the rain.
    A girl rides a brown horse on the beach at sunset.
    A girl on a red bicycle waits at the crossing.
    A red bicycle leans against the wall of a bakery.
    A man carries his bicycle down the steps of the station.
    An old man reads a newspaper on a bench in the park.
    An old man and a boy fish from the end of the pier.
    A boy throws a stick into the river for his dog.
    A boy in a yellow coat jumps into a puddle.
    The boy's yellow coat hangs behind the kitchen door.
    A woman in a yellow hat sells fish at the market.
    A woman buys apples and pears at the market.
    Apples and pears: 3 for $2
    A bowl of red and green apples on a wooden table
    A half-eaten apple lies on a newspaper.
    A table for two, with bread, cheese and a bottle of wine
    A loaf of bread and a knife on a wooden board
    Somebody cuts a birthday cake with a bread knife.
    A birthday cake with 10 candles
    Candles on a table
    A candle burns in the window of a small stone house.
    A stone house at the end of a country road
    A white house with a red door and a very small garden
    The red door is open, isn't it?
    The door of an old church
    An old stone bridge over a quiet river
    A train crosses the bridge over the river.
    The 8:15 train leaves the station in the rain.
    People wait for a late train at the station.
    An empty station at night
    A street market at night, full of people
    A wet street; the lights of cars and of shop windows
    A yellow car is parked in front of the bakery.
    The bakery's window (still closed)
    Blue boats
    Two small boats lie on the beach.
    A fishing boat comes home, and the birds follow it.
    A sailing boat on a quiet sea at sunset
    The sun sets behind the sea, red and very large.
    Rain falls on the sea.
    Snow-covered hills behind a small town
    A town on a hill, its church above all other houses
    """
FOREIGN = """
    Un chien court après l'eau qui s'en va.
    L’hiver, la neige couvre l’église d’un village.
    Une fenêtre ouverte sur la forêt…
    Qu'est-ce qu'elle a cueilli aujourd'hui ? Des mûres, là-bas !
    Le garçon a déjà mangé « son » gâteau de Noël.
    Jusqu'à l'aube, quelqu'un l'attend près du port.
    C'est l'été : 3 bateaux à voile s'éloignent.
    Un bœuf, une brebis, et l'âne d'à côté
    Rendez-vous à 8 h 30, gare de l'Est (quai nº 2)
    Il n'y a plus d'œufs, n'est-ce pas ?
    ¿Dónde está el niño? ¡Allí, detrás del árbol!
    Una señora compra pan y aceitunas; paga con 1,50 €.
    El camión rojo subió la montaña, despacio.
    Dos pingüinos pequeños
    Mañana habrá tormenta en el océano.
    Un jardín «secreto» con un limonero
    Él tocó la canción más triste: nadie aplaudió.
    La cigüeña vuelve al campanario en febrero
    ¡Qué frío!
    Un ratón, 2 gatos y ningún queso…
    L'uomo dell'isola pesca all'alba.
    Un'amica c'è già; un'altra arriverà più tardi.
    Dov'è l'ombrello? Nell'ingresso, perché piove.
    La città d'inverno: nebbia e caffè
    Quest'anno le ciliegie costano 4,80 € al chilo
    Mezz'ora dopo, l'autobus non c'era ancora.
    Un po' di sale, un po' d'olio e del pane
    Il gatto s'è addormentato sull'armadio.
    “Così è la vita”, disse il nonno
    Le barche blu tornano, finalmente!
    Ein Mädchen füttert die Vögel im Schnee.
    Die Straße ist naß, die Lichter spiegeln sich.
    „Wo ist der Schlüssel?“, fragt er.
    Das Café am Fluß – geschlossen bis 5. März
    Ein 3-jähriger Hund, z. B. ein Dackel, schläft.
    Wie geht's dem Kätzchen?
    Äpfel, Öl und Übermut
    Über den Dächern der Stadt steigt Rauch auf …
    Ein großer grüner Bus hält an der Brücke
    Zwei Männer tragen ein Klavier die Treppe hinauf!
    Dziewczynka je żółtą gruszkę.
    Święta: śnieg, choinka i barszcz
    Łódka płynie powoli przez jezioro.
    Gdzie są klucze? Na stole, obok książki.
    Źrebię pije wodę ze strumienia
    „Ćma” leci do światła…
    Starszy pan czyta gazetę w parku.
    Pociąg o 7:45 już odjechał!
    Pół chleba i dwa jajka
    Kot śpi – pies pilnuje domu.
    Ένα καράβι φεύγει από το νησί.
    Η γάτα κοιμάται στον ήλιο
    Δύο παιδιά παίζουν μπάλα στην πλατεία!
    Πού είναι το ψωμί; Πάνω στο τραπέζι.
    «Καλημέρα», είπε ο γείτονας.
    Ο παππούς ψαρεύει κάθε πρωί, στις 6:30.
    Ελιές, τυρί και λίγο λάδι
    Το τρένο άργησε· βρέχει ακόμα.
    Χιόνι στο βουνό…
    Ένας σκύλος τρέχει δίπλα στη θάλασσα
    """


def lines_of(texts: str) -> list[str]:
    return [line.strip() for line in texts.strip().splitlines()]


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


def items_of(captions: list[str], rng: np.random.Generator) -> tuple[list[list[str]], list[list[str]]]:
    """(answers, references) of 35 captions and of AWKWARD."""
    vocabulary = sorted({word for caption in captions for word in caption.split()})
    answers, references = [], []
    for n in rng.choice(len(captions), size=35 + len(AWKWARD), replace=False):
        words = set(captions[n].split())
        near = sorted(captions[:n] + captions[n + 1 :], key=lambda text: -len(words & set(text.split())))
        references.append([captions[n], *near[: rng.integers(5)]])
        answers.append([changed(str(rng.choice(references[-1])), vocabulary, rng) for _ in range(3)])
    answers[-len(AWKWARD) :] = AWKWARD
    for texts, awkward in zip(references[-len(AWKWARD) :], AWKWARD, strict=True):
        texts[-1] = next((text for text in awkward if text.strip(" .?!'\"-\t")), texts[-1])
    return answers, references


def tokenized(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    return PTBTokenizer().tokenize({n: [{"caption": text} for text in texts] for n, texts in captions.items()})


def scored(answers: list[list[str]], references: list[list[str]]) -> dict[str, Any]:
    """What pycocoevalcap gives: per_answer, corpus and meteor_jar of the file."""
    found = {"per_answer": {}, "meteor_jar": [[] for _ in answers], "corpus": {}}
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
        for lines, (n, (text,)) in zip(found["meteor_jar"], given.items(), strict=True):
            lines.append(scorer._stat(text, right[n]))
        for name, value in values.items():
            found["per_answer"].setdefault(name, []).append([round(float(v), 9) for v in value])
        for name, value in {"bleu_1": corpus[0], "bleu_4": corpus[3], "meteor": meteor}.items():
            found["corpus"].setdefault(name, []).append(round(float(value), 9))
    return found


def main() -> None:
    captions = lines_of(CAPTIONS)
    answers, references = items_of(captions, np.random.default_rng(1235))
    golden = {"answers": answers, "references": references, **scored(answers, references)}
    golden["lines"] = [*lines_of(SENTENCES), *captions, *lines_of(FOREIGN)]
    each = tokenized({n: [text] for n, text in enumerate(golden["lines"])})
    golden["tokenized"] = [text for (text,) in each.values()]
    path = Path(__file__).with_name("captions.json")
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
