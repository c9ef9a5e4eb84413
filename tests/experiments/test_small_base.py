"""The small base of a laptop: trained once, kept, and resumed; which one a run gets."""

import dataclasses
import json

import fake_stamps
import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny_captions import LLAVA, clips_in, pictures_in, tiny
from transformers import LlavaNextProcessor as HuggingFaces
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import mcl_jax as mcl
from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import Config as AudioConfig
from experiments.common.captioning import small_base, task
from experiments.image_captioning.config import Config
from experiments.image_captioning.images import Pictures
from mcl_jax import data
from mcl_jax.models.clip import CLIPVisionConfig
from mcl_jax.models.llama import LlamaConfig
from mcl_jax.models.llava_next import LlavaNext, LlavaNextConfig
from mcl_jax.models.llava_next_processor import LlavaNextProcessor
from mcl_jax.run import Run

pytestmark = pytest.mark.usefixtures("standard_promotion")
SETTINGS = small_base.SmallBase(steps=4, batch_size=4, max_length=48, eval_every=3)


class Tiny(Pictures):
    """With a model of one layer."""

    def small(self, tokenizer) -> tuple[nn.Module, LlavaNextProcessor]:
        config = LlavaNextConfig(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=12,
                intermediate_size=13,
                num_hidden_layers=1,
                num_attention_heads=3,
            ),
            CLIPVisionConfig(
                hidden_size=10,
                intermediate_size=11,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids(self.placeholder),
            image_grid_pinpoints=((8, 8),),
            vision_feature_layer=(-1,),
        )
        size = {"height": 8, "width": 8}
        pictures = LlavaNextImageProcessorPil(size={"shortest_edge": 8}, crop_size=size, image_grid_pinpoints=[[8, 8]])
        hf = HuggingFaces(
            pictures, tokenizer, patch_size=4, vision_feature_select_strategy="default", image_token=self.placeholder
        )
        return LlavaNext(config), LlavaNextProcessor(config, hf)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_small_base_is_trained_once_saved_and_resumed(tmp_path, monkeypatch):
    corpus = data.read_captions(pictures_in(tmp_path / "mine"))
    make = lambda name: small_base.small_base(tmp_path / name, SETTINGS, Tiny(), corpus)
    saved, save = [], mcl.models.save_pretrained
    monkeypatch.setattr(mcl.models, "save_pretrained", lambda *of: saved.append(of) or save(*of))
    folder = make("straight")
    assert folder == tmp_path / "straight" / "model"
    assert [line["step"] for line in lines_of(tmp_path / "straight")] == [0, 3, 4]

    # What is read is what was trained.
    ((_, trained, params, of_training),) = saved
    module, again, processor = mcl.models.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (9, 17, 3), dtype=np.uint8)
    inputs = processor(["<image>a dog"], [picture])
    jax.tree.map(np.testing.assert_array_equal, inputs, of_training(["<image>a dog"], [picture]))
    assert (inputs["tokens"] == module.placeholder).sum() == processor.num_features(picture) == 4 + 2 * (2 + 1)
    assert processor.tokenizer.decode(processor.tokenizer("Été, ñ!")["input_ids"]) == "Été, ñ!"

    def logits(module, params):
        features = module.apply({"params": params}, inputs["pixel_values"], inputs["index"], method="encode")
        return module.apply({"params": params}, inputs["tokens"], inputs["mask"], features)

    np.testing.assert_allclose(logits(module, again), logits(trained, params), rtol=1e-6)
    validation = json.loads((tmp_path / "straight" / "results.json").read_text())["validation_loss"]
    assert validation == min(line["eval_loss"] for line in lines_of(tmp_path / "straight"))

    # Stopped after the second step, it goes on as if it had not been.
    with monkeypatch.context() as patch:
        asked = iter([False, True])
        patch.setattr(Run, "stop_requested", property(lambda run: next(asked)))
        with pytest.raises(SystemExit):
            make("stopped")
    assert (
        not (tmp_path / "stopped" / "model").exists()
        and lines_of(tmp_path / "stopped") == lines_of(tmp_path / "straight")[:1]
    )
    make("stopped")
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "straight")
    jax.tree.map(np.testing.assert_array_equal, saved[1][2], params)

    monkeypatch.setattr(small_base, "_train", lambda *of: pytest.fail("it is there"))
    assert make("straight") == folder


@pytest.mark.slow
def test_a_small_base_of_fewer_captions_than_a_batch(tmp_path):
    corpus = data.read_captions(pictures_in(tmp_path / "mine"))
    settings = dataclasses.replace(SETTINGS, steps=1, batch_size=25)  # 24 captions
    folder = small_base.small_base(tmp_path / "run", settings, Tiny(), corpus)
    assert (folder / "config.json").exists() and [line["step"] for line in lines_of(tmp_path / "run")] == [0, 1]


def test_each_choice_that_a_small_base_depends_on_has_its_own(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(task, "small_base", lambda *of: given.append(of) or of[0])
    pictures, clips = pictures_in(tmp_path / "a"), clips_in(tmp_path / "b" / "a")
    seen = lambda **of: task._small(tiny(Config, pictures, None, **of), Pictures())
    heard = lambda seconds, **of: task._small(tiny(AudioConfig, clips, None, seconds=seconds, **of), Clips(seconds))
    different = [seen(), seen(max_length=65), seen(base_steps=7), heard(1.0), heard(2.0)]
    assert len(set(different)) == len(different)
    same = [seen(), seen(seed=1, steps=7, rank=3, methods=("mle",)), seen(modes=("fr", "en")), seen(families=True)]
    assert set(same) == {different[0]}
    assert given[0][1] == small_base.SmallBase(steps=600, max_length=64)
    assert given[-2][3].modes == ("en", "fr")  # all, whatever adapters learn
    (pictures / "01.png").write_bytes((pictures / "03.png").read_bytes())
    assert seen() not in different  # what it would learn of that picture is something else


def test_a_small_base_learns_the_stamps_that_adapters_do(tmp_path, monkeypatch):
    fake_stamps.install(monkeypatch)
    monkeypatch.setattr(task, "small_base", lambda folder, settings, modality, corpus: (folder, len(corpus.records)))
    config = tiny(Config, pictures_in(tmp_path / "mine"), None, data="stamps/pictures")
    of = lambda **changes: task._small(config.replace(**changes), Pictures())
    (some, kept), (every, number) = of(), of(families=True)
    assert (kept, number) == (40, 92) and some != every


def test_a_small_base_is_asked_by_mode_and_adapters_for_the_first_of_theirs(tmp_path, monkeypatch):
    config = tiny(Config, pictures_in(tmp_path / "mine"), None)
    monkeypatch.setattr(task, "small_base", lambda *of: LLAVA)
    asked = lambda **of: task.load(config.replace(**of), Pictures()).prompt.template
    assert [asked(), asked(modes=("fr", "en")), asked(prompt="<image>a")] == ["<image>en:", "<image>fr:", "<image>a"]
    *_, processor = mcl.models.from_pretrained(LLAVA)
    (record,) = (record for record in data.read_captions(tmp_path / "mine").records if record.id == "07.png")
    captions = small_base._captions([record])
    assert [(of.id, of.source, of.targets) for of in captions] == [
        (record.id, target.mode, (target,)) for target in record.targets
    ]
    prompt = small_base._PromptByMode("<image>", processor, {record.id: 3})
    for caption in captions:
        expected = processor.prompt(f"<image>{caption.source}:", 3)
        np.testing.assert_array_equal(prompt.encode_record(processor.tokenizer, caption), expected)
