"""Tables and figure of finished runs, on made-up results."""

import csv
import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.common import lists
from experiments.compare import columns, curves, figure, runs, tables
from experiments.compare.__main__ import Config, main
from experiments.compare.aggregate import Number, Row, fold
from experiments.translation import config as translation
from mcl_jax.json_io import to_json
from mcl_jax.metrics.report import NotAvailable

LOSSES = {0.05: (2.03, 2.11, 2.29), 0.1: (2.17, 2.39, 2.41)}  # by ε and seed
BASE = {
    "workdir": "runs/x",
    "cache": "c",
    "methods": ["mcl"],
    "rank": 7,
    "warmup": 5,
    "num_beams": 6,
    "prompt": "a\n_b",
}


def results(loss, shift=0.0):
    """Two methods: mcl of two modes, and beams."""
    mcl = {
        "win_rate": [0.29, 0.71],
        "win_matrix": [[13, 0], [2, 17]],
        "modes": ["es", "en"],
        "loss_of_mode": {"es": loss + 0.5, "en": loss - 0.5},
        "test_loss": loss,
        "oracle_bleu": 41.37 + shift,
        "mean_bleu": 23.0,
        "div_2": 0.61 + shift / 100,
        "pairwise_bleu": 3.7,
        "purity": 0.97,
        "oracle_spice": None,
        "zest": 5,
        "meteor": None,
        "vocabulary": None,
        "not_available": {"oracle_spice": "SPICE needs\n CoreNLP", "meteor": "no Java"},
        "of_mode": {"es": {"oracle_spice": None, "oracle_cider_d": 1.3}, "en": {"oracle_cider_d": 0.7}},
        "language_rate": {"es": [0.93, 0.07]},
        "intervals": {"oracle_bleu": [37.1, 43.9], "div_2": [0.53, 0.67]},
        "samples": [{"id": 1}],
    }
    beam = {
        "win_rate": [1.0],
        "test_loss": loss + 0.13,
        "oracle_bleu": 47.3 - shift,
        "mean_bleu": 43.1,
        "div_2": 0.43,
        "pairwise_bleu": 83.0,
        "loss_above_mcl": {"mean": 0.13, "low": 0.11, "high": 0.17},
        "intervals": {"oracle_bleu": [41.0, 53.0], "pairwise_bleu": [79.0, 89.0]},
    }
    return {"methods": {"mcl": mcl, "mle_rk/beam": beam}}


@pytest.fixture
def make(tmp_path):
    """make(name, results, **options) -> the directory of a run."""

    def made(name, found, **options):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**BASE, "workdir": name, **options}))
        (tmp_path / name / "results.json").write_text(json.dumps(found))
        return tmp_path / name

    return made


@pytest.fixture
def six(make):
    """Two groups of three seeds, with what does not matter made different."""
    return [
        make(
            f"e{epsilon}-{seed}",
            results(loss, seed),
            epsilon=epsilon,
            seed=seed,
            cache=f"c{seed}",
            mesh=f"data={seed + 1}",
        )
        for epsilon, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]


def rows_of(workdirs, names=()):
    return [row for group in runs.group([runs.read(path) for path in workdirs], names) for row in fold(group)]


# ----------------------------------------------------------------------------------------------- Nested configurations


def nested(make, name, loss, **values):
    """A run whose config.json is that of the translation experiment."""
    folder = make(name, results(loss))
    config = translation.Config.from_options(**{"workdir": folder, "objective": "relaxed", **values})
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    return folder


def test_runs_are_told_apart_by_their_options_whatever_group_these_are_in(make):
    made = [
        nested(make, "a", 2.03, epsilon=0.1, seed=0, mesh="data=2", cache="c", eval_every=3),
        nested(make, "b", 2.11, epsilon=0.1, seed=1, accumulate=4, remat="full", methods=("mcl",)),
        nested(make, "c", 2.29, epsilon=0.3, seed=0, objective="wta", mle_decoders=("beam",), eval_items=3),
        nested(make, "d", 2.31, epsilon=0.3, seed=0, objective="wta", num_beams=8, base="x"),
    ]
    names = [(group.name, len(group.runs)) for group in runs.group([runs.read(folder) for folder in made])]
    assert names == [
        ("objective=relaxed, epsilon=0.1, num_beams=null, base=null", 2),
        ("objective=wta, epsilon=0.3, num_beams=null, base=null", 1),
        ("objective=wta, epsilon=0.3, num_beams=8, base=x", 1),
    ]


