"""The data of these examples: English words, each with two right answers, one in French and one in Spanish."""

WORDS = {
    "cat": ("chat", "gato"),
    "dog": ("chien", "perro"),
    "house": ("maison", "casa"),
    "water": ("eau", "agua"),
    "bread": ("pain", "pan"),
    "milk": ("lait", "leche"),
    "book": ("livre", "libro"),
    "tree": ("arbre", "árbol"),
    "moon": ("lune", "luna"),
    "hand": ("main", "mano"),
    "door": ("porte", "puerta"),
}


def prompt(word: str) -> str:
    """What the language model is asked."""
    return f"{word} =>"


# One row for each answer: every prompt stands there twice, and nothing in it tells the language of the answer.
PROMPTS = [prompt(word) for word, answers in WORDS.items() for _ in answers]
ANSWERS = [f" {answer}" for answers in WORDS.values() for answer in answers]
