"""What an experiment leaves when a figure or the page fails, and what it prints of texts and numbers."""

import json
from types import SimpleNamespace

import made_up_run as made_up
import numpy as np
import pytest

from experiments.common import experiment, figures, page
from experiments.common import methods as loop
from experiments.common.config import Config
from experiments.common.decoding import Answers
from experiments.common.selection import Selection
from experiments.translation import __main__ as translation
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

COLUMNS = experiment.Columns(table=made_up.COLUMNS, quality=("CIDEr-D", "cider"), diversity=("test loss", "test_loss"))
TASK = SimpleNamespace(records=lambda split, most=None: made_up.records(), encode=lambda records: None)
CORPUS = SimpleNamespace(split=lambda name: made_up.records())


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command.run() is the translation experiment in tmp_path, with made-up results; `.evaluated`, `.loaded` count."""
    counts = SimpleNamespace(evaluated=0, loaded=0, results=made_up.results)
    finish = experiment.finish

    def load_data(config):
        counts.loaded += 1
        return CORPUS

    def train(run, task, method, evaluate):
        run.log(3, {"eval_loss": 1.5}, tag=method)
        return SimpleNamespace(adapters={}), 1.0

    def finish_with_made_up_results(run, *of):
        counts.evaluated += 1
        methods = counts.results()["methods"]
        finish(run, methods, {}, methods["mcl"]["samples"])

    steps = {
        "load_data": load_data,
        "load_base": lambda config, corpus: SimpleNamespace(**vars(TASK), config=config),
        "train": train,
        "evaluator": lambda task, method: lambda state, items: None,
        "merged_pairs": lambda *of: {},
        "select": lambda *of: Selection(),
        "on_test": lambda *of: {},
        "answer": lambda *of: Answers([], [], 0.0),
        "scores": lambda *of, **options: {},
        "samples": lambda *of: [],
        "save_recipe": lambda *of: None,
        "finish": finish_with_made_up_results,
        "COLUMNS": COLUMNS,
    }
    for name, step in steps.items():
        monkeypatch.setattr(loop if hasattr(loop, name) else translation, name, step)
    config = Config.from_options(workdir=tmp_path / "a [/b]", methods=("mcl", "mle_rk", "moe"))
    counts.run = lambda: translation.main(config)
    counts.there = lambda: {path.name for path in (tmp_path / "a [/b]").glob("**/*.*") if path.suffix != ".0"}
    return counts


def fail(*_, **__):
    raise RuntimeError("no [/font]")


def test_a_page_that_fails_costs_itself_alone_and_the_same_command_makes_it(command, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", fail)
        command.run()
    printed = capsys.readouterr().out
    assert "page.html could not be made: no [/font]\n" in printed
    assert "results.json is in " in printed and printed.rstrip().endswith("/a [/b].")
    assert {"results.json", "loss.png", "win_matrix.png", "quality_diversity.png"} <= command.there()
    assert "page.html" not in command.there()

    command.run()
    assert "page.html, figures and results.json are in" in capsys.readouterr().out
    assert "page.html" in command.there() and (command.evaluated, command.loaded) == (1, 2)
    command.run()
    assert (command.evaluated, command.loaded) == (1, 2)  # nothing is missing


def test_a_line_says_what_the_selector_tells():
    selector = dict(accuracy=0.81, prior_accuracy=0.5, density_loss=2.2, prior_density_loss=2.3)
    scores = {"test_loss": 2.1, "selector": selector | {"uniform_density_loss": 2.4}}
    (line,) = experiment.selections({"mcl": scores, "mle_rk": {"test_loss": 2.0}})
    assert line == (
        "selector of mcl: the winner is told from the prompt for 0.810/0.500 of the test answers (selector/prior); "
        "loss of the mixture 2.200/2.300, uniform 2.400, of the winners alone 2.100"
    )


@pytest.mark.parametrize("name", ["losses", "win_matrix", "quality_diversity"])
def test_a_figure_that_fails_costs_itself_alone(command, monkeypatch, capsys, name):
    monkeypatch.setattr(figures, name, fail)
    command.run()
    lost = {"losses": "loss.png"}.get(name, f"{name}.png")
    assert f"figures/{lost} could not be made: no [/font]" in capsys.readouterr().out
    pictures = {"loss.png", "win_matrix.png", "quality_diversity.png"}
    assert command.there() & pictures == pictures - {lost} and {"results.json", "page.html"} <= command.there()


def test_results_are_written_first(command, monkeypatch, tmp_path):
    """A kill while the page is made leaves them."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        command.run()
    assert "methods" in json.loads((tmp_path / "a [/b]" / "results.json").read_text())