def test_options_without_influence_are_those_that_say_where_and_how_fast():
    assert {
        "seed",
        "workdir",
        "cache",
        "folder",
        "test_folder",
        "cache_features",
        "lengths",
        "wandb",
        "profile",
        "mesh",
        "fsdp",
        "distributed",
        "alone",
        "coordinator",
        "num_processes",
        "process_id",
        "process_timeout",
        "accumulate",
        "remat",
        "eval_every",
        "eval_items",
        "selector_items",
        "methods",
        "mle_decoders",
        "mcl_decoders",
        "experts_alone",
        "nearest_items",
        "merge_costs",
    } == runs.IGNORED


# ------------------------------------------------------------------------------------------------------------ Folding


def test_seeds_fold_into_mean_and_sample_deviation(six):
    rows = rows_of([six[i] for i in (0, 3, 1, 4, 5, 2)])
    assert [(row.group, row.method, row.seeds) for row in rows] == [
        (f"epsilon={epsilon}", method, 3) for epsilon in LOSSES for method in ("mcl", "mle_rk/beam")
    ]
    for row, losses in zip(rows[::2], LOSSES.values(), strict=True):
        loss = row.values["test_loss"]
        assert loss.mean == pytest.approx(sum(losses) / 3, rel=1e-15)
        assert loss.std == pytest.approx(math.sqrt(sum((x - sum(losses) / 3) ** 2 for x in losses) / 2), rel=1e-12)
        assert loss.bar == (loss.mean - loss.std, loss.mean + loss.std)
        assert loss.interval is None
        assert row.values["loss_of_mode.es"].mean == pytest.approx(loss.mean + 0.5)
        assert row.values["win_rate"] == "0.29 0.71; 0.29 0.71; 0.29 0.71"
    assert rows[0].values["oracle_bleu"] == Number(pytest.approx(42.37), None, pytest.approx(1.0))
    assert rows[1].values["loss_above_mcl"] == Number(0.13, None, 0.0)


def test_one_seed_keeps_its_intervals(six):
    mcl, beam = rows_of(six[:1])
    assert (mcl.group, mcl.seeds) == ("", 1)
    assert mcl.values["oracle_bleu"] == Number(41.37, (37.1, 43.9))
    assert mcl.values["oracle_bleu"].bar == (37.1, 43.9)
    assert mcl.values["test_loss"] == Number(2.03)
    assert mcl.values["test_loss"].bar is None
    assert beam.values["loss_above_mcl"] == Number(0.13, (0.11, 0.17))
    assert mcl.values["win_matrix"] == "13 0 / 2 17"
    assert mcl.values["meteor"] == NotAvailable("no Java")
    assert mcl.values["vocabulary"] == NotAvailable("")
    assert mcl.values["oracle_spice.es"] == mcl.values["oracle_spice"] == NotAvailable("SPICE needs\n CoreNLP")
    assert [mcl.values[f"oracle_cider_d.{mode}"] for mode in ("es", "en")] == [Number(1.3), Number(0.7)]
    assert mcl.values["language_rate.es"] == "0.93 0.07"
    assert not {"modes", "samples", "intervals", "not_available"} & set(mcl.values)


def test_a_mode_has_reasons_of_its_own(make):
    found = results(2.0)
    why = {"oracle_cider_d": "one item of this mode"}
    found["methods"]["mcl"]["of_mode"]["es"] |= {"oracle_cider_d": None, "not_available": why}
    mcl, _ = rows_of([make("a", found)])
    assert mcl.values["oracle_cider_d.es"] == NotAvailable("one item of this mode")
    assert mcl.values["oracle_spice.es"] == NotAvailable("SPICE needs\n CoreNLP")
    assert mcl.values["oracle_cider_d.en"] == Number(0.7)


