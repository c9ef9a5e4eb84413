"""`--preset alma-7b-en-de`: the paper's recipe from the command line, and that it runs, on the tiny Llama."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers as tk
from transformers import PreTrainedTokenizerFast

from experiments.common.decoders import budget
from experiments.translation.__main__ import main
from experiments.translation.config import Config, parse
from experiments.translation.task import load
from mcl_jax import objectives

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "llama"
PRESET = ["--preset", "alma-7b-en-de"]
GIVEN = ["--workdir", "w", "--base", "ALMA-7B-Pretrain", "--data", "text"]
ENGLISH, GERMAN = [f"e{i}" for i in range(13)], [f"g{i}" for i in range(13)]
PROMPT = ["Translate", "this", "from", "English", "to", "German", ":"]


def test_the_recipe_is_the_authors_command():
    config = parse([*PRESET, *GIVEN])
    assert (config.data.source_language, config.data.target_language) == ("en", "de")
    assert (config.num_hypotheses, config.lora.rank, config.optimizer.learning_rate) == (3, 16, 2e-5)
    assert (config.objective_of("mcl"), config.objective.assign) == (objectives.relaxed_wta(0.05), "noisy")
    assert (config.training.epochs, config.training.steps, config.optimizer.schedule) == (2, None, "inverse_sqrt")
    assert config.lora_of("mcl").targets == ("all-linear",)
    assert (config.optimizer.beta2, config.optimizer.weight_decay, config.training.keep) == (0.999, 0.01, "best")
    assert config.evaluation.every(2000) == 200
    assert (config.evaluation.eval_items, config.evaluation.test_items, config.evaluation.decode_items) == (None,) * 3
    for beams in (3, 6, 9):
        of_all = config.replace(num_beams=beams).decoders("mle_r") | config.replace(num_beams=beams).decoders("mcl")
        assert {name: budget(decoder) for name, decoder in of_all.items()} == {
            "mle_r/beam": (beams, 3),
            "mle_r/diverse": (beams, 3),
            "mcl": (beams // 3, 1),
        }
    assert config.data.prompt.format(source="A cat.").splitlines() == [
        "Translate this from English to German:",
        "English: A cat.",
        "German:",
    ]
    assert str(config.base.path) == "ALMA-7B-Pretrain"


def test_options_override_the_preset():
    config = parse(["--rank", "4", *GIVEN, "--preset=alma-7b-en-de", "--steps", "7", "--schedule", "cosine"])
    found = config.lora.rank, config.training.steps, config.optimizer.schedule, config.num_hypotheses
    assert found == (4, 7, "cosine", 3)
    assert config.for_epochs_of(100).training.steps == 7


def test_without_a_preset_nothing_changes():
    assert parse(GIVEN[:2]) == Config(workdir=Path("w"))
    assert Config(workdir=Path("w")).training.steps == 100
    assert parse([*GIVEN[:2], "--epochs", "3"]).for_epochs_of(11).training.steps == 33
    assert parse([*GIVEN[:2], "--epochs", "3", "--steps", "20"]).for_epochs_of(11).training.steps == 20


def test_help_lists_the_presets(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "alma-7b-en-de" in capsys.readouterr().out


def test_an_unknown_preset_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--preset", "alma", *GIVEN])
    assert "alma-7b-en-de" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            [*PRESET, *GIVEN[:2], *GIVEN[4:]],
            "--preset alma-7b-en-de needs --base: the Hugging Face folder of haoranxu/",
        ),
        ([*PRESET, *GIVEN[:4]], r"needs --data: a folder with train\.en, train\.de"),
        (
            [*GIVEN, "--mesh", "data=3"],
            "--batch-size must be a multiple of data in --mesh times --accumulate, got 8 for 3 times 1",
        ),
        ([*GIVEN, "--repetition-penalty", "0"], "--repetition-penalty must be above 0, got 0"),
        ([*GIVEN, "--epochs", "0"], "--epochs must be at least 1, got 0"),
        ([*GIVEN, "--wmt-pairs", "0"], "--wmt-pairs must be at least 1"),
        ([*GIVEN, "--prompt", "Translate:"], 'the prompt template needs "{source}" once'),
        ([*GIVEN, "--target-language", "en"], "--source-language and --target-language must differ, got 'en' twice"),
        ([*GIVEN, "--warmup", "1.5"], "--warmup must be a number of steps or a fraction below 1, got 1.5"),
        ([*GIVEN, "--warmup", "0", "--schedule", "inverse_sqrt"], "--schedule inverse_sqrt needs a --warmup above 0"),
    ],
)
def test_refusals(args, message):
    with pytest.raises(ValueError, match=message):
        parse(args)


def test_inverse_square_root_schedule():
    config = Config.from_options(workdir=Path("w"), steps=400, learning_rate=0.5, schedule="inverse_sqrt", warmup=0.01)
    rates = config.optimizer.learning_rates(config.training.steps)
    np.testing.assert_allclose([rates(step) for step in (0, 2, 4, 16, 400)], [0.0, 0.25, 0.5, 0.25, 0.05], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ A run


@pytest.fixture
def base(tmp_path):
    """The tiny Llama with a tokenizer of whole words, those of the prompt among them."""
    folder = tmp_path / "ALMA-7B-Pretrain"
    shutil.copytree(GOLDEN, folder)
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", *PROMPT, *ENGLISH, *GERMAN])}
    words = tk.Tokenizer(tk.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Parallel files: a German word for each English one, and ten references of the test sources."""
    rng, folder = np.random.default_rng(0), tmp_path / "text"
    folder.mkdir()

    def write(name, lines):
        (folder / name).write_text("".join(line + "\n" for line in lines))

    for split, number in (("train", 10), ("valid", 4), ("test", 5)):
        sources = [rng.integers(0, len(ENGLISH), rng.integers(2, 6)) for _ in range(number)]
        write(f"{split}.en", [" ".join(ENGLISH[i] for i in source) for source in sources])
        for suffix in [f".{i}" for i in range(10)] if split == "test" else [""]:
            write(f"{split}.de{suffix}", [" ".join(GERMAN[i] for i in rng.permutation(source)) for source in sources])
    return folder


@pytest.mark.slow
def test_the_preset_runs(tmp_path, base, data):
    args = ["--workdir", tmp_path / "run", "--base", base, "--data", data, "--batch-size", 4, "--rank", 2]
    small = [
        "--mesh",
        "data=2,model=2",
        "--accumulate",
        2,
        "--remat",
        "full",
        "--fsdp",
        "--max-new-tokens",
        5,
        "--max-length",
        32,
        "--methods",
        "mcl",
        "--decode-items",
        3,
    ]
    config = parse([*PRESET, *map(str, [*args, *small])])
    task = load(config)
    first = task.encode(task.records("train")[:1])
    words = task.tokenizer.decode(first.encoded.prompts[0]).split()
    assert words[:7] + words[-2:] == [*PROMPT, "German", ":"] and "<unk>" not in words
    assert len(task.records("test")[0].references) == len(set(task.records("test")[0].references)) > 1
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        main(config)
    lines = [json.loads(line) for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4]  # 2 epochs of 10 // 4 batches
    found = json.loads((config.workdir / "results.json").read_text())["methods"]["mcl"]
    assert len(found["win_rate"]) == 3
    assert [len(sample["references"]) > 1 for sample in found["samples"]] == [True] * 3
    assert np.isfinite(found["test_loss"])
