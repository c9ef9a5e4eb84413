"""Prompts and answers of the paper's presets, to the character and to the token: tests/golden/make_prompts.py."""

import json
from pathlib import Path

import pytest
from tiny_tokenizers import like_llama, like_qwen2, words

from experiments.audio_captioning import config as audio
from experiments.image_captioning import config as image
from experiments.translation import config as translation
from mcl_jax import data
from mcl_jax.tokenization import answer_ids

EXAMPLES = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text())
LLAVA, QWEN = like_llama("<image>"), like_qwen2("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
CAPTION, GERMAN = "A sign that says THE END.", "Das ist das Ende."
CASES = {
    "textcaps-llava-7b": (image, LLAVA, CAPTION),
    "textcaps-bilingual": (image, LLAVA, CAPTION),
    "alma-7b-en-de": (translation, like_llama(), GERMAN),
    "audiocaps-qwen2-7b": (audio, QWEN, CAPTION),
    "clotho-qwen2-7b": (audio, QWEN, CAPTION),
}


@pytest.mark.parametrize("preset", CASES)
def test_an_example_has_the_text_and_the_tokens_of_the_authors(preset):
    module, tokenizer, answer = CASES[preset]
    config = module.parse(["--preset", preset, "--workdir", "w", "--base", "b", "--data", "d"])
    example, given, start = EXAMPLES[preset], config.data.prompt, config.training.answer_start
    asked = given.replace("{source}", "This is the end.")
    assert asked + " " * (start == "space") + answer + tokenizer.eos_token == example["text"]

    prompt = data.Prompt(given) if module is translation else data.Prompt(f"{given}{{source}}")
    record = data.Record("0", "This is the end." if module is translation else "-", (data.Target(answer),))
    encoded = data.encode_records([record], tokenizer, prompt, max_length=500, answer_start=start)
    ours = encoded.prompts[0] if module is translation else tokenizer(given)["input_ids"]  # as `Processor.prompt` does
    target = encoded.targets[0][0].tolist()
    assert [*ours, *target] == example["ids"]
    assert len(target) == example["learned"] - (module is translation)  # they learn a token of ALMA's prompt too


@pytest.mark.parametrize(
    ("tokenizer", "start", "tokens"),
    [
        (like_llama(), "alone", ["▁A", "s", "</s>"]),
        (like_llama(), "space", ["▁A", "s", "</s>"]),
        (like_llama(), "direct", ["A", "s", "</s>"]),
        (QWEN, "alone", ["A", "s", "<|im_end|>"]),
        (QWEN, "space", ["ĠA", "s", "<|im_end|>"]),
        (QWEN, "direct", ["A", "s", "<|im_end|>"]),
    ],
)
def test_the_start_of_an_answer(tokenizer, start, tokens):
    ids = answer_ids(tokenizer, "As", "it", start)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "As"


@pytest.mark.parametrize("start", ["alone", "space", "direct"])
def test_an_answer_without_tokens_is_refused_whatever_its_start(start):
    with pytest.raises(ValueError, match="it: the target '' is empty"):
        answer_ids(like_llama(), "", "it", start)
    with pytest.raises(ValueError, match="end-of-sequence token"):
        answer_ids(like_llama(), "a</s>", "it", start)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="start of an answer must be one of .*, got 'after'"):
        answer_ids(words("a"), "a", "it", "after")