def test_a_mean_is_over_all_seeds_of_its_row_or_not_available(make):
    found = [results(2.0) for _ in range(3)]
    del found[1]["methods"]["mcl"]["purity"]
    found[2]["methods"]["mcl"]["purity"] = None
    found[2]["methods"]["mcl"]["not_available"]["purity"] = "no modes"
    del found[2]["methods"]["mle_rk/beam"]
    mcl, beam = rows_of([make(str(seed), of, seed=seed) for seed, of in enumerate(found)])
    assert mcl.values["purity"] == NotAvailable("2 of 3 seeds lack it: not in results.json; no modes")
    assert mcl.values["oracle_spice"] == NotAvailable("SPICE needs\n CoreNLP")
    assert (mcl.seeds, beam.seeds) == (3, 2)


# ------------------------------------------------------------------------------------------------------------- Groups


def test_groups_are_named_by_the_options_in_which_they_differ(make):
    options = [
        dict(num_hypotheses=5, objective="annealed", prompt="x\ny"),
        dict(num_hypotheses=3, objective="annealed", warmup=5.0),  # 5.0 is 5
        dict(num_hypotheses=5, objective="wta", alpha=None),
    ]
    workdirs = [make(str(i), results(2.0), seed=i, **of) for i, of in enumerate(options)]
    of = lambda paths: [group.name for group in runs.group([runs.read(path) for path in paths])]
    assert of(workdirs) == [
        r"prompt=x\ny, num_hypotheses=5, objective=annealed, alpha=absent",
        r"prompt=a\n_b, num_hypotheses=3, objective=annealed, alpha=absent",
        r"prompt=a\n_b, num_hypotheses=5, objective=wta, alpha=null",
    ]
    assert of(workdirs[1:]) == [
        "num_hypotheses=3, objective=annealed, alpha=absent",
        "num_hypotheses=5, objective=wta, alpha=null",
    ]
    assert of(workdirs[:1]) == [""]


def test_what_changes_the_numbers_of_a_method_makes_a_group(make):
    """Also where a run could go on with it."""
    workdirs = [make(f"{beams}", results(2.0), seed=beams, num_beams=beams) for beams in (2, 6)]
    assert [row.group for row in rows_of(workdirs)[::2]] == ["num_beams=2", "num_beams=6"]


def test_methods_of_one_seed_may_come_from_several_runs(make):
    found = results(2.0)["methods"]
    workdirs = [make(name[:3], {"methods": {name: of}}, seed=3, methods=[name]) for name, of in found.items()]
    assert [(row.group, row.method, row.seeds) for row in rows_of(workdirs)] == [("", name, 1) for name in found]


def test_names_given_are_used(six):
    rows = rows_of(six, ["b", "b", "b", "a", "a", "a"])
    assert [(row.group, row.seeds) for row in rows[::2]] == [("b", 3), ("a", 3)]
    assert [row.group for row in rows_of(six[:2], ["x", "y"])[::2]] == ["x", "y"]
    with pytest.raises(ValueError, match=r"'b' also differs in \['epsilon'\]"):
        rows_of(six[2:4], ["b", "b"])
    with pytest.raises(ValueError, match="--names needs one name for each of the 6 --workdirs, got 2"):
        rows_of(six, ["a", "b"])


# ------------------------------------------------------------------------------------------------------------- Tables


def row(method, group="", seeds=1, **values):
    return Row(group, method, seeds, values)


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("test_loss", False),
        ("loss_of_mode.en", False),
        ("oracle_bleu", True),
        ("corpus_oracle_bleu_1", True),
        ("mean_chrf", True),
        ("mbr_bleu", True),
        ("pairwise_bleu", False),
        ("corpus_mbleu_4", False),
        ("oracle_spider.fr", True),
        ("div_2", True),
        ("purity", True),
        ("decode_seconds", False),
        ("trained_parameters", None),
        ("loss_above_mcl", None),
        ("zest", None),
    ],
)
def test_directions(metric, better):
    assert columns.higher_is_better(metric) is better


