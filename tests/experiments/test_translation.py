"""The translation experiment end to end, on the tiny Llama and a made-up language."""

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tokenizers as tk
from answered import check_samples
from jobs import Job
from transformers import PreTrainedTokenizerFast

from experiments.common import budget
from experiments.common.held_out import evaluator
from experiments.common.task import prompts_of
from experiments.common.training import train
from experiments.common.usage import merged_pairs
from experiments.translation import packed
from experiments.translation.__main__ import COLUMNS, main
from experiments.translation.config import Config
from experiments.translation.scores import scores
from experiments.translation.task import load
from mcl_jax.run import Run
from mcl_jax.selector import Selector

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "llama"
WORDS = [f"w{i}" for i in range(30)]
KEYS = {"test_loss", "oracle_bleu", "mean_bleu", "chrf", "div_1", "div_2", "pairwise_bleu", "seconds", "win_rate"}
KEYS |= {"vendi_score", "probe_accuracy", "novel_answers"}

pytestmark = pytest.mark.usefixtures("no_packages")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny Llama with a tokenizer of whole words and line breaks."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    shutil.copytree(GOLDEN, folder)
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<unk>", "=", ">", "\n", *WORDS])}
    words = tk.Tokenizer(tk.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sources of three to seven words, answered in small or in large numbers."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "text.jsonl"
    lines = []
    for i in range(40):
        split = ["train", "train", "train", "validation", "test"][i % 5]
        source = " ".join(rng.choice(WORDS[:10], rng.integers(3, 8)))
        for mode, low in (("low", 10), ("high", 20)):
            target = " ".join(WORDS[low + int(word[1:])] for word in source.split())
            lines.append(json.dumps(dict(id=f"{i:02}", source=source, target=target, mode=mode, split=split)))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def config(tmp_path, base, data):
    return Config.from_options(
        workdir=tmp_path / "run",
        base=base,
        data=data,
        steps=5,
        batch_size=4,
        eval_every=3,
        eval_items=5,
        test_items=7,
        decode_items=3,
        selector_items=11,
        max_new_tokens=6,
        max_length=32,
        lengths=(),  # compiles once
        num_hypotheses=3,
        num_beams=6,
        rank=2,
        methods=("mcl", "mle_rk"),
    )


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        yield


@pytest.mark.parametrize(
    "decoders",
    [("beam",), pytest.param(("beam", "diverse", "sampling"), marks=pytest.mark.slow)],
)
def test_a_run_leaves_its_results_and_figures(config, decoders, monkeypatch, capsys):
    config = config.replace(mle_decoders=decoders, merge_costs=len(decoders) > 1)
    with monkeypatch.context() as patch:
        asked = iter([False, False, True])  # of each step: stopped after the third, and gone on
        patch.setattr(Run, "stop_requested", property(lambda run: next(asked)))
        with pytest.raises(SystemExit):
            main(config)
    assert not (config.workdir / "results.json").exists()
    main(config)
    lines = [json.loads(line) for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["run"], line["step"]) for line in lines] == [(m, n) for m in ("mcl", "mle_rk") for n in (0, 3, 5)]
    results = json.loads((config.workdir / "results.json").read_text())
    name_of = lambda decoder: f"mle_rk/{decoder}" if len(decoders) > 1 else "mle_rk"
    names = {"mcl", *map(name_of, decoders)}
    assert set(results["methods"]) == names
    for found in results["methods"].values():
        assert set(found) >= KEYS
    mcl = results["methods"]["mcl"]
    assert np.array(mcl["win_matrix"]).shape == (2, 3)
    assert np.sum(mcl["win_matrix"]) == 2 * 7
    assert {"purity", "mutual_information", "style_rate", "likeliest_bleu", "mbr_bleu", "selected_bleu"} <= set(mcl)
    assert mcl["modes"] == ["high", "low"]
    assert set(mcl["loss_of_mode"]) == {"high", "low"}
    assert np.mean(list(mcl["loss_of_mode"].values())) == pytest.approx(mcl["test_loss"])
    used = mcl["hypotheses"]
    assert 1 <= used["effective"] <= 3 and len(used["drop_cost"]) == len(used["answer_drop_cost"]) == 3
    assert used.get("merged_pairs") == ([[0, 1], [0, 2], [1, 2]] if config.evaluation.merge_costs else None)
    assert used["recommendation"] in capsys.readouterr().out
    beam = results["methods"][name_of("beam")]
    found = mcl["selector"]
    assert found["examples"] == 2 * 11  # sources with two answers each
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["mixture_accuracy"] <= 1
    assert mcl["test_loss"] <= found["density_loss"] <= mcl["test_loss"] + np.log(3)
    assert found["uniform_density_loss"] <= mcl["test_loss"] + np.log(3)
    assert Selector.load(config.workdir).num_hypotheses == 3
    above = beam["loss_above_mcl"]
    assert above["mean"] == pytest.approx(beam["test_loss"] - mcl["test_loss"], abs=1e-6)
    assert above["low"] < above["mean"] < above["high"]
    assert abs(beam["answer_loss_above_mcl"]["mean"]) > 3 * abs(above["mean"])  # answers have four tokens at least
    assert [len(of) for of in mcl["samples"][0]["answers"].values()] == [3] * len(names)
    for own in mcl["samples"][0]["log_likelihoods"].values():
        assert len(own) == 3
        assert max(own) < 0
    figures = {path.name for path in (config.workdir / "figures").iterdir()}
    assert figures == {"loss.png", "win_matrix.png", "quality_diversity.png"}
    assert "w1" in (config.workdir / "page.html").read_text()
    main(config)  # says that it is finished
    assert json.loads((config.workdir / "results.json").read_text()) == results
    check_samples(capsys, config.workdir, lambda samples: [sample["source"] for sample in samples])


