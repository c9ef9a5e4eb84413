"""`--preset` of the experiments on pictures and on clips: the paper's recipes, and that they run on tiny bases."""

import json
from pathlib import Path

import numpy as np
import pytest
from published_files import write_audiocaps, write_clotho, write_textcaps
from tiny_captions import LLAVA, QWEN

from experiments.audio_captioning import __main__ as audio_captioning
from experiments.audio_captioning import config as audio
from experiments.audio_captioning.audio import Clips
from experiments.common.captioning.task import load
from experiments.common.decoders import budget
from experiments.image_captioning import __main__ as image_captioning
from experiments.image_captioning import config as image
from experiments.image_captioning.images import Pictures
from mcl_jax import objectives
from mcl_jax.command_line import errors_in_a_line

GIVEN = ["--workdir", "w", "--base", "b"]
TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


def parsed(parse, preset, *args):
    return parse(["--preset", preset, *GIVEN, *map(str, args)])


@pytest.mark.parametrize(
    ("preset", "data", "K", "objective"),
    [
        ("textcaps-llava-7b", "textcaps/english", 3, objectives.relaxed_wta(0.1)),
        ("textcaps-bilingual", "textcaps/bilingual", 2, objectives.wta()),
    ],
)
def test_textcaps_is_the_authors_command(preset, data, K, objective):
    config = parsed(image.parse, preset)
    assert (config.data.name, config.num_hypotheses, config.data.kept_modes) == (data, K, ())
    assert config.objective_of("mcl") == objective
    lora = config.lora_of("mcl")
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 32.0, 0.05, ("all-linear",))
    assert config.objective.assign == "noisy"
    training, optimizer = config.training, config.optimizer
    assert (training.examples, training.batch_size, training.max_length, training.keep) == ("answers", 8, 2048, "last")
    assert (optimizer.weight_decay, optimizer.beta2, config.data.picture) == (0.0, 0.999, "padded")
    assert (config.evaluation.test_items, config.evaluation.decode_items) == (None, None)
    assert (config.lora_of("mle_rk").rank, config.lora_of("mle_rk").alpha) == (8 * K, 32.0 * K)
    assert (config.training.epochs, config.training.steps, config.optimizer.schedule, config.optimizer.warmup) == (
        1,
        None,
        "cosine",
        0.03,
    )
    rates = config.optimizer.learning_rates(config.for_epochs_of(1000).training.steps)
    np.testing.assert_allclose([rates(0), rates(15), rates(30), rates(1000)], [0, 1e-4, 2e-4, 0], rtol=1e-5)
    assert config.base.dtype == "bfloat16"
    assert (config.decoding.repetition_penalty, config.decoding.max_new_tokens) == (1.1, 128)
    assert config.decoders("mcl")["mcl"].num_beams == 1
    of_mle = config.decoders("mle_r")
    assert list(of_mle) == [f"mle_r/{name}" for name in ("beam", "diverse-0.5", "diverse-0.8", "diverse-1")]
    assert {budget(decoder) for decoder in of_mle.values()} == {(K, K)}
    assert [of_mle[f"mle_r/diverse-{name}"].diversity_penalty for name in ("0.5", "0.8", "1")] == [0.5, 0.8, 1.0]
    assert list(config.replace(mle_decoders=("beam",)).decoders("mle_r")) == ["mle_r"]