def test_the_best_of_each_column_by_its_direction():
    rows = [
        row("a", test_loss=Number(2.3), div_2=Number(0.7), zest=Number(1.0), purity=NotAvailable("")),
        row("b", test_loss=Number(1.9), div_2=Number(0.3), zest=Number(3.0)),
        row("c", test_loss=Number(float("1.9")), div_2=Number(0.1), win_rate="0.5"),  # equal, not the same
    ]
    table = tables.lay_out(rows, ["test_loss", "div_2", "zest", "purity", "win_rate"])
    assert table.best == {(1, 1), (2, 1), (0, 2)}
    assert table.head == ["method", "test_loss ↓", "div_2 ↑", "zest", "purity ↑", "win_rate"]
    assert table.body == [
        ["a", "2.300", "0.700", "1.000", "n/a", ""],
        ["b", "1.900", "0.300", "3.000", "", ""],
        ["c", "1.900", "0.100", "", "", "0.5"],
    ]


def test_how_numbers_are_shown():
    rows = [
        row("a", "x", 3, bleu=Number(41.375, None, 1.618), seconds=Number(1234.5), div_2=Number(-0.0001)),
        row("b", "y", 1, bleu=Number(7.0, (5.318, 9.002)), seconds=Number(999.9, (1, 2000.2)), div_2=Number(0.4534)),
    ]
    assert tables.lay_out(rows, ["bleu", "seconds", "div_2"]).body == [
        ["x", "a", "41.38 ± 1.62 (3)", "1234", "0.000"],
        ["y", "b", "7.00 [5.32, 9.00]", "1000 [1, 2000]", "0.453"],
    ]


def test_columns(six):
    rows = rows_of(six)
    found = columns.choose(rows)
    assert found == [
        "test_loss",
        "loss_of_mode.es",
        "loss_of_mode.en",
        "loss_above_mcl",
        "oracle_bleu",
        "mean_bleu",
        "meteor",
        "oracle_cider_d.es",
        "oracle_cider_d.en",
        "oracle_spice",
        "oracle_spice.es",
        "div_2",
        "pairwise_bleu",
        "vocabulary",
        "purity",
        "zest",
    ]
    assert columns.shortened(found, "oracle_bleu", "div_2") == [
        "test_loss",
        "oracle_bleu",
        "mean_bleu",
        "div_2",
        "purity",
    ]
    assert columns.choose(rows, ["win_rate", "div_2"]) == ["win_rate", "div_2"]
    with pytest.raises(ValueError, match="--columns must be one of .*, got 'oracle_blue'; did you mean 'oracle_bleu'?"):
        columns.choose(rows, ["div_2", "oracle_blue"])


def test_csv_comes_back_as_it_was(six):
    rows = rows_of([*six[:3], six[3]])
    metrics = ["test_loss", "oracle_bleu", "win_rate", "purity", "meteor", "zest"]
    lines = list(csv.DictReader(tables.to_csv(rows, metrics).splitlines()))
    assert list(lines[0])[:7] == [
        "group",
        "method",
        "n_seeds",
        "test_loss",
        "test_loss_low",
        "test_loss_high",
        "test_loss_std",
    ]
    for line, of in zip(lines, rows, strict=True):
        assert (line["group"], line["method"], int(line["n_seeds"])) == (of.group, of.method, of.seeds)
        for metric in ("test_loss", "oracle_bleu"):
            number = of.values[metric]
            assert float(line[metric]) == number.mean
            for end, value in zip(
                ("low", "high", "std"), (*(number.interval or (None, None)), number.std), strict=True
            ):
                assert line[f"{metric}_{end}"] == ("" if value is None else repr(value))
        assert line["win_rate"] == of.values["win_rate"]
    assert [line["meteor"] for line in lines] == ["n/a", "", "n/a", ""]
    assert not {"win_rate_low", "win_rate_std"} & set(lines[0])


AWKWARD = r"50%_a&b#{$x}~^|<\>"


