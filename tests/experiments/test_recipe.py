"""Which hypotheses of a run answer: those of mcl, or else its soft prompts."""

from types import SimpleNamespace

import pytest

import mcl_jax as mcl
from experiments.common.recipe import save_recipe
from mcl_jax.answer import Recipe
from mcl_jax.generation import Greedy

LORA = mcl.LoraConfig(rank=2, alpha=5)
MODELS = {"mcl": SimpleNamespace(config=LORA), "prompts": SimpleNamespace(length=7)}


def saved(folder, methods):
    decoding = dict(max_new_tokens=5, repetition_penalty=None, no_repeat_ngram_size=None, stop_strings=None)
    config = SimpleNamespace(
        methods=methods,
        decoders=lambda method: {f"{method}/greedy": Greedy()},
        decoding=SimpleNamespace(**decoding),
        base=SimpleNamespace(dtype="float32", quantization=None),
        training=SimpleNamespace(keep="best"),
    )
    prompt = SimpleNamespace(template="{source} =>", chat=False)
    save_recipe(
        SimpleNamespace(workdir=folder),
        SimpleNamespace(config=config, perception=None, base="base", prompt=prompt, model=MODELS.__getitem__),
    )
    return (folder / "answer.json").is_file() and Recipe.load(folder)


@pytest.mark.parametrize(
    ("methods", "tag", "lora", "length"),
    [
        (("mle_r", "prompts", "mcl"), "mcl", LORA, None),
        (("mle_r", "prompts"), "prompts", None, 7),
    ],
)
def test_which_hypotheses_answer(tmp_path, methods, tag, lora, length):
    recipe = saved(tmp_path, methods)
    assert (recipe.tag, recipe.lora, recipe.soft_prompt, recipe.best) == (tag, lora, length, True)


def test_a_run_without_hypotheses_has_no_recipe(tmp_path):
    assert not saved(tmp_path, ("mle_r", "moe"))
