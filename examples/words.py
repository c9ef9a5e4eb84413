"""The data of these examples: English words, each with two right answers, one in French and one in Spanish."""

ANSWERS_OF = {
    "cat": ("c'est un chat", "es un gato"),
    "dog": ("c'est un chien", "es un perro"),
    "book": ("c'est un livre", "es un libro"),
    "tree": ("c'est un arbre", "es un árbol"),
    "bridge": ("c'est un pont", "es un puente"),
    "house": ("c'est une maison", "es una casa"),
    "moon": ("c'est une lune", "es una luna"),
    "door": ("c'est une porte", "es una puerta"),
    "hand": ("c'est une main", "es una mano"),
    "table": ("c'est une table", "es una mesa"),
    "apple": ("c'est une pomme", "es una manzana"),
}


def prompt(word: str) -> str:
    """What the language model is asked."""
    return f"{word} =>"


# One row for each answer: every prompt stands there twice, and nothing in it tells the language of the answer.
PROMPTS = [prompt(word) for word, answers in ANSWERS_OF.items() for _ in answers]
ANSWERS = [f" {answer}" for answers in ANSWERS_OF.values() for answer in answers]