def test_markdown():
    table = tables.lay_out([row("m|n", AWKWARD, div_2=Number(0.3)), row("o", "p", div_2=Number(0.7))], ["div_2"])
    assert tables.markdown(table).splitlines()[:4] == [
        "| runs | method | div_2 ↑ |",
        "| --- | --- | ---: |",
        r"| 50%_a&b#{$x}~^\|<\\> | m\|n | 0.300 |",
        "| p | o | **0.700** |",
    ]


def test_latex():
    spice = NotAvailable("needs\n100 % of Java")
    rows = [row("m", AWKWARD, 3, div_2=Number(0.3, None, 0.1), spice=spice), row("o", "p", div_2=Number(0.7))]
    assert tables.latex(tables.lay_out(rows, ["div_2", "spice"])).splitlines()[1:] == [
        rf"% n/a: spice in m ({AWKWARD}): needs 100 % of Java",
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"runs & method & div\_2 $\uparrow$ & spice $\uparrow$ \\",
        r"\midrule",
        r"50\%\_a\&b\#\{\$x\}\textasciitilde{}\textasciicircum{}\textbar{}\textless{}\textbackslash{}\textgreater{}"
        r" & m & 0.300 $\pm$ 0.100 (3) & n/a \\",
        r"p & o & \textbf{0.700} &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a <b>x</b>", r"a \<b>x\</b>"),
        ("<!-- x", r"\<!-- x"),
        ("x &lt; y &amp z", r"x \&lt; y &amp z"),
        ("[a](http://x) ![b][c]", r"[a\](http://x) ![b\][c]"),
        ("*a* 2*3", r"\*a\* 2\*3"),
        ("2*3", "2*3"),
        ("_a_ test_loss_x __b__", r"\_a\_ test_loss_x \_\_b\_\_"),
        ("`a` $b$ ~~c~~", r"\`a\` \$b\$ \~\~c\~\~"),
        ("two\nlines\r\n\n| 3", r"two lines \| 3"),
        ("half \ud83d", "half ?"),
    ],
)
def test_names_are_no_markdown(name, written):
    table = tables.lay_out([row("m", name, div_2=Number(0.3)), row("o", "p", div_2=Number(0.7))], ["div_2"])
    assert tables.markdown(table).splitlines()[2] == f"| {written} | m | 0.300 |"
    tables.markdown(table).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "written"),
    [("[fr] x", "{}[fr] x"), ("*", "{}*"), ("x [fr]", "x [fr]"), ("--preset", "-{}-preset"), ("a\n\nb", "a b")],
)
def test_names_are_no_options_of_latex(name, written):
    table = tables.lay_out([row("m", name, div_2=Number(0.3)), row("o", "p", div_2=Number(0.7))], ["div_2"])
    assert tables.latex(table).splitlines()[5] == rf"{written} & m & 0.300 \\"


@pytest.mark.parametrize("name", ["[/en]", "[bold]x[/bold]", ":smile:"])
def test_names_are_no_markup_on_the_console(name, capsys):
    metric = f"loss_of_mode.{name}"
    rows = [row(name, name, **{metric: Number(0.3), "spice": NotAvailable(name)}), row("o", "p", **{metric: Number(1)})]
    tables.show(tables.lay_out(rows, [metric, "spice"]), name)
    printed = capsys.readouterr().out
    assert printed.count(name) == 7 and "* 0.300" in printed  # title, head, group, method, and three in the note


def test_reasons_are_said_once():
    java, coco = NotAvailable("no Java"), NotAvailable("no CoreNLP")
    rows = [row(name, spice=coco, meteor=java, purity=NotAvailable("")) for name in "ab"] + [row("c", spice=coco)]
    assert tables.lay_out(rows, ["spice", "meteor", "purity"]).notes[1:] == [
        "n/a: spice: no CoreNLP",
        "n/a: meteor in a, b: no Java",
    ]


# ------------------------------------------------------------------------------------------------------------- Figure


def test_pareto_front_is_that_of_brute_force():
    rng = np.random.default_rng(7)
    for trial in range(60):
        points = rng.integers(0, 7, (1 + trial % 13, 2)).astype(float)  # with equal points and coordinates
        higher = (trial % 2 == 0, trial % 3 == 0)
        sign = [1 if up else -1 for up in higher]
        dominates = lambda p, q, sign=sign: (
            all(s * a >= s * b for s, a, b in zip(sign, p, q, strict=True)) and tuple(p) != tuple(q)
        )
        front = [i for i, q in enumerate(points) if not any(dominates(p, q) for p in points)]
        assert figure.pareto_front(points, higher).tolist() == front


