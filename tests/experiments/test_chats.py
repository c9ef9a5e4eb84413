"""--chat of the experiments on pictures and clips: training and answers have the prompt of the template."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from answered import check_samples
from chat_templates import VICUNA
from tiny_captions import LLAVA, QWEN, clips_in, pictures_in, tiny

from experiments.audio_captioning import config as audio
from experiments.audio_captioning.audio import Clips
from experiments.common.captioning.task import load
from experiments.common.recipe import save_recipe
from experiments.image_captioning import config as image
from experiments.image_captioning.__main__ import main
from experiments.image_captioning.images import Pictures
from mcl_jax.answer import Answerer, Recipe
from mcl_jax.answer.trained import Trained

pytestmark = pytest.mark.usefixtures("standard_promotion", "no_packages")


@pytest.fixture
def vicuna(tmp_path):
    """The tiny LLaVA with a chat template."""
    folder = shutil.copytree(LLAVA, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(VICUNA)
    return folder


def check_prompt(config, modality, text):
    """Training, and answers by the recipe that is saved, have this prompt, with its placeholder for each feature."""
    task = load(config, modality)
    items = task.encode(task.records("train", 4))
    config.workdir.mkdir()
    save_recipe(SimpleNamespace(workdir=config.workdir), task)
    processor = task.perception.processor
    answerer = Answerer.load(Trained(config.workdir, Recipe.load(config.workdir), {}))
    for tokens, record in zip(items.encoded.prompts, items.records, strict=True):
        again = (tokens[1:] == tokens[:-1]) & (tokens[1:] == task.module.placeholder)
        assert again.sum() + 1 == processor.num_features(modality.read(record)) > 5
        assert np.delete(tokens, 1 + np.flatnonzero(again)).tolist() == task.tokenizer(text)["input_ids"]
        asked = answerer._inputs([record.media.read()])
        assert asked["tokens"][asked["mask"]].tolist() == tokens.tolist()


def test_a_picture_is_in_the_message(vicuna, tmp_path):
    config = tiny(image.Config, pictures_in(tmp_path / "mine"), vicuna, prompt="what is this ?", chat=True)
    check_prompt(config, Pictures(), "USER: <image>\nwhat is this ? ASSISTANT:")


@pytest.mark.slow
def test_a_run_gives_its_own_answers_again(vicuna, tmp_path, capsys):
    config = tiny(image.Config, pictures_in(tmp_path / "mine"), vicuna, prompt="what is this ?", chat=True)
    main(config)
    recipe = json.loads((config.workdir / "answer.json").read_text())
    assert (recipe["prompt"], recipe["chat"], recipe["kind"]) == ("what is this ?", True, "pictures")
    check_samples(capsys, config.workdir, lambda samples: [config.data.name + "/" + one["id"] for one in samples])


@pytest.mark.parametrize("prompt", ["", "hear this."])
def test_a_clip_is_in_the_message_which_asks_for_a_caption_by_default(prompt, tmp_path):
    config = tiny(
        audio.Config, clips_in(tmp_path / "mine"), QWEN, seconds=0.4, chat=True, prompt=prompt, max_length=200
    )
    asked = prompt or "Write a caption for the audio clip."
    heard = f"Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    check_prompt(config, Clips(0.4), system + heard)


@pytest.mark.parametrize(
    ("module", "preset"), [(image, "textcaps-llava-7b"), (image, "textcaps-bilingual"), (audio, "audiocaps-qwen2-7b")]
)
def test_a_preset_that_writes_the_template_out_needs_a_message(module, preset):
    options = ["--preset", preset, "--workdir", "w", "--base", "b", "--data", "d", "--chat"]
    with pytest.raises(ValueError, match="--chat needs a --prompt that is the message of a user alone, but that of"):
        module.parse(options)
    assert module.parse([*options, "--prompt", "what is this ?"]).data.prompt == "what is this ?"