def test_a_number_that_is_not_finite_does_not_cost_the_others(command, capsys, tmp_path):
    results = made_up.results()
    results["methods"]["mcl"] |= {"cider": float("nan"), "win_rate": np.array([np.inf, 0.25, 0.25])}
    results["methods"]["mcl"]["samples"][0]["log_likelihoods"]["mcl"][1] = -np.inf
    command.results = lambda: results
    command.run()
    found = json.loads((tmp_path / "a [/b]" / "results.json").read_text())["methods"]["mcl"]
    assert found["cider"] is None and found["win_rate"] == [None, 0.25, 0.25] and found["test_loss"] == 1.25
    printed = capsys.readouterr().out
    assert "n/a: results.methods.mcl.cider must be a finite number, got nan" in printed and "n/a 0.25 0.25" in printed
    assert "page.html" in command.there()


def test_a_single_answer_has_no_diversity(tmp_path):
    """Div-2 counts no words as repeated in one short answer, which would look more diverse than any K."""
    both = {"div_1": 0.75, "div_2": 0.5, "intervals": {"div_2": [0.25, 0.75], "oracle_bleu": [1, 2]}}
    methods = {"mle_r/greedy": dict(both), "mle_r/beam": dict(both)}
    sample = {"answers": {"mle_r/greedy": ["A dog."], "mle_r/beam": ["A dog.", "Dogs."]}}
    with Run(tmp_path / "run", {}) as run:
        experiment.finish(run, methods, {}, [sample, sample])
    found = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]
    greedy = found["mle_r/greedy"]
    assert greedy["div_1"] is greedy["div_2"] is None and greedy["intervals"] == {"oracle_bleu": [1, 2]}
    assert found["mle_r/beam"]["div_2"] == 0.5
    assert page.reasons(found, {"Div-2": "div_2", "BLEU": "oracle_bleu"}) == {
        "Div-2 of mle_r/greedy": "a single answer has no diversity"
    }


def test_the_recommendation_comes_last(command, capsys):
    results = made_up.results()
    results["methods"]["mcl"]["hypotheses"] = {"effective": 2.5, "recommendation": "All 3 [/b] are used."}
    command.results = lambda: results
    for _ in range(2):  # a finished run says it again
        command.run()
        assert "\nAll 3 [/b] are used.\npage.html, figures and" in capsys.readouterr().out


def test_texts_are_printed_as_they_are(capsys):
    results = to_json(made_up.results(), "results")
    sample = results["methods"]["mcl"]["samples"][0]
    sample |= {"source": "[/i] [bold]x :smile:\\", "answers": {"mcl": ["[red]a[/red]", ":cat: \\[b]"]}}
    experiment.show_results(results, {**made_up.COLUMNS, "[/x]": "test_loss"})
    printed = capsys.readouterr().out
    for text in ("\n[/i] [bold]x :smile:\\\n", "  mcl 0  [red]a[/red]\n", "  mcl 1  :cat: \\[b]\n", "[/x]"):
        assert text in printed
    assert "n/a: SPICE: no <Java>" in printed


