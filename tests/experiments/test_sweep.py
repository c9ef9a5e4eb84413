"""Sweeps over K, ε and objectives: what is trained, the figure, the table, and going on after a stop."""

import json
import math
import sys

import pytest
from tiny_captions import LLAVA, pictures_in, tiny

from experiments.common import sweep
from experiments.common.captioning.task import load
from experiments.common.sweep import Options, variants
from experiments.image_captioning.config import PRESETS, STAMPS, Config
from experiments.image_captioning.images import Pictures


@pytest.fixture
def config(tmp_path):
    return tiny(Config, pictures_in(tmp_path / "mine"), LLAVA, steps=2)


def test_variants(config):
    of = lambda **options: {
        name: config.replace(**fields) for name, fields in variants(config, Options(**options)).items()
    }
    by_k = of(kind="k", hypotheses=(1, 2, 5))
    assert {name: (c.methods, c.num_hypotheses) for name, c in by_k.items() if name != "1"} == {
        "2": (("mcl",), 2),
        "5": (("mcl",), 5),
    }
    assert by_k["1"].methods == ("mle_r",) and by_k["5"].decoding.beams(5) == 10
    assert {c.lora_of(c.methods[0]).rank for c in by_k.values()} == {config.lora.rank}
    by_epsilon = of(kind="epsilon", epsilons=(0.0, 0.05))
    assert {name: (c.objective.name, c.objective.epsilon) for name, c in by_epsilon.items()} == {
        "0": ("relaxed", 0.0),
        "0.05": ("relaxed", 0.05),
    }
    by_rank = of(kind="rank", ranks=(2, 16))
    assert {name: c.lora.rank for name, c in by_rank.items()} == {"2": 2, "16": 16}
    of_adapters = [c.lora_of("mcl") for c in (config, *by_rank.values())]
    assert len({lora.alpha / lora.rank for lora in of_adapters}) == 1 and of_adapters[0].alpha != of_adapters[0].rank
    for chosen in (("wta", "relaxed", "annealed", "balanced"), ("mixture", "wta")):
        assert {name: c.objective.name for name, c in of(kind="objectives", objectives=chosen).items()} == {
            name: name for name in chosen
        }


def test_variants_of_a_shared_part(config):
    """The rank in all is the same whatever is shared; sharing all of it is LoRA-MLE."""
    three = config.replace(num_hypotheses=3, rank=8, num_beams=None, steps=70)
    of = lambda start, **options: {
        name: start.replace(**fields) for name, fields in variants(start, Options(**options)).items()
    }
    by_rank = of(three, kind="shared-rank")
    assert {name: (c.methods, c.lora.shared_rank) for name, c in by_rank.items()} == {
        "0": (("mcl",), 0),
        "6": (("mcl",), 6),
        "12": (("mcl",), 12),
        "18": (("mcl",), 18),
        "24": (("mle_rk",), 0),
    }
    parts = {name: c.lora_of(c.methods[0]) for name, c in by_rank.items()}
    own = {"0": 8, "6": 6, "12": 4, "18": 2, "24": 24}
    assert {name: part.rank for name, part in parts.items()} == own
    sharing = three.replace(shared_rank=12)
    rates = of(sharing, kind="own-rate")
    assert {name: c.optimizer.own_rate for name, c in rates.items()} == {"1": 1, "2": 2, "4": 4, "8": 8}
    for kind, field in {"own-after": "own_after", "shared-after": "shared_after"}.items():
        after = of(sharing, kind=kind)
        assert {name: getattr(c.optimizer, field) for name, c in after.items()} == {"0": 0, "7": 7, "21": 21}
    assert of(sharing, kind="own-after", values=(5.0,))["5"].optimizer.own_after == 5


