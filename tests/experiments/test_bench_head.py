"""The benchmark runs, compares only what computes the same, and says so when something does not. No clock is judged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.bench_head import __main__ as bench
from experiments.bench_head import measure, peak, programs, report, variants
from experiments.bench_head.config import QUICK, VARIANTS, Config

TINY = Config(
    layers=1,
    d_model=14,
    num_heads=2,
    vocab=53,
    batch=3,
    seq_len=5,
    ranks=(2,),
    ks=(2,),
    repeats=2,
    warmup=0,
    chunk_size=7,
    subprocess=False,
)
SIZES = "--layers 1 --d-model 14 --num-heads 2 --vocab 53 --batch 3 --seq-len 5 --ranks 2 --ks 2 --repeats 2 --warmup 0"


@pytest.fixture(autouse=True)
def standard_promotion():
    """Adam of optax raises a float to an int32 count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """Nearly all the time here is the compiler's, and no clock is judged."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_every_variant_computes_the_same_and_the_rows_are_complete(tmp_path, capsys):
    path, figure = tmp_path / "rows.json", tmp_path / "cost.png"
    bench.cli([*SIZES.split(), "--no-subprocess", "--json", str(path), "--figure", str(figure)])
    rows = json.loads(path.read_text())

    train = [(row["variant"], row["k"]) for row in rows if row["mode"] == "train"]
    forward = [(row["variant"], row["k"]) for row in rows if row["mode"] == "forward"]
    assert train == [("all", 1), *((name, 2) for name in VARIANTS)]
    assert forward == [("all", 1), ("all", 2), ("loop", 2), ("grouped_conv", 2), ("separate", 2)]
    for row in rows:
        mle = report.row_of(rows, "all", 1, 2, row["mode"])
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        assert row["relative_to_mle"] == pytest.approx(row["seconds_median"] / mle["seconds_median"])
        assert row["temp_bytes"] > 0 and row["argument_bytes"] > 0
    temp = {name: report.row_of(rows, name, 2, 2, "train")["temp_bytes"] for name in VARIANTS}
    assert temp["winner"] < temp["all"]
    assert figure.stat().st_size > 10_000
    assert "winner ÷ MLE, time" in capsys.readouterr().out


def test_a_variant_that_computes_something_else_is_refused(monkeypatch):
    right = variants.grouped_delta

    def without_scale(config, adapters):
        return right(dataclasses.replace(config, alpha=float(config.rank)), adapters)

    monkeypatch.setattr(variants, "grouped_delta", without_scale)
    setup = variants.make_setup(TINY, 2, 2)
    config = dataclasses.replace(TINY, variants=("grouped_conv",))
    with pytest.raises(
        ValueError, match=r"log-likelihoods of 'grouped_conv' at K=2 must equal those of 'all' .* but differ by"
    ):
        measure.checked_programs(config, setup, "forward")


def test_the_check_refuses_nan_and_allows_rounding():
    reference = {"a": jnp.ones(5), "b": jnp.full(3, 2.0)}
    measure.check("loop", 2, "train", jax.tree.map(lambda x: x * (1 + 1e-6), reference), reference, 1e-4)
    for wrong in (jnp.nan, 1.001):
        with pytest.raises(ValueError, match="gradients of 'loop' at K=2"):
            measure.check("loop", 2, "train", jax.tree.map(lambda x, w=wrong: x * w, reference), reference, 1e-4)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_first_gradient_is_read_off_adam_clipped_or_not(key, scale):
    gradient = {"a": scale * jax.random.normal(key, (7,))}
    _, opt_state = variants.OPTIMIZER.update(gradient, variants.OPTIMIZER.init(gradient), gradient)
    found = programs.first_gradient(opt_state, optax.tree.norm(gradient))
    assert measure.relative_error(found, gradient) < 1e-6


def test_rounds_run_programs_in_turn_and_time_all_but_the_warm_up():
    order = []
    fakes = [
        programs.Program(first=None, run=lambda name=name: order.append(name), temp_bytes=None, argument_bytes=None)
        for name in "AB"
    ]
    seconds = measure.rounds(fakes, warmup=1, repeats=2)
    assert "".join(order) == "ABABAB"
    assert [len(times) for times in seconds] == [2, 2]


def test_cells_hold_the_mle_step_once():
    assert dataclasses.replace(TINY, ks=(3, 1, 3), variants=("winner",)).cells("train") == [
        ("all", 1),
        ("winner", 1),
        ("winner", 3),
    ]
    assert dataclasses.replace(TINY, ks=(1,), variants=("all",)).cells("train") == [("all", 1)]


def test_peak_memory_is_measured_in_a_process_of_its_own():
    config = dataclasses.replace(TINY, subprocess=True, variants=("all", "winner"))
    assert peak.cells_with_peak(TINY) == []
    assert peak.cells_with_peak(config) == [("all", 1, 2, "train"), ("all", 2, 2, "train"), ("winner", 2, 2, "train")]
    assert peak.peak_memory(config, ("all", 2, 2, "forward"))["peak_rss_bytes"] > 50 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(d_model=15), "multiple of --num-heads, got d_model=15, num_heads=2"),
        (dict(ks=(2, 0)), "every value of --ks must be at least 1"),
        (dict(ks=()), "--ks needs at least one value"),
        (dict(variants=("winer",)), "did you mean 'winner'"),
        (dict(repeats=0), "--repeats must be at least 1, got 0"),
        (dict(warmup=-1), "--warmup"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).check()


def test_quick_is_a_preset_that_options_override():
    assert bench.parse(["--quick"]) == QUICK
    assert bench.parse(["--quick", "--layers", "3"]) == dataclasses.replace(QUICK, layers=3)
    assert bench.parse([]) == Config()


def test_bad_arguments_end_with_one_line(capsys):
    with pytest.raises(SystemExit, match="^error: --d-model must be a multiple"):
        bench.cli(["--d-model", "33"])