@pytest.mark.parametrize(
    ("worst", "corners"),
    [
        ((0, 0), [(0, 7), (1, 7), (1, 5), (3, 5), (3, 0)]),  # higher is better in both
        ((9, 9), [(9, 5), (3, 5), (3, 7), (1, 7), (1, 9)]),  # lower
    ],
)
def test_staircase(worst, corners):
    assert figure.staircase(np.array([[3.0, 5.0], [1.0, 7.0]]), worst).tolist() == [
        list(map(float, c)) for c in corners
    ]


def test_the_figure_shows_every_row_and_the_front(six):
    rows = rows_of([*six[:3], six[3]])
    picture = figure.draw(rows, "oracle_bleu", "div_2")
    axes, legend = picture.axes[0], [text.get_text() for text in picture.legends[0].get_texts()]
    assert legend == ["LoRA-MCL", "LoRA-MLE, rank r·K beam", "Pareto front", "epsilon=0.05", "epsilon=0.1"]
    assert picture.legends[0].get_title().get_text() == "bars: 95 % bootstrap, ± std over seeds"
    drawn = [tuple(np.ravel(line.get_xydata()).tolist()) for line in axes.lines]
    for of in rows:
        x, y = of.values["div_2"], of.values["oracle_bleu"]
        assert drawn.count((x.mean, y.mean)) == 2  # marker and number
        assert (x.mean, y.bar[0], x.mean, y.bar[1]) in drawn
        assert not x.bar or (x.bar[0], y.mean, x.bar[1], y.mean) in drawn
    border = axes.lines[-1].get_xydata()
    assert (border[[0, -1]] == [[axes.get_xlim()[0], 47.3], [0.62, axes.get_ylim()[0]]]).all()
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "div_2 (higher is better)",
        "oracle_bleu (higher is better)",
    )
    plt.close(picture)


def test_unknown_methods_and_decoders_have_colours_and_shapes_of_their_own():
    names = ["mcl", "mle_r/beam", "new/beam", "newer/magic", "new/magic"]
    rows = [row(name, div_2=Number(0.1 * i), oracle_bleu=Number(i)) for i, name in enumerate(names)]
    picture = figure.draw(rows, "oracle_bleu", "div_2")
    points = [line for line in picture.axes[0].lines if len(line.get_xdata()) == 1]
    colours, markers = [p.get_color() for p in points], [p.get_marker() for p in points]
    assert len(set(colours)) == 4
    assert colours[2] == colours[4]
    assert markers == ["*", "o", "o", "P", "P"]
    assert [text.get_text() for text in picture.legends[0].get_texts()][2:5] == [
        "new beam",
        "newer magic",
        "new magic",
    ]
    plt.close(picture)


def test_rivals_are_in_the_table_and_the_front_whether_they_have_a_loss_or_not(make):
    points = {
        "mcl": (30.0, 0.6),
        "prompts": (26.0, 0.7),
        "ensemble": (25.0, 0.3),
        "list": (33.0, 0.5),
        "mle_rk/sampling-0.7": (31.0, 0.4),
    }
    found = {name: {"oracle_bleu": q, "div_2": d, "test_loss": 2.0} for name, (q, d) in points.items()}
    found["list"] |= lists.NO_LIKELIHOOD
    rows = rows_of([make("rivals", {"methods": found})])
    table = tables.lay_out(rows, ["test_loss", "oracle_bleu"])
    assert [cells[:2] for cells in table.body][3] == ["list", "n/a"]
    assert f"n/a: test_loss in list: {lists.WHY}" in table.notes
    picture = figure.draw(rows, "oracle_bleu", "div_2")
    assert [text.get_text() for text in picture.legends[0].get_texts()] == [
        "LoRA-MCL",
        "Soft prompts",
        "Ensemble",
        "List of answers",
        "LoRA-MLE, rank r·K sampling-0.7",
        "Pareto front",
    ]
    drawn = [line for line in picture.axes[0].lines if len(line.get_xdata()) == 1]
    assert len({line.get_color() for line in drawn}) == 5 and drawn[-1].get_marker() == "^"
    border = {tuple(corner) for corner in picture.axes[0].lines[-1].get_xydata().tolist()}
    assert {(0.5, 33.0), (0.6, 30.0), (0.7, 26.0)} <= border and not {(0.3, 25.0), (0.4, 31.0)} & border
    plt.close(picture)