def test_the_command_line():
    config, options = sweep.command_line(Config, PRESETS, ["--workdir", "w", "--hypotheses", "1", "4", "--steps", "7"])
    assert (options.kind, options.hypotheses, options.seeds) == ("k", (1, 4), (0, 1, 2))
    assert (config.training.steps, config.data.kept_modes, config.evaluation.eval_items) == (
        7,
        ("en", "fr"),
        STAMPS["eval_items"],
    )
    assert sweep.command_line(Config, PRESETS, ["--workdir", "w", "--data", "mine"])[0].data.kept_modes == ()
    given = ["--workdir", "w", "--steps", "7", "--preset", "stamps-kind"]
    kinds, _ = sweep.command_line(Config, PRESETS, [*given, "--base", "m"])
    assert (kinds.data.kept_modes, kinds.training.steps, kinds.optimizer.learning_rate) == (("en", "kind"), 7, 5e-4)
    with pytest.raises(ValueError, match="--preset stamps-kind needs --base: DIR/model, which"):
        sweep.command_line(Config, PRESETS, given)
    Options(kind="epsilon", hypotheses=(2,))
    with pytest.raises(ValueError, match=r"--hypotheses must include 1, which gives the band of losses, got \(2, 3\)"):
        sweep.command_line(Config, PRESETS, ["--workdir", "w", "--hypotheses", "2", "3"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "epsilon", "--epsilons", "0.1", "1.5"), "epsilon"),
        (("--kind", "rank", "--ranks", "4", "0"), r"every value of --ranks must be at least 1, got \(4, 0\)"),
        (("--hypotheses", "1", "3", "0"), r"every value of --hypotheses must be at least 1, got \(1, 3, 0\)"),
        (("--kind", "own-rate"), "--own-rate, --own-after and --shared-after need --shared-rank, got 0"),
        (
            ("--kind", "shared-rank", "--values", "4.5"),
            "--values must be whole numbers for --kind shared-rank, got 4.5",
        ),
        (("--kind", "shared-rank", "--values", "3"), "--shared-rank"),
        (("--kind", "objectives", "--backward", "winner"), "--backward winner is not exact for --objective relaxed"),
    ],
)
def test_a_value_that_no_training_can_have_is_refused_before_the_first(options, message):
    with pytest.raises(ValueError, match=message):
        sweep.command_line(Config, PRESETS, ["--workdir", "w", *options])


def result(**changes):
    return {
        "eval_loss": 2.0,
        "answer_loss": 5.0,
        "mixture_loss": 5.3,
        "dead": 0.0,
        "purity": 0.9,
        "steps": [0, 2],
        "curve": [0.5, 0.9],
    } | changes


def test_the_table_and_the_figures(tmp_path, capsys):
    """Of made-up results."""
    one = [result(purity=None, answer_loss=loss) for loss in (6.0, 6.5)]
    for of in one:
        del of["purity"]
    found = {"1": one, "3": [result(), result(answer_loss=5.5)]}
    sweep.show(found, "k")
    table = " ".join(capsys.readouterr().out.split())
    assert "5.250 ± 0.354" in table and f"{6.25 - math.log(3):.3f} to 6.250" in table and "6.250 to 6.250" in table
    without = {name: [result(steps=[], curve=[])] for name in ("wta", "balanced")}
    for of in without.values():
        del of[0]["purity"]
    for kind, results in (
        ("k", found),
        ("epsilon", {"0.1": found["3"]}),
        ("rank", {"4": found["3"]}),
        ("shared-rank", {"0": found["3"], "16": found["1"]}),
        ("objectives", without),
    ):
        sweep.draw(tmp_path / f"{kind}.png", kind, results)
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    sweep.show(without, "objectives")
    assert "balanced" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_a_sweep_goes_on_where_it_stopped(config, monkeypatch, capsys, encoded):
    task, options = load(config, Pictures()), Options(seeds=(5,), hypotheses=(1, 3))
    trained, train = [], sweep.train
    monkeypatch.setattr(sweep, "train", lambda run, *of: trained.append(run.workdir.name) or train(run, *of))
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "draw", lambda path, kind, found: len(found) == 1 and sys.exit())
        with pytest.raises(SystemExit):
            sweep.main(task, options)
    sweep.main(task, options)
    assert trained == ["k-1-seed5", "k-3-seed5"]
    found = {name: json.loads((config.workdir / f"k-{name}-seed5" / "results.json").read_text()) for name in "13"}
    assert len(found["3"]["win_rate"]) == 3 and 0 <= found["3"]["dead"] <= 1 and found["1"]["dead"] == 0
    assert 0 < found["3"]["mixture_loss"] - found["3"]["answer_loss"] < math.log(3)  # the two hold whatever was learned
    assert found["1"]["mixture_loss"] == pytest.approx(found["1"]["answer_loss"])
    assert found["3"]["steps"] == [0, 2] and len(found["3"]["curve"]) == 2 and found["1"]["curve"] == []
    assert json.loads((config.workdir / "k-3-seed5" / "config.json").read_text())["seed"] == 5
    out = " ".join(capsys.readouterr().out.split())
    assert "band = [MLE − log K, MLE]" in out and f"{found['3']['answer_loss']:.3f}" in out
    assert (config.workdir / "k.png").exists()
    assert set(encoded.values()) == {1}  # one perception for all trainings


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_data_without_modes_have_no_purity(config, tmp_path):
    """The curve was NaN, which results.json does not hold."""
    folder = tmp_path / "mine"
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line | {"mode": None}) + "\n" for line in lines))
    task = load(config.replace(objective="wta"), Pictures())
    found = sweep.trained(task)
    assert "purity" not in found and found["curve"] == [] and len(found["win_rate"]) == 3