@pytest.mark.slow
def test_rivals_run_beside_mcl(config, capsys):
    rivals = ("mcl", "prompts", "ensemble", "list")
    config = config.replace(methods=rivals, prompt_length=5, selector_items=0, shared_rank=3)
    main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]
    assert tuple(found) == rivals
    width = json.loads((config.base.path / "config.json").read_text())["hidden_size"]
    rank_of = {"mcl": (1, 3), "ensemble": (2, 0), "list": (6, 0)}
    of_rank = found["list"]["trained_parameters"] / 6
    assert found["prompts"]["trained_parameters"] == 3 * 5 * width
    for name, (own, shared) in rank_of.items():
        assert found[name]["trained_parameters"] == of_rank * (6 if name == "list" else 3 * own + shared)
    for name in rivals:
        assert found[name]["decode_rows"] == 6
        assert all(len(sample["answers"][name]) == 3 for sample in found["mcl"]["samples"])
    for name in ("prompts", "ensemble"):
        assert len(found[name]["win_rate"]) == 3
        above = found[name]["test_loss"] - found["mcl"]["test_loss"]
        assert found[name]["loss_above_mcl"]["mean"] == pytest.approx(above, abs=1e-6)
    of_lists = found["list"]
    assert of_lists["test_loss"] is None and of_lists["likeliest_bleu"] is None and "loss_above_mcl" not in of_lists
    assert 0 <= of_lists["answers_written"] <= 3 and "oracle_bleu" in of_lists["below_mcl"]
    assert {"list"} == {name for name in found if "answers_written" in found[name]}
    assert "test loss of list: the likelihood of a list says nothing" in capsys.readouterr().out
    steps = [json.loads(line) for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["run"], line["step"]) for line in steps] == [(m, n) for m in rivals for n in (0, 3, 5)]
    assert (config.workdir / "figures" / "loss.png").exists() and (config.workdir / "page.html").exists()


@pytest.mark.slow  # tests/test_fitting.py and tests/test_kill.py have the same of smaller models
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "balanced"},
        {"objective": "relaxed"},
        {"refresh": 2, "examples": "answers", "batch_size": 24, "choose_tokens": 2},  # two batches per epoch
        {"refresh": 2, "examples": "answers", "batch_size": 24, "pack": True},
    ],
    ids=["balanced", "relaxed", "cheap", "packed"],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(config, options, tmp_path, monkeypatch):
    task = load(config.replace(dropout=0.1, steps=6, **options))
    evaluate = evaluator(task, "mcl")

    def trained(folder):
        with Run(tmp_path / folder, task.config) as run:
            state, _ = train(run, task, "mcl", evaluate)
            return run.lines("mcl"), state

    straight, straight_state = trained("straight")
    with monkeypatch.context() as patch:
        asked = iter([False, False, False, True])  # of each step: stop after the fourth
        patch.setattr(Run, "stop_requested", property(lambda run: next(asked)))
        with pytest.raises(SystemExit):
            trained("stopped")
    lines, state = trained("stopped")
    assert [line["step"] for line in lines] == [0, 3, 6]
    assert lines == straight
    chex.assert_trees_all_equal(state.adapters, straight_state.adapters)