@pytest.mark.parametrize(
    ("preset", "data", "seconds", "epochs", "kept"),
    [
        ("audiocaps-qwen2-7b", "audiocaps", 10.0, 1, ("last", None)),
        ("clotho-qwen2-7b", "clotho", 30.0, 10, ("best", 10)),
    ],
)
def test_audiocaps_and_clotho_are_the_authors_commands(preset, data, seconds, epochs, kept):
    config = parsed(audio.parse, preset)
    assert (config.data.name, config.data.seconds, config.training.epochs, config.training.steps) == (
        data,
        seconds,
        epochs,
        None,
    )
    assert (config.num_hypotheses, config.objective_of("mcl")) == (5, objectives.relaxed_wta(0.05))
    lora = config.lora_of("mcl")
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 8.0, 0.1, TARGETS)
    assert config.objective.assign == "noisy"
    rates = config.optimizer.learning_rates(config.for_epochs_of(1000).training.steps)
    of_step = lambda share: rates(int(share * epochs * 1000))
    np.testing.assert_allclose([of_step(0), of_step(0.05), of_step(0.1), of_step(1)], [0, 5e-6, 1e-5, 1e-6], rtol=1e-4)
    assert (config.optimizer.weight_decay, config.optimizer.adam_epsilon, config.training.batch_size) == (0.05, 1e-6, 2)
    assert (config.training.examples, config.optimizer.beta2) == ("sources", 0.98)
    assert (config.training.keep, config.training.patience) == kept
    assert config.evaluation.every(epochs * 1000) == epochs * 100
    assert (config.evaluation.test_items, config.evaluation.decode_items) == (None, None)
    assert (config.base.dtype, config.decoding.repetition_penalty) == ("bfloat16", 1.1)
    assert config.training.max_length >= seconds * 25 + 100 and config.data.prompt.count("<|AUDIO|>") == 1
    assert config.decoders("mcl")["mcl"].num_beams == 1 and config.decoders("moe")["moe/beam"].num_beams == 5


@pytest.mark.parametrize(
    ("parse", "preset", "needed"),
    [
        *((image.parse, name, "llava-v1.6-vicuna-7b-hf") for name in ("textcaps-llava-7b", "textcaps-bilingual")),
        *((audio.parse, name, "Qwen2-Audio-7B-Instruct") for name in ("audiocaps-qwen2-7b", "clotho-qwen2-7b")),
    ],
)
def test_without_a_base_one_is_told_which(parse, preset, needed):
    with pytest.raises(ValueError, match=f"--preset {preset} needs --base: the Hugging Face folder of .*{needed}"):
        parse(["--preset", preset, *GIVEN[:2]])


# ------------------------------------------------------------------------------------------------------ Command lines


def test_the_default_is_the_preset_of_the_stamps():
    config = image.parse(GIVEN[:2])
    assert (config.data.name, config.data.kept_modes, config.training.steps, config.base.path) == (
        "stamps/pictures",
        ("en", "fr"),
        150,
        None,
    )
    config = audio.parse([*GIVEN[:2], "--seed", "3"])
    assert (config.data.name, config.data.kept_modes, config.data.seconds, config.seed) == (
        "stamps/spoken",
        ("en", "fr"),
        3.0,
        3,
    )
    assert image.parse([*GIVEN[:2], "--modes", "en", "fr", "es"]).data.kept_modes == ("en", "fr", "es")
    assert image.parse([*GIVEN[:2], "--modes"]).data.kept_modes == ()
    assert image.parse([*GIVEN[:2], "--mode-weights", "9", "1"]).data.mode_weights == (9, 1)


@pytest.mark.parametrize("parse", [image.parse, audio.parse])
def test_a_folder_has_the_modes_that_it_has(parse):
    config = parse([*GIVEN[:2], "--data", "mine"])
    assert (config.data.name, config.data.kept_modes, config.training.steps) == ("mine", (), 150)


