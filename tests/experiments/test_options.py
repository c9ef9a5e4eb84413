"""Configurations of all experiments: short options for nested groups, --print-config, what may change on resuming."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax.numpy as jnp
import optax
import pytest

from experiments.audio_captioning import config as audio
from experiments.bench_decode.__main__ import Config as BenchDecode
from experiments.bench_head import __main__ as bench_head
from experiments.common import decoders, groups, options, sweep
from experiments.common.options import flat, leaves, option_of
from experiments.common.prompts import Prompts
from experiments.common.training import make_step
from experiments.compare import __main__ as compare
from experiments.image_captioning import config as image
from experiments.markov.collapse import CollapseConfig
from experiments.markov.config import Config as Markov
from experiments.markov.config import ObjectiveName
from experiments.translation import config as translation
from mcl_jax import objectives
from mcl_jax.json_io import to_json
from mcl_jax.run import Run

EXPERIMENTS = {"translation": translation, "image_captioning": image, "audio_captioning": audio}
PRESETS = [(name, preset) for name, module in EXPERIMENTS.items() for preset in module.PRESETS.of]
CONFIGS = [*(module.Config for module in EXPERIMENTS.values()), Markov, CollapseConfig]


def printed(parse, args, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(args)
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("experiment", "preset"), PRESETS)
def test_print_config_gives_the_resolved_values_of_every_preset(experiment, preset, capsys):
    module = EXPERIMENTS[experiment]
    found = printed(module.parse, ["--preset", preset, "--print-config"], capsys)
    assert found["workdir"] is None
    values = flat(found)
    for option, value in module.PRESETS.of[preset].items():
        assert values[option] == to_json(value), option
    assert values["steps"] or values["epochs"]
    changed = flat(printed(module.parse, ["--rank=7", "--print-config", "--preset", preset, "--workdir", "w"], capsys))
    assert changed == values | {"rank": 7, "workdir": "w"}


@pytest.mark.parametrize("config", [Markov, CollapseConfig, BenchDecode])
def test_print_config_without_presets(config, capsys):
    found = flat(printed(lambda args: options.parse(config, args), ["--print-config"], capsys))
    assert set(found) == {option_of(path) for path, _ in leaves(config)}
    if config is Markov:
        assert (found["steps"], found["objective"], found["learning_rate"]) == (800, "wta", 1e-3)


def test_print_config_of_sweeps_and_of_the_benchmark(capsys):
    parse = lambda args: sweep.command_line(image.Config, image.PRESETS, args)
    assert flat(printed(parse, ["--kind", "epsilon", "--print-config"], capsys))["steps"] == image.STAMPS["steps"]
    assert printed(bench_head.parse, ["--quick", "--print-config", "--layers", "3"], capsys)["layers"] == 3


def test_print_config_of_compare(capsys):
    """Required options may be missing, or be given anywhere."""
    empty = printed(compare.parse, ["--print-config", "--diversity", "div_1"], capsys)
    assert (empty["workdirs"], empty["out"], empty["diversity"]) == ([], None, "div_1")
    full = printed(compare.parse, ["--workdirs", "a", "b", "--print-config", "--out", "c"], capsys)
    assert (full["workdirs"], full["out"], full["columns"]) == (["a", "b"], "c", [])
    with pytest.raises(SystemExit):
        compare.parse(["--diversity", "div_1"])
    assert "--workdirs" in capsys.readouterr().err


def test_print_config_loads_nothing():
    """Neither data nor weights, and no device of jax: more of them than any machine has may be asked for."""
    line = [
        "--print-config",
        "--preset",
        "demo",
        "--mesh",
        "data=104729",
        "--batch-size",
        "104729",
        "--data",
        "nowhere",
    ]
    code = "import sys, jax; jax.devices = jax.local_devices = None; from experiments.translation.config import parse"
    command = [sys.executable, "-c", f"{code}; parse(sys.argv[1:])", *line]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["training"]["mesh"] == "data=104729"


@pytest.mark.parametrize("config", CONFIGS)
def test_options_have_one_name_each(config):
    names = [option_of(path) for path, _ in leaves(config)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_is_in_help_under_its_short_name_and_explained(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        options.parse(config, ["--help"])
    shown = capsys.readouterr().out
    for path, _ in leaves(config):
        assert f"--{option_of(path).replace('_', '-')}" in shown, path
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default):
            assert f" {field.name} options " in shown


@pytest.mark.parametrize("module", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_options_by_name(module):
    config = module.Config.from_options(
        workdir=Path("w"), rank=3, objective="relaxed", epsilon=0.3, base=Path("b"), eval_every=7
    )
    assert (config.lora.rank, config.objective.name, config.objective.epsilon) == (3, "relaxed", 0.3)
    assert (config.base.path, config.evaluation.eval_every, config.training.steps) == (Path("b"), 7, 100)
    changed = config.replace(objective="wta", steps=11)
    assert (changed.objective.name, changed.objective.epsilon, changed.training.steps) == ("wta", 0.3, 11)
    assert changed.lora is config.lora
    with pytest.raises(TypeError, match="there is no option rnk, stepps"):
        config.replace(stepps=3, rnk=1)


def test_the_json_of_a_configuration_has_its_options():
    config = audio.Config.from_options(workdir=Path("w"), **audio.AUDIOCAPS)
    values = flat(to_json(config))
    assert audio.Config.from_options(
        **{name: values[name] for name in ("rank", "seconds", "alpha")}, workdir=Path("w")
    ).lora == (dataclasses.replace(config.lora, dropout=0.0))
    assert (values["data"], values["base"], values["objective"]) == ("audiocaps", None, "relaxed")


def test_an_evaluation_holds_as_many_examples_as_a_micro_batch():
    config = image.Config.from_options(workdir=Path("w"), batch_size=24, accumulate=3)
    assert (config.batches.batch_size, config.evaluation_batches.batch_size) == (24, 8)
    assert config.evaluation_batches.lengths == config.batches.lengths


def test_a_run_is_resumed_with_other_volatile_options_and_no_others(tmp_path):
    config = image.Config.from_options(workdir=tmp_path, rank=3)
    with Run(tmp_path, config, volatile=config.volatile) as run:
        run.log(1, {"eval_loss": 1.0})
    other = config.replace(num_beams=8, cache=tmp_path / "c", remat="dots", corenlp=tmp_path, test_items=3)
    with Run(tmp_path, other, volatile=other.volatile):
        assert json.loads((tmp_path / "config.json").read_text())["decoding"]["num_beams"] == 8
    for change, name in (
        (dict(rank=4), "lora.rank: 3 in the file, 4 now"),
        (dict(objective="wta"), 'objective.name: "balanced" in the file, "wta" now'),
        (dict(eval_every=3), "evaluation.eval_every: 20 in the file, 3 now"),
    ):
        changed = config.replace(**change)
        with pytest.raises(ValueError, match=name), Run(tmp_path, changed, volatile=changed.volatile):
            pass


@pytest.mark.parametrize("module", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_more_devices_than_there_are_are_refused_when_a_run_begins(module, tmp_path):
    config = module.Config.from_options(workdir=tmp_path, mesh="data=3,model=3", batch_size=9)
    with pytest.raises(ValueError, match="--mesh needs 9 devices, but there are 8"):
        config.training.check_devices()


@pytest.mark.parametrize(("shared", "own"), [(0, 7), (3, 6), (18, 1)])
def test_methods_have_the_same_total_rank_and_scale_with_a_shared_part(shared, own, tmp_path):
    config = translation.Config.from_options(
        workdir=tmp_path, num_hypotheses=3, rank=7, alpha=11.0, shared_rank=shared, num_beams=3
    )
    mcl, mle = config.lora_of("mcl"), config.lora_of("mle_rk")
    assert (mcl.rank, mcl.shared_rank) == (own, shared) and shared + 3 * own == mle.rank == 21
    assert mcl.scale_of("up_proj") == pytest.approx(11 / 7) and mle.scale_of("up_proj") == pytest.approx(11 / 7)


@pytest.mark.parametrize("shared", [-3, 1, 21, 24])
def test_a_shared_rank_that_leaves_no_equal_parts_is_refused(shared, tmp_path):
    with pytest.raises(
        ValueError, match=f"--shared-rank must be 0 or a multiple of --num-hypotheses 3 .*, got {shared}"
    ):
        translation.Config.from_options(workdir=tmp_path, num_hypotheses=3, rank=7, shared_rank=shared, num_beams=3)


@pytest.mark.parametrize("option", [{"own_rate": 4.0}, {"own_after": 10}, {"shared_after": 5}])
def test_options_of_the_own_part_need_a_shared_part(option, tmp_path):
    config = translation.Config.from_options(workdir=tmp_path, shared_rank=4, **option)
    assert len(config.optimizer.make(10).init({"a": jnp.zeros(2)})) == 3  # clipping, AdamW and the factor
    with pytest.raises(ValueError, match="--own-rate, --own-after and --shared-after need --shared-rank, got 0"):
        translation.Config.from_options(workdir=tmp_path, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"own_rate": 0.0}, "--own-rate must be positive, got 0.0"),
        ({"own_after": -1}, "--own-after must be at least 0"),
        ({"shared_after": -1}, "--shared-after must be at least 0, got -1"),
        ({"own_after": 2, "shared_after": 3}, "--own-after and --shared-after exclude each other"),
    ],
)
def test_wrong_options_of_the_own_part_are_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        translation.Config.from_options(workdir=tmp_path, shared_rank=4, **option)


ALL_DECODERS = get_args(decoders.DecoderName)


@pytest.mark.parametrize("beams", [6, 12])
def test_all_decoders_of_all_methods_make_k_answers_and_spend_the_same(beams, tmp_path):
    """Rows in all: those with beams have all beams, samples one row for each answer; K answers in all."""
    config = audio.Config.from_options(
        workdir=tmp_path,
        num_hypotheses=3,
        num_beams=beams,
        mle_decoders=ALL_DECODERS,
        mcl_decoders=ALL_DECODERS,
        experts_alone=True,
    )
    spent = {}
    for method in ("mcl", "prompts", "ensemble", "mle_r", "mle_rk", "moe", "list"):
        for name, decoder in config.decoders(method).items():
            K = config.hypotheses_of(method)
            spent.setdefault(name.partition("/")[2], set()).add(tuple(K * n for n in decoders.budget(decoder)))
    samples = {"sampling", "ancestral", "top_k", "typical"}
    assert spent.pop("greedy") == {(3, 3), (1, 1)}  # one answer of each hypothesis, or a list
    assert spent == {name: {(3 if name in samples else beams, 3)} for name in {*ALL_DECODERS, "experts"} - {"greedy"}}


def test_several_temperatures_give_a_sampler_each(tmp_path):
    config = translation.Config.from_options(
        workdir=tmp_path, num_hypotheses=3, sampling_temperatures=(0.7, 1.3), mle_decoders=("sampling", "beam")
    )
    found = config.decoders("mle_r")
    assert list(found) == ["mle_r/sampling-0.7", "mle_r/sampling-1.3", "mle_r/beam"]
    assert [found[f"mle_r/sampling-{t}"].temperature for t in (0.7, 1.3)] == [0.7, 1.3]
    alone = config.replace(sampling_temperatures=(0.3,), mcl_decoders=("ancestral",))
    assert alone.decoders("mle_r")["mle_r/sampling"].temperature == alone.decoders("mcl")["mcl"].temperature == 0.3


def test_rivals_of_mcl_differ_from_it_in_what_they_are_named_for(tmp_path):
    config = translation.Config.from_options(
        workdir=tmp_path,
        num_hypotheses=3,
        rank=6,
        alpha=7.0,
        shared_rank=9,
        objective="relaxed",
        epsilon=0.1,
        learning_rate=0.5,
        prompt_rate=0.25,
        steps=10,
    )
    assert config.objective_of("prompts") == config.objective_of("mcl") == objectives.relaxed_wta(0.1)
    assert config.backward_of("prompts") == config.backward_of("mcl") == "sampled"
    assert (config.backward_of("ensemble"), config.backward_of("mle_r")) == ("all", "winner")
    log_p = jnp.array([[-3.0, -1.0], [-1.0, -2.0], [-2.0, -5.0]])
    for loss in (config.objective_of("ensemble"), objectives.relaxed_wta(2 / 3)):
        assert jnp.allclose(loss.weights(log_p), 1 / 3)
    ranks = {method: config.lora_of(method) for method in ("mcl", "ensemble", "mle_r", "mle_rk", "moe", "list")}
    assert {method: (of.rank, of.shared_rank) for method, of in ranks.items()} == {
        "mcl": (3, 9),
        "ensemble": (6, 0),
        "mle_r": (6, 0),
        "mle_rk": (18, 0),
        "moe": (6, 0),
        "list": (18, 0),
    }
    assert ranks["list"] == ranks["mle_rk"]
    rates = [config.optimizer_of(method).learning_rate for method in ("mcl", "prompts", "ensemble", "list")]
    assert rates == [0.5, 0.25, 0.5, 0.5]
    assert dataclasses.replace(config.optimizer_of("prompts"), learning_rate=0.5) == config.optimizer


@pytest.mark.parametrize(("given", "length"), [(None, 3), (7, 7), (200, 200)])
def test_a_soft_prompt_has_as_many_parameters_as_the_adapters(given, length):
    assert Prompts(prompt_length=given).length(3.4 * 11, 11) == length
    assert Prompts().length(1e6, 11) == 100 and Prompts().length(2, 11) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(mcl_decoders=()), "--methods mcl needs at least one of --mcl-decoders, got none"),
        (
            dict(mcl_decoders=("diverse",), num_beams=2),
            "diverse needs at least 2 beams .* --num-beams of at least 4; got 2",
        ),
        (dict(diversity_penalty=()), r"--diversity-penalty needs at least one λ, each once, got \(\)"),
        (dict(diversity_penalty=(0.5, 0.5)), "--diversity-penalty needs at least one λ, each once"),
        (dict(eval_every=0), "--eval-every must be a number of steps or a fraction below 1, got 0"),
        (dict(eval_every=2.5), "--eval-every must be a number of steps or a fraction below 1, got 2.5"),
        (dict(beta2=1.0), "--beta2 must be at least 0 and below 1, got 1.0"),
        (dict(final_rate=1.5), "--final-rate must be from 0 to 1, got 1.5"),
        (dict(patience=3), "--patience 3 needs --keep best, got last"),
        (dict(time_mask=1.1), "--time-mask must be from 0 to 1, got 1.1"),
        (dict(refresh=0), "--refresh must be .*at least 1, got 0"),
        (dict(refresh=2, objective="relaxed"), "--refresh needs one winner for each example"),
        (dict(choose_tokens=4, objective="relaxed", backward="all"), "--choose-tokens needs --backward winner or"),
        (dict(choose_dtype="int8", objective="relaxed", backward="all"), "--choose-dtype needs --backward winner or"),
        (
            dict(choose_dtype="bfloat16", quantization="nf4"),
            "--choose-dtype needs a base that is not quantized already",
        ),
        (dict(pack=True), "--pack needs examples of text alone"),
    ],
)
def test_wrong_options_are_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        audio.Config.from_options(workdir=tmp_path, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(choose_tokens=3), "--pack and --choose-tokens exclude each other"),
        (dict(methods=("mcl", "prompts")), "--pack does not go with --methods prompts"),
        (dict(methods=("mcl", "moe"), experts_per_token=1), "--pack does not go with --experts-per-token"),
    ],
)
def test_what_does_not_go_with_packed_rows(option, message, tmp_path):
    translation.Config.from_options(workdir=tmp_path, pack=True, methods=("mcl", "moe"))
    with pytest.raises(ValueError, match=message):
        translation.Config.from_options(workdir=tmp_path, pack=True, **option)


def test_packed_rows_divide_over_devices_and_micro_batches(tmp_path):
    config = translation.Config.from_options(workdir=tmp_path, pack=True, mesh="data=2", accumulate=2, max_length=50)
    assert config.training.rows_multiple == 4 and config.replace(pack=False).training.rows_multiple is None
    assert config.batches.lengths == (50,) and config.batches.window == 1


@dataclasses.dataclass
class AnyTask:
    """A task whose likelihoods return their dtype."""

    config: translation.Config

    def log_likelihood_fn(self, method, *, train, dtype=None):
        assert train
        return lambda *of: dtype


@pytest.mark.parametrize("mesh", ["data=1", "data=2", "data=1,model=2"])  # jit, pmap and a mesh
def test_how_winners_are_chosen_reaches_the_step(mesh, tmp_path):
    loss, optimizer = objectives.wta(), optax.sgd(0.1)
    for assign in ("noisy", "clean"):
        config = translation.Config.from_options(workdir=tmp_path, mesh=mesh, assign=assign)
        assert make_step(AnyTask(config), "mcl", loss, optimizer).update.assign == assign


@pytest.mark.parametrize("mesh", ["data=1", "data=2", "data=1,model=2"])
def test_cheaper_choices_reach_the_step_of_mcl_alone(mesh, tmp_path):
    config = translation.Config.from_options(workdir=tmp_path, mesh=mesh, refresh=3, choose_tokens=5)
    step = lambda method: make_step(AnyTask(config), method, objectives.wta(), optax.sgd(0.1)).update
    assert step("mcl").refresh == 3 and step("mcl").choose_fn is not None
    assert step("mle_rk").refresh is None and step("mle_rk").choose_fn is None


def test_a_dtype_of_their_own_chooses_the_winners_of_mcl_alone(tmp_path):
    config = translation.Config.from_options(workdir=tmp_path, choose_dtype="int8")
    step = lambda config, method: make_step(AnyTask(config), method, objectives.wta(), optax.sgd(0.1)).update
    update = step(config, "mcl")
    assert (update.choose_fn(), update.log_likelihood_fn()) == ("int8", None)
    assert step(config, "mle_rk").choose_fn is None and step(config.replace(choose_dtype=None), "mcl").choose_fn is None


def test_only_a_pass_of_all_hypotheses_with_dropout_needs_another_one_to_choose(tmp_path):
    config = translation.Config.from_options(workdir=tmp_path, dropout=0.1)
    assert config.chooses_first("all") and not config.chooses_first("winner")
    assert not config.replace(assign="noisy").chooses_first("all") and not config.replace(dropout=0).chooses_first(
        "all"
    )


def test_every_name_of_an_objective_or_a_decoder_makes_one():
    names = {*get_args(groups.ObjectiveName), *get_args(ObjectiveName)}
    assert all(isinstance(groups.Objective().make(name), objectives.Objective) for name in names)
    assert all(decoders.Decoding().decoder(name, 3) for name in get_args(decoders.DecoderName))
    with pytest.raises(ValueError, match=r"Objective\.make needs a case for 'mcl'"):
        groups.Objective().make("mcl")
    with pytest.raises(ValueError, match=r"Decoding\.decoder needs a case for 'nucleus'"):
        decoders.Decoding().decoder("nucleus", 3)


def test_the_folder_of_the_base_decides_how_to_decode_where_no_option_does(tmp_path, capsys):
    file = tmp_path / "generation_config.json"
    file.write_text(
        json.dumps({"eos_token_id": [3, 5], "repetition_penalty": 1.3, "max_new_tokens": 9, "num_beams": 4})
    )
    given = translation.parse(["--workdir", "w", "--no-repeat-ngram-size", "3", "--stop-strings", "a", "b"]).decoding
    wanted = {"eos_token_id": (3, 5), "repetition_penalty": 1.3, "max_new_tokens": 80, "no_repeat_ngram_size": 3}
    assert given.limits(tmp_path) == wanted | {"stop_strings": ("a", "b")}
    assert capsys.readouterr().out == f"Taken from {file}: eos_token_id=[3, 5], repetition_penalty=1.3.\n"
    other = translation.parse(["--workdir", "w", "--repetition-penalty", "1"]).decoding
    assert other.limits(tmp_path)["repetition_penalty"] == 1.0
    assert other.limits(tmp_path / "none") == {"max_new_tokens": 80, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--repetition-penalty=0", "--repetition-penalty must be above 0, got 0"),
        ("--no-repeat-ngram-size=-1", "--no-repeat-ngram-size must be at least 0, got -1"),
        ("--stop-strings=", "stop_strings must be texts that are not empty, got ''"),
    ],
)
def test_limits_of_answers_that_are_wrong(option, message):
    with pytest.raises(ValueError, match=message):
        translation.parse(["--workdir", "w", option])
