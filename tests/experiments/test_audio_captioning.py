"""The experiment on clips end to end, on the tiny Qwen2-Audio and tones."""

import json

import jax
import numpy as np
import optax
import pytest
from answered import check_samples
from tiny_captions import LLAVA, QWEN, RECORDS, WHISPER, clips_in, tiny

import mcl_jax as mcl
from experiments.audio_captioning.__main__ import main
from experiments.audio_captioning.audio import Clips
from experiments.audio_captioning.config import Config
from experiments.common.captioning.task import load
from mcl_jax import data

pytestmark = pytest.mark.usefixtures("standard_promotion", "no_packages")
PROMPT = "hear <|audio_bos|><|AUDIO|><|audio_eos|>:"


@pytest.fixture
def config(tmp_path):
    return tiny(Config, clips_in(tmp_path / "mine"), QWEN, seconds=0.4, prompt=PROMPT, dropout=0.1)


@pytest.mark.slow  # tests/experiments/test_image_captioning.py has the same of pictures
def test_a_run_leaves_its_results_and_figures(config, encoded, capsys):
    main(config)
    mcl, nearest = json.loads((config.workdir / "results.json").read_text())["methods"].values()
    assert {"grounding", "retrieval", "noun_named"} <= set(mcl) and "oracle_cider_d" in nearest
    assert mcl["modes"] == ["en", "fr"] and np.shape(mcl["win_matrix"]) == (2, 3) and np.sum(mcl["win_matrix"]) == 2 * 7
    assert {"purity", "win_rate", "oracle_cider_d", "of_mode", "language_rate", "intervals"} <= set(mcl)
    assert [len(sample["answers"]["mcl"]) for sample in mcl["samples"]] == [3] * 3
    lines = [json.loads(line) for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["run"], line["step"]) for line in lines] == [("mcl", 0), ("mcl", 3), ("mcl", 5)]
    assert set(encoded.values()) == {1} and len(encoded) == 12 + 3 + 7 < RECORDS
    figures = {path.name for path in (config.workdir / "figures").iterdir()}
    drawn = {"loss.png", "win_matrix.png"}
    if (mcl["div_2"], nearest["div_2"]) != (
        None,
        None,
    ):  # the random model may answer with single words, of which no pairs can be counted
        drawn.add("quality_diversity.png")
    assert figures == drawn
    assert (mcl["div_2"] is None) == ("div_2" in mcl["not_available"])
    files = lambda samples: [config.workdir.parent / "mine" / sample["id"] for sample in samples]
    check_samples(capsys, config.workdir, files)


def test_clips_are_cut_to_the_seconds(config):
    lengths = []
    for seconds in (0.4, 1.0):
        task = load(config.replace(seconds=seconds), Clips(seconds))
        prompts = task.encode(task.records("train", 3)).encoded.prompts
        lengths.append([int((prompt == task.module.placeholder).sum()) for prompt in prompts])
        assert task.tokenizer.decode(prompts[0]).startswith("hear <|audio_bos|><|AUDIO|>")
    assert lengths[1] != lengths[0] == [min(n, 10) for n in lengths[1]]


def test_a_whisper_hears_the_clips(config):
    """Its prompt has no placeholders, and every row of a batch has the features of a window of 0.42 seconds."""
    prompt = "<|startoftranscript|><|en|><|notimestamps|>"
    task = load(config.replace(base=WHISPER, prompt=prompt, max_length=20), Clips(0.4))
    items = task.encode(task.records("train", 4))
    assert [row.tolist() for row in items.encoded.prompts] == [[30, 31, 34]] * 4
    batch = next(data.eval_batches(items.encoded, task.config.evaluation_batches))
    inputs = task.inputs(items, batch)
    assert inputs["features"].shape == (4, 21, 20)
    optimizer = optax.sgd(0.1)
    state = task.initial_state("mcl", optimizer, task.config.objective_of("mcl"))
    log_p, tokens = mcl.language_model.evaluate(task.model("mcl"), state.params, state.adapters, [inputs])
    assert log_p.shape == (3, 4) and np.isfinite(log_p).all() and tokens.min() > 2
    augmented = task.perception.augmented(items.records[:1], [jax.random.key(0)])
    assert augmented.shape == (1, 21, 20) and np.abs(augmented - inputs["features"][:1]).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(base=LLAVA), r"llama has no processor for clips; use .* a Qwen2-Audio or a Whisper for clips"),
        (dict(spoken=("xx",)), r"--spoken must be languages of the clips of stamps/spoken, got \['xx'\] for "),
        (dict(seconds=0.0), r"--seconds must be above 0, got 0.0"),
        (dict(base=None), r"--seconds must be a whole number for the small base, got 0.4"),
    ],
)
def test_refusals(config, change, message):
    with pytest.raises(ValueError, match=message):
        load(config.replace(**change), Clips(0.4))