@pytest.mark.parametrize(
    ("args", "methods"),
    [
        (["--method", "mle"], ("mle_r", "mle_rk")),
        (["--method", "mcl", "moe"], ("mcl", "moe")),
        (["--methods", "mle_rk", "mle", "mcl"], ("mle_rk", "mle_r", "mcl")),
        ([], ("mcl", "mle_r", "mle_rk")),
    ],
)
def test_methods(args, methods):
    assert image.parse([*GIVEN[:2], *args]).methods == methods


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--experts-per-token", "3"], "--experts-per-token must be at most --num-hypotheses 2, got 3"),
        (["--experts-per-token", "0"], "--experts-per-token must be at least 1, got 0"),
        (["--methods"], "--methods needs at least one method, got none"),
        (["--method", "moe", "--mle-decoders"], "--methods moe needs at least one of --mle-decoders, got none"),
        (["--method", "prompts", "--mcl-decoders"], "--methods prompts needs at least one of --mcl-decoders, got none"),
        (["--prompt-length", "0"], "--prompt-length must be at least 1, got 0"),
        (["--prompt-rate", "0"], "--prompt-rate must be positive, got 0"),
        (["--sampling-temperatures"], "--sampling-temperatures needs at least one temperature above 0, each once"),
        (["--sampling-temperatures", "0", "1"], "at least one temperature above 0, each once, got"),
        (["--base-steps", "0"], "--base-steps must be at least 1, got 0"),
        (["--mode-weights", "1"], r"--mode-weights needs one number for each of --modes \('en', 'fr'\), got \(1,\)"),
    ],
)
def test_refusals(args, message):
    with pytest.raises(ValueError, match=message):
        image.parse([*GIVEN[:2], *args])


def test_mcl_alone_needs_no_decoders_of_mle():
    assert image.parse([*GIVEN[:2], "--method", "mcl", "--mle-decoders"]).decoding.mle_decoders == ()


def test_errors_are_a_line():
    with pytest.raises(SystemExit, match="^error: --num-hypotheses must be at least 2, got 1"), errors_in_a_line():
        image.parse([*GIVEN[:2], "--num-hypotheses", "1"])


# --------------------------------------------------------------------------------------------------------------- Runs


CASES = {
    "textcaps-llava-7b": (image.parse, write_textcaps, LLAVA, None),
    "textcaps-bilingual": (image.parse, write_textcaps, LLAVA, ["en", "fr"]),
    "audiocaps-qwen2-7b": (audio.parse, write_audiocaps, QWEN, None),
    "clotho-qwen2-7b": (audio.parse, write_clotho, QWEN, None),
}


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion", "no_packages")
@pytest.mark.parametrize("preset", CASES)
def test_the_preset_runs(preset, tmp_path):
    parse, write_files, base, modes = CASES[preset]
    write_files(tmp_path / "files")
    paths = {"workdir": "run", "cache": "cache", "folder": "files"}
    args = [word for name, folder in paths.items() for word in (f"--{name}", str(tmp_path / folder))]
    small = {"steps": 2, "rank": 2, "method": "mcl", "eval-items": 2, "decode-items": 2, "max-new-tokens": 4}
    args += [word for name, value in small.items() for word in (f"--{name}", str(value))]
    config = parse(["--preset", preset, "--base", str(base), *args])
    experiment = image_captioning if parse is image.parse else audio_captioning
    experiment.main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]["mcl"]
    assert np.isfinite(found["test_loss"]) and len(found["win_rate"]) == config.num_hypotheses
    assert found.get("modes") == modes and ("purity" in found) == (modes is not None)
    assert set(found["of_mode"]) == set(found.get("language_rate", [])) == set(modes or [])
    assert [len(sample["references"]) > 1 for sample in found["samples"]] == [True] * 2
    steps = [json.loads(line)["step"] for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == (
        [0, 1] if preset.startswith("audiocaps") else [0, 1, 2]
    )  # its one epoch is a batch of 2 of 3 clips
    assert json.loads((config.workdir / "config.json").read_text())["base"]["dtype"] == "bfloat16"
    modality = Pictures() if parse is image.parse else Clips(config.data.seconds)
    task = load(config, modality)  # from the data set that was made, without its files
    assert {leaf.dtype.name for leaf in task.params["language_model"]["model"]["norm"].values()} == {"bfloat16"}
    assert Path(config.data.cache).is_dir()