@pytest.mark.slow
def test_the_mean_of_two_equal_hypotheses_is_either_of_them(config):
    task = load(config.replace(merge_costs=True))
    loss = task.config.objective_of("mcl")
    state = task.initial_state("mcl", task.config.optimizer.make(5), loss)
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), state.adapters)
    state = state.replace(adapters=jax.tree.map(lambda leaf: leaf[[0, 1, 0]], adapters))
    items = task.encode(task.records("test"))
    log_p, merged = evaluator(task, "mcl")(state, items).log_p, merged_pairs(task, "mcl", state, items)
    assert list(merged) == [(0, 1), (0, 2), (1, 2)] and merged_pairs(task, "mle_rk", state, items) == {}
    np.testing.assert_allclose(merged[0, 2], log_p[0], rtol=1e-4)
    np.testing.assert_allclose(merged[1, 2], merged[0, 1], rtol=1e-4)
    assert np.abs(merged[0, 1] - log_p[0]).max() > 0.01 < np.abs(merged[0, 1] - log_p[1]).max()


def test_fewer_training_sources(config):
    whole, few = load(config), load(config.replace(train_items=3))
    train = whole.records("train")
    assert few.records("train") == (train[0], train[round((len(train) - 1) / 2)], train[-1])
    assert few.records("train", 2) == (train[0], train[-1]) and few.records("test") == whole.records("test")


def test_a_packed_run_learns_what_other_runs_learn(config, tmp_path):
    """Without dropout, packed rows change the order of the examples alone."""
    config = config.replace(pack=True, max_length=40, batch_size=4)
    task = load(config)
    with Run(tmp_path / "packed", config) as run:
        state, _ = train(run, task, "mle_rk", evaluator(task, "mle_rk"))
    alone = dataclasses.replace(config, training=dataclasses.replace(config.training, pack=False))
    batches = config.batches
    with pytest.MonkeyPatch.context() as patch, Run(tmp_path / "alone", alone) as run:
        patch.setattr(type(alone), "batches", property(lambda _: batches))  # the same order
        expected, _ = train(run, dataclasses.replace(task, config=alone), "mle_rk", evaluator(task, "mle_rk"))
    moved = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected.adapters))
    assert moved > 0.01
    chex.assert_trees_all_close(state.adapters, expected.adapters, atol=2e-3 * moved)


def test_packed_rows_are_timed_beside_others(config, monkeypatch, capsys):
    monkeypatch.setattr(packed, "BATCHES", 2)
    monkeypatch.setattr(packed, "ROUNDS", 2)
    packed.main(config)
    printed = capsys.readouterr().out
    assert "Training steps, K = 3" in printed and not config.workdir.exists()
    ratio = {line.split("│")[1].strip(): line.split("│")[4].strip() for line in printed.splitlines() if " to " in line}
    assert ratio["rows of one example"] == "1" and float(ratio["packed rows"]) > 0
    with pytest.raises(ValueError, match="measures with --pack and without it"):
        packed.main(config.replace(pack=True))


def test_prompts_are_padded_on_the_left(config):
    task = load(config)
    records = task.records("test")
    (_, first, real), *_ = prompts_of(task, records, 5)
    assert real == 5
    assert first["mask"][:, -1].all()
    assert (np.diff(first["mask"].astype(int), axis=1) >= 0).all()
    assert len(set(first["mask"].sum(1))) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_hypotheses=1), "--num-hypotheses must be at least 2"),
        (dict(num_beams=2), "--num-beams must be a multiple of --num-hypotheses 3, .* got 2"),
        (dict(num_beams=4), "--num-beams must be a multiple of --num-hypotheses 3, .* got 4"),
        (dict(num_beams=0), "--num-beams must be a multiple"),
        (dict(mesh="data=9", batch_size=9), "--mesh needs 9 devices, but there are 8"),
        (dict(coordinator="127.0.0.1:1"), "--coordinator, --num-processes and --process-id need --distributed"),
        (dict(distributed=True, coordinator="here"), "--coordinator must be like 10.0.0.1:1234, got 'here'"),
        (dict(distributed=True, num_processes=2, process_id=2), "--process-id must be from 0 to .* got 2"),
        (dict(dropout=1.0), "dropout must be in"),
        (dict(objective="relaxed", epsilon=1.0), "epsilon"),
        (dict(objective="annealed", backward="winner"), "--backward winner is not exact for --objective annealed"),
        (dict(mle_decoders=("tta",)), "--mle-decoders tta needs pictures or clips"),
        (dict(targets=("q_prj",)), "'q_prj' matches no linear layer. The nearest .*q_proj"),
        (
            dict(base=GOLDEN.parents[1] / "llava" / "llama"),
            "llama must be a model for text only, but it takes pictures",
        ),
        (dict(steps=0), "--steps must be at least 1"),
        (dict(lengths=(32, 16)), r"--lengths must be positive and ascending, got \[32, 16\]"),
        (dict(base=GOLDEN), "has no tokenizer files"),
    ],
)
def test_refusals(config, change, message):
    with pytest.raises(ValueError, match=message):
        main(config.replace(**change))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("validation", "test"), "has only 0 training records, fewer than --batch-size 4"),
        ((), "got an empty file"),
    ],
)
def test_data_that_will_not_do_is_refused_before_weights_are_read(config, tmp_path, monkeypatch, keep, message):
    monkeypatch.setattr("mcl_jax.models.from_pretrained", lambda *of, **options: pytest.fail("weights were read"))
    lines = [line for line in config.data.path.read_text().splitlines() if json.loads(line)["split"] in keep]
    (tmp_path / "text.jsonl").write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        load(config.replace(data=tmp_path / "text.jsonl"))