def test_the_figure_has_the_methods_that_have_both_numbers():
    results = {
        "methods": {
            "mcl": {"cider": None, "div_2": 0.5, "intervals": {"div_2": [0.4, 0.6]}},
            "mle_r": {"cider": 1.5, "div_2": 0.25, "intervals": {"div_2": [0.125, 0.375]}},
            "moe": {"cider": 1.0, "div_2": 0.75},
        }
    }
    drawn = figures.quality_diversity(results, ("CIDEr-D", "cider"), ("Div-2", "div_2"))
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["LoRA-MLE, rank r", "LoRA-MoE"]
    with pytest.raises(ValueError, match="no method has both CIDEr-D and Div-2"):
        figures.quality_diversity(
            {"methods": {"mcl": {"cider": None, "div_2": 0.5}}}, ("CIDEr-D", "cider"), ("Div-2", "div_2")
        )


def test_modes_are_no_formulas():
    found = {"win_matrix": np.array([[3, 0], [0, 5]]), "modes": (r"a $\frac{1}$ b", "$x$")}
    drawn = figures.win_matrix({"methods": {"mcl": found}})
    labels = [text._preprocess_math(text.get_text()) for text in drawn.axes[0].get_yticklabels()]
    assert labels == [(r"a $\frac{1}$ b", False), ("$x$", False)]
    drawn.canvas.draw()


def test_one_mode_is_said():
    found = {"win_matrix": [[3, 2]], "modes": ("[en]",), "not_available": {"spice": "no Java"}}
    experiment._explain_missing_purity(found)
    assert found["purity"] is None and found["mutual_information"] is None
    assert "the same mode, '[en]'" in found["not_available"]["purity"] and found["not_available"]["spice"] == "no Java"
    several = {"win_matrix": [[3, 2], [1, 1]], "modes": ("en", "fr"), "purity": 0.7}
    experiment._explain_missing_purity(several)
    assert several["purity"] == 0.7 and "not_available" not in several


def test_a_directory_in_use_is_refused_before_anything_is_loaded(command, tmp_path):
    with Run(tmp_path / "a [/b]", {}), pytest.raises(RuntimeError, match="is in use by process"):
        command.run()
    assert command.loaded == 0


@pytest.mark.parametrize("results", [{}, {"methods": {}}, {"methods": {"mcl": {}}}, {"methods": {"mcl": [1]}}])
def test_results_of_something_else_are_named(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(
        ValueError, match=r"results.json must hold methods, one of them with samples; move the file away"
    ):
        experiment.results_of(Run(tmp_path, {}))


def test_how_far_mcl_is_ahead_of_each_method():
    """Differences are paired by item; an item without a value, and a metric of one method alone, are left out."""
    mcl = {"cider": [3.0, 5.0, None, 2.5], "spice": [1.0] * 4, "wer": [0.25, 0.5, 0.0, 0.25], "test_loss": [1.0]}
    mcl["novel"] = [None, 1.0, None, 1.0]
    mcl = {"per_item": mcl}
    other = {
        "per_item": {
            "test_loss": [2.0],
            "novel": [0.5, None, 1.0, None],
            "cider": [1.0, 3.5, 9.0, 1.5],
            "wer": [0.75, 1.0, 0.5, 0.75],
        }
    }
    other |= {"loss_above_mcl": {"mean": -0.25, "low": -0.5, "high": 0.125}}
    other["below_mcl"] = experiment.below(other, mcl)
    assert other["below_mcl"].keys() == {"cider", "wer"}
    assert other["below_mcl"]["cider"] == {"mean": 1.5, "low": 1.0, "high": 2.0}
    columns = experiment.Columns({}, ("CIDEr-D", "cider"), ("Div-2", "div_2"), {"WER": "wer"})
    assert experiment.leads({"mcl": mcl, "mle/beam": other, "nearest": {}}, columns) == [
        "mcl against mle/beam, above 0 is better: CIDEr-D +1.5 (+1 to +2), less WER +0.5 (+0.5 to +0.5), "
        "less loss -0.25 (-0.5 to +0.125)"
    ]


def test_parts_of_results_are_joined():
    parts = {"a": 1, "per_item": {"a": [1, 2]}}, {"b": 2, "per_item": {"b": [3]}, "not_available": {"c": "why"}}
    assert experiment.merged(*parts) == {
        **dict(a=1, b=2, not_available={"c": "why"}),
        "per_item": {"a": [1, 2], "b": [3]},
    }
