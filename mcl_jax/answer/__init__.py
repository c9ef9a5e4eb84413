"""Answers of trained hypotheses: `python -m mcl_jax.answer RUN_DIR [INPUT ...]`, and the same from Python.

A finished run answers new texts, pictures or clips from its last checkpoint. Its directory must say how, which takes
one line at the end of the training:

    Recipe(base="SmolLM2.gguf", lora=model.config, prompt="{source}\\n=>\\n", decoder=BeamSearch(2)).save("runs/mine")

    trained = Trained.find("runs/mine")             # or a folder of PEFT adapters; reads no weights
    answerer = Answerer.load(trained)
    (answers,) = answerer(["a text"])               # one answer per hypothesis, with its log-likelihood

`questions` turns the arguments of the command into texts and files.
"""

from mcl_jax.answer.answerer import Answer, Answerer
from mcl_jax.answer.recipe import Recipe
from mcl_jax.answer.trained import Trained

__all__ = ["Answer", "Answerer", "Recipe", "Trained"]