def test_a_base_without_a_chat_template_is_refused_before_data_and_weights_are_read(config, monkeypatch):
    for name in ("mcl_jax.models.from_pretrained", "experiments.datasets.load_corpus"):
        monkeypatch.setattr(name, lambda *of, name=name, **options: pytest.fail(f"{name} was called"))
    with pytest.raises(ValueError, match=r"a chat needs chat_template in .*tokenizer_config\.json"):
        load(config.replace(chat=True))


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_missing_split_is_taken_from_training(config, missing, tmp_path, capsys):
    lines = [line for line in config.data.path.read_text().splitlines() if json.loads(line)["split"] != missing]
    (tmp_path / "text.jsonl").write_text("".join(line + "\n" for line in lines))
    corpus = load(config.replace(data=tmp_path / "text.jsonl")).corpus
    counts = corpus.counts()
    assert sum(counts.values()) == 32 and counts[missing] >= 1 and counts["train"] == 24 - counts[missing]
    said = f"has no {missing} split. {counts[missing]} of its 24 training records"
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_decoded_at_several_budgets_without_further_training(config):
    main(config.replace(steps=2, methods=("mcl",), mle_decoders=("beam",)))
    task = load(config.replace(steps=2, methods=("mcl",), mle_decoders=("beam",), decode_items=2))
    for _ in range(2):
        budget.main(task, budget.Options(budgets=(3, 6)), scores, COLUMNS)
    found = json.loads((config.workdir / "budget.json").read_text())
    assert [point["decode_rows"] for point in found["mcl"]] == [3, 6]
    assert (config.workdir / "budget.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line)["step"] for line in (config.workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 2]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(config, tmp_path):
    def options(folder, **changes):
        values = dict(
            workdir=tmp_path / folder,
            base=config.base.path,
            data=config.data.path,
            **dict(steps=6, batch_size=4, eval_every=2, eval_items=5, test_items=7, decode_items=3, max_new_tokens=6),
            **dict(max_length=32, num_hypotheses=3, num_beams=6, rank=2, alpha=3.0, dropout=0.1, methods="mcl"),
            **changes,
        )
        return ["--merge-costs", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]

    def command(process, port):
        return ["-m", "experiments.translation", *options("two", coordinator=f"127.0.0.1:{port}"), *shared(process)]

    shared = lambda process: ["--distributed", "--num-processes=2", f"--process-id={process}"]
    with Job(tmp_path / "two", command) as two:
        assert two.end() == [0, 0], two.all_said()
        assert "Held-out answers" in two.said(0) and "Held-out answers" not in two.said(1)
    one_command = ["-m", "experiments.translation", *options("one", mesh="data=4")]
    with Job(tmp_path / "one", lambda process, port: one_command, processes=1) as one:
        assert one.end() == [0], one.all_said()
    found, wanted = (json.loads((tmp_path / name / "results.json").read_text())["methods"] for name in ("two", "one"))
    assert found["mcl"]["samples"][0]["answers"] == wanted["mcl"]["samples"][0]["answers"]
    assert found["mcl"]["test_loss"] == pytest.approx(wanted["mcl"]["test_loss"], rel=1e-5)
    merged, expected = (of["mcl"]["hypotheses"]["answer_merge_cost"] for of in (found, wanted))
    for one_cost, other in zip(merged, expected, strict=True):
        assert one_cost == pytest.approx(other, rel=1e-3, abs=1e-4)
    curves = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("two", "one")]
    assert len(curves[0]) == 4
    for a, b in zip(*(map(json.loads, lines) for lines in curves), strict=True):
        assert a["step"] == b["step"] and a["eval_loss"] == pytest.approx(b["eval_loss"], rel=1e-5)
        assert a.get("train_loss", 0) == pytest.approx(b.get("train_loss", 0), rel=1e-5)