def test_names_are_no_formulas_and_none_is_left_out():
    """An odd formula would be an error when the figure is saved; labels that begin with "_" have no legend."""
    names = ["a $\\frac{1}$ b", "_private", r"\$x\$", "half \ud83d"]
    rows = [row(f"m{i}/$x$", n, oracle_bleu=Number(i), div_2=Number(0.1)) for i, n in enumerate(names)]
    picture = figure.draw(rows, "oracle_bleu", "div_2")
    for text in picture.legends[0].get_texts():
        assert not text._preprocess_math(text.get_text())[1]  # no mathtext
    shown = [text._preprocess_math(text.get_text())[0] for text in picture.legends[0].get_texts()]
    assert shown == [*(f"m{i} $x$" for i in range(4)), "Pareto front", *names[:3], "half ?"]
    picture.canvas.draw()
    plt.close(picture)


def test_a_figure_that_fails_costs_itself_alone(six, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no font")

    monkeypatch.setattr(figure, "draw", fail)
    main(Config(workdirs=tuple(six), out=tmp_path / "out", quality="purity"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.csv", "table.md", "table.tex"}
    printed = capsys.readouterr().out
    assert "quality_diversity.pdf could not be made: no font" in printed and "* 2.143 ± 0.133 (3)" in printed


def test_axes():
    both = row("a", oracle_spider=Number(0.9), oracle_cider_d=Number(1.1), div_2=Number(0.3), zest=Number(1.0))
    one = row(
        "b", oracle_spider=NotAvailable("no Java"), oracle_cider_d=Number(0.7), div_2=Number(0.1), purity=Number(1)
    )
    axis = lambda asked=None: columns.axis([both, one], "--quality", asked, columns.QUALITY_AXES)
    assert axis() == "oracle_cider_d"
    assert axis("purity") == "purity"
    with pytest.raises(ValueError, match="--quality must be one of .*, got 'purty'; did you mean 'purity'?"):
        axis("purty")
    with pytest.raises(ValueError, match="--quality must be one of .*, got 'zest'"):
        axis("zest")
    with pytest.raises(ValueError, match=re.escape("none of the defaults ['oracle_spider'] is in all runs")):
        columns.axis([both, one], "--quality", None, ["oracle_spider"])


# -------------------------------------------------------------------------------------------------------- Command line


def test_the_whole_comparison(six, tmp_path, capsys):
    log(six[0], [("mcl", 3, 2.0, 0.7)])
    main(Config(workdirs=tuple(six), out=tmp_path / "a" / "out", quality="purity"))
    files = {path.name for path in (tmp_path / "a" / "out").iterdir()}
    figures = {f"{name}.{kind}" for name in ("quality_diversity", "curves") for kind in ("png", "pdf")}
    assert files == {"table.csv", "table.md", "table.tex"} | figures
    said = capsys.readouterr().out
    assert "* 2.143 ± 0.133 (3)" in said
    assert "Not in the figure because it lacks purity or div_2: mle_rk/beam (epsilon=0.1)" in said
    assert "n/a: meteor" not in said  # not among the columns of the console
    lines = (tmp_path / "a" / "out" / "table.md").read_text().splitlines()
    assert lines[0].count("|") == 1 + 2 + 16
    assert lines[2].startswith("| epsilon=0.05 | mcl | **2.143 ± 0.133 (3)** |")
    assert "n/a: oracle_spice, oracle_spice.es in mcl (epsilon=0.05), mcl (epsilon=0.1): SPICE needs CoreNLP" in lines


def log(path, values, tail=""):
    lines = [
        dict(run=run, step=step, eval_loss=loss, **({} if purity is None else {"purity": purity}))
        for run, step, loss, purity in values
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_curves_are_means_over_seeds_and_leave_out_what_was_before_the_first_step(make):
    found = [make(f"s{seed}", results(2.0), seed=seed) for seed in range(3)]
    for seed, path in enumerate(found):
        mcl = [("mcl", step, 5.0 - step + seed, 0.1 * step) for step in (0, 1, 2, 3 + seed)]
        log(path, [*mcl, ("mle_rk", 2, 7.0, None)], tail='{"run": "mcl", "st')
        with open(path / "metrics.jsonl", "a") as file:
            file.write('ep": 9}\n')  # a line without an evaluation
    drawn = curves.collect(runs.group([runs.read(path) for path in found]))
    assert list(drawn) == ["LoRA-MCL", "LoRA-MLE, rank r·K"]
    assert curves.mean(drawn["LoRA-MCL"], "eval_loss") == ([1, 2], [5.0, 4.0])
    assert curves.mean(drawn["LoRA-MLE, rank r·K"], "purity") == ([], [])
    loss, purity = curves.draw(drawn).axes
    assert [len(axes.lines) for axes in (loss, purity)] == [2 + 6, 1 + 6]
    plt.close("all")


def test_curves_of_a_method_that_several_groups_trained_are_told_apart(make):
    found = [make(f"e{rank}", results(2.0), rank=rank) for rank in (5, 7)]
    log(found[0], [("mcl", 3, 2.0, None), ("mle_r", 3, 2.5, None)])
    log(found[1], [("mcl", 3, 1.9, None)])
    drawn = curves.collect(runs.group([runs.read(path) for path in found]))
    assert list(drawn) == ["LoRA-MCL (rank=5)", "LoRA-MLE, rank r", "LoRA-MCL (rank=7)"]
    assert len(curves.draw(drawn).axes) == 1  # no purity
    plt.close("all")


def unfinished(make):
    path = make("u", results(2.0))
    (path / "results.json").unlink()
    lines = [dict(run="mcl", step=3), dict(run="mcl", step=60), dict(run="mle_r", step=20)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"run": "mle_r", "st')
    return [path]


def without_config(make):
    path = make("u", results(2.0))
    (path / "config.json").unlink()
    return [path]


def damaged(make):
    (path,) = unfinished(make)
    (path / "metrics.jsonl").write_text("{\n[]\n")
    return [path]


@pytest.mark.parametrize(
    ("workdirs", "options", "message"),
    [
        (lambda make: [make("a", results(2.0)).with_name("b")], {}, "needs directories .*b is not a directory"),
        (unfinished, {}, "u has no results.json: the run is not finished, mcl is at step 60, mle_r is at step 20$"),
        (damaged, {}, "u has no results.json: the run is not finished .*metrics.jsonl is damaged: "),
        (without_config, {}, "u has no config.json"),
        (lambda make: [make("l", [1])], {}, "l.results.json must hold a JSON object, as a run writes it, got list"),
        (lambda make: [make("l", {"methods": [1]})], {}, "l.results.json must have `methods`"),
        (lambda make: [make("l", {"methods": {"mcl": 3}})], {}, "l.results.json must have `methods`"),
        (lambda make: [make("m", {"mcl": {}, "seconds": 3})], {}, "m.results.json must have `methods`.*mcl, seconds;"),
        (lambda make: [make(n, results(2.0), seed=3) for n in "ab"], {}, "a and .*b both have 'mcl' .*seed, 3; leave"),
        (lambda make: [make("a", results(2.0))], {"columns": ("div2",)}, "did you mean 'div_2'?"),
        (lambda make: [make("a", results(2.0))], {"diversity": "div_3"}, "--diversity must .* did you mean 'div_2'?"),
        (lambda make: [], {}, "--workdirs needs at least one"),
    ],
)
def test_refusals_come_before_any_output(make, tmp_path, workdirs, options, message):
    with pytest.raises(ValueError, match=message):
        main(Config(workdirs=tuple(workdirs(make)), out=tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
