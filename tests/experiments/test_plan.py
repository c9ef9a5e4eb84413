"""The planner: what it reads in compiled programs, what it searches, and the plan of a tiny model on 8 fake devices."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import published_sizes
import pytest

from experiments.common.devices import Axes
from experiments.plan import chips, costs, flops, hlo, measure, search
from experiments.plan.__main__ import main
from experiments.plan.options import parse
from experiments.plan.presets import BASES, PRESETS, base_of, config_of, tower_inputs
from experiments.plan.programs import Programs
from mcl_jax.command_line import errors_in_a_line
from mcl_jax.models import families
from mcl_jax.models.names import abstract_params

TINY = {
    "model_type": "llama",
    "vocab_size": 263,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LENGTH = 29


# ---------------------------------------------------------------------------------------------------- Compiled programs


TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/mcl_jax/models/llama.py"
2 "/home/me/.venv/lib/site-packages/flax/linear.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=41 end_line=41 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%sliced (p: bf16[7,5,3], i: s32[]) -> bf16[5,3] {
  %p = bf16[7,5,3]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %slice = bf16[1,5,3]{2,1,0} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,5,3}
  ROOT %flat = bf16[5,3]{1,0} bitcast(%slice)
}

%body (carry: (s32[], f32[2,5], bf16[7,5,3])) -> (s32[], f32[2,5], bf16[7,5,3]) {
  %carry = (s32[], f32[2,5]{1,0}, bf16[7,5,3]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%carry), index=0
  %x = f32[2,5]{1,0} get-tuple-element(%carry), index=1
  %w = bf16[7,5,3]{2,1,0} get-tuple-element(%carry), index=2
  %part = bf16[5,3]{1,0} fusion(%w, %n), kind=kLoop, calls=%sliced, metadata={op_name="x" stack_frame_id=2}
  %y = f32[2,3]{1,0} dot(%x, %part), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all = f32[2,12]{1,0} all-gather(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
  %again = f32[2,12]{1,0} all-gather(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
  %next = f32[2,5]{1,0} all-reduce(%x), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[2,5]{1,0}, bf16[7,5,3]{2,1,0}) tuple(%n, %next, %w)
}

%test (carry: (s32[], f32[2,5], bf16[7,5,3])) -> pred[] {
  %carry.1 = (s32[], f32[2,5]{1,0}, bf16[7,5,3]{2,1,0}) parameter(0)
  %most = s32[]{:T(128)} constant(7)
  %n.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%n.1, %most), direction=LT
}

ENTRY %main (start: (s32[], f32[2,5], bf16[7,5,3])) -> (s32[], f32[2,5], bf16[7,5,3]) {
  %start = (s32[], f32[2,5]{1,0}, bf16[7,5,3]{2,1,0}) parameter(0)
  ROOT %loop = (s32[], f32[2,5]{1,0}, bf16[7,5,3]{2,1,0}) while(%start), condition=%test, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_runs_and_a_split_collective_once():
    program = hlo.Program(TEXT)
    assert costs.flops(program) == 7 * 2 * (2 * 3) * 5
    gathered, reduced = sorted(costs.collectives(program), key=lambda one: one.kind)
    assert (gathered.kind, gathered.group, gathered.calls) == ("all-gather", 4, 7)
    assert (gathered.bytes, gathered.wire_bytes) == (7 * 2 * 12 * 4, 7 * 2 * 12 * 4 * 3 // 4)
    assert (reduced.kind, reduced.group, reduced.bytes, reduced.wire_bytes) == ("all-reduce", 2, 280, 280)


def test_products_in_int8_take_less_time():
    of_int8 = hlo.Program(TEXT.replace("f32[2,5]", "s8[2,5]").replace("bf16[", "s8["))
    assert costs.flops(of_int8, "s8") == costs.flops(of_int8) == costs.flops(hlo.Program(TEXT))
    assert costs.flops(hlo.Program(TEXT), "s8") == costs.flops(hlo.Program(TEXT.replace("bf16[", "s8[")), "s8") == 0
    one, chip = measure.Measured("train", {}, flops=3 * 394e12, int8_flops=2 * 394e12), chips.V5E
    assert one.seconds(chips.Topology("v5e:2x4", chip, (), 2))["compute"] == 2 + 2


def test_only_the_slice_of_an_operand_is_read():
    body = hlo.Program(TEXT).computations["body"]
    part = costs._read(hlo.Program(TEXT), body.instructions["part"], body)
    assert part == 5 * 3 * 2 + 4  # and the index


def test_the_line_of_the_library_is_named():
    program = hlo.Program(TEXT)
    assert program.source(program.computations["body"].instructions["part"]) == "mcl_jax/models/llama.py:41"
    assert program.source(program.computations["body"].instructions["all"]) == ""


@pytest.mark.parametrize(
    ("shape", "logical", "padded"),
    [
        ("bf16[3,5504,16]{1,2,0:T(8,128)(2,1)}", 3 * 5504 * 16 * 2, 3 * 5504 * 16 * 2),
        ("bf16[3,5504,16]{2,1,0:T(8,128)(2,1)}", 3 * 5504 * 16 * 2, 3 * 5504 * 128 * 2),
        ("f32[5,3]{1,0:T(8,128)S(1)}", 60, 8 * 128 * 4),
        ("pred[7]", 7, 7),
        ("s4[6]{0}", 3, 3),
    ],
)
def test_layouts_pad(shape, logical, padded):
    (array,) = hlo.arrays_of(shape)
    assert (array.bytes, array.padded_bytes, array.in_hbm) == (logical, padded, "S(1)" not in shape)


def test_convolutions_with_holes_count_real_products():
    """A batched product [3, 2, 511, 16] x [3, 16, 7] as TPUs write it, and a convolution with padding."""
    line = "window={size=3x1 stride=2x1 lhs_dilate=3x1}, dim_labels=01bf_0io1->01bf"
    text = f"""ENTRY %main (a: bf16[3,2,511,16], b: bf16[3,16,7,2]) -> bf16[3,2,511,7] {{
  %a = bf16[3,2,511,16]{{3,2,1,0}} parameter(0)
  %b = bf16[3,16,7,2]{{3,2,1,0}} parameter(1)
  ROOT %y = bf16[3,2,511,7]{{3,2,1,0}} convolution(%a, %b), {line}
}}
"""
    assert costs.flops(hlo.Program(text)) == 2 * (3 * 2 * 511 * 7) * 16
    x, kernel = jnp.zeros((2, 5, 11)), jnp.zeros((4, 5, 3))
    convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (2,), [(1, 1)]))
    compiled = convolve.lower(x, kernel).compile()
    assert costs.flops(hlo.Program(compiled.as_text())) == compiled.cost_analysis()["flops"]


# ---------------------------------------------------------------------------------------------------------- Searching


@pytest.mark.parametrize("rows", [1, 13, 64, 500])
def test_the_largest_batch_is_found_from_any_start(rows):
    size, tried = lambda rows: 1000 + 37 * rows, []

    def compiled(rows):
        tried.append(rows)
        return size(rows)

    assert search.largest_rows((rows, size(rows)), size(101), compiled, 4) == search.Largest(101, True)
    assert {101, 102} <= {*tried} and len(tried) <= 4


def test_no_row_fits_and_few_compilations_estimate():
    assert search.largest_rows((2, 90), 50, lambda rows: 80, 5) == search.Largest(0, True)
    assert search.largest_rows((2, 90), 500, lambda rows: 1 / 0, 0).compiled is False


def test_meshes_and_the_default_one():
    assert [(axes.data, axes.model) for axes in search.meshes(6)] == [(6, 1), (3, 2), (2, 3), (1, 6)]
    assert search.default_mesh(8, 13, 16, 24) == Axes(data=4, model=2)
    assert search.default_mesh(8, 7, 16, 24) == Axes(data=8, model=1)
    assert search.default_mesh(8, 7, 16, 6) == Axes(data=2, model=4)
    assert search.default_mesh(8, 900, 16, 24) == Axes(data=1, model=8)


@pytest.mark.parametrize(("grid", "links"), [("2x4", 2.5), ("4x4", 3), ("2x2x1", 2), ("2x2x2", 3)])
def test_links(grid, links):
    assert chips.links_per_chip(grid) == links


# ----------------------------------------------------------------------------------------------------------- Refusals


@pytest.fixture(autouse=True)
def source_lines():
    """The plan names lines of the source, which other tests leave out of their programs."""
    jax.config.update("jax_traceback_in_locations_limit", 10)
    yield
    jax.config.update("jax_traceback_in_locations_limit", 0)


def run(tmp_path, *args):
    """Runs the command and returns its plan."""
    file, base = tmp_path / "plan.json", tmp_path / "config.json"
    base.write_text(json.dumps(TINY))
    sizes = ["--max-length", LENGTH, "--max-new-tokens", 3, "--base", base, "--json", file]
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam is not written for strict promotion
        main(parse([str(word) for word in ("--preset", "alma-7b-en-de", *sizes, *args)]))
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topology", "v9:2x4"], "--topology must be one of v5e:2x4, v5e:4x4, v4:2x2x1, .*, cpu:8, got 'v9:2x4'"),
        (["--topology", "cpu:8", "--mesh", "data=16"], "--mesh needs 16 chips, but the topology has 8"),
        (["--topology", "cpu:8", "--mesh", "data=4", "--batch-size", "6"], "--batch-size must be a multiple of data"),
    ],
)
def test_errors_are_a_line(tmp_path, args, message):
    with pytest.raises(SystemExit, match=f"^error: {message}"), errors_in_a_line():
        run(tmp_path, *args)


def test_without_its_compiler_the_error_names_make_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="^error: planning for v5e:2x4 needs libtpu.*make plan"), errors_in_a_line():
        run(tmp_path, "--topology", "v5e:2x4")


def test_bytes_are_read_in_the_refusal_of_the_compiler():
    resident = {"base": 3 * 2**30, "adapters": 2**30}
    told = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G."
    refused = measure._refused("train", told, resident, 1.0)
    assert refused.total == int(17.5 * 2**30) and not refused.fits(2**40)
    told = "RESOURCE_EXHAUSTED: total memory required for HLO temporaries (1.50T) exceeds available HBM (15.75G)."
    assert measure._refused("train", told, resident, 1.0).bytes["temporaries"] == 3 * 2**39


# -------------------------------------------------------------------------------------------------------------- Plans


@pytest.mark.parametrize("file", sorted(BASES.iterdir()), ids=lambda file: file.stem)
def test_bases_are_the_published_ones(file):
    assert json.loads(file.read_text()) == published_sizes.config_of(file.stem)


def test_every_preset_of_a_7b_base_can_be_planned():
    for preset in PRESETS.values():
        assert base_of(preset)["model_type"] in ("llama", "llava_next", "qwen2_audio")
        assert config_of(preset).training.remat == "full"


@pytest.mark.slow
@pytest.mark.parametrize(("base", "number"), [("smolvlm-256m", 17 * 64), ("paligemma2-3b-224", 256)])
def test_bases_that_see_have_inputs_for_their_towers(base, number):
    _, module = families.build(published_sizes.config_of(base))
    encode = lambda params, inputs: module.apply({"params": params}, **inputs, method="encode")
    features = jax.eval_shape(encode, abstract_params(module), tower_inputs(module, None, 2))
    assert features.shape == (2, number, module.feature_size)


def test_a_plan(tmp_path, capsys):
    """All programs on data=4, model=2; FLOPs of the compiled step are those of the formula, and gradients are reduced
    once over data."""
    plan = run(tmp_path, "--topology", "cpu:8", "--mesh", "data=4,model=2", "--batch-size", 8, "--largest", 0)
    assert plan["fits"] and plan["mesh"] == {"data": 4, "model": 2} and plan["largest_batch"] is None
    assert plan["bytes_per_chip"] < plan["chip_bytes"] == 16 * 2**30
    assert set(plan["programs"]) == {"train", "evaluation", "decoding"}
    assert plan["flops_per_chip"] * 8 == pytest.approx(plan["model_flops"], rel=0.04)
    kernels = 3 * (48 * 8 * (6 + 2 * 2) + 48 * 48 + 3 * 48 * 88) + 2 * 263 * 48
    assert kernels / 2 * 2 <= plan["bytes_by_kind"]["base"] < 1.2 * kernels  # halved, in two bytes, with what is whole
    (reduced,) = (one for one in plan["collectives"] if (one["kind"], one["group"]) == ("all-reduce", 4))
    assert reduced["calls"] == 1  # in halves where both chips of "model" have the same gradient
    assert 0.5 < reduced["bytes"] / plan["bytes_by_kind"]["adapters"] < 1.01
    printed = capsys.readouterr().out
    assert "Fits." in printed and "mcl_jax/" in printed and "by formula" in printed


def test_winners_are_chosen_in_the_dtype_that_was_asked_for():
    config = config_of(PRESETS["alma-7b-en-de"]).replace(batch_size=2, accumulate=1, max_length=LENGTH)
    programs = Programs(config, TINY, tuple(jax.devices()), Axes(1, 1)).on(Axes(1, 1))
    of_int8 = dataclasses.replace(programs, config=programs.config.replace(choose_dtype="int8"))
    with jax.numpy_dtype_promotion("standard"):  # qwix adds integers to floats
        assert "i8>" not in programs.lower("train").as_text()
        assert "i8>" in of_int8.lower("train").as_text()


@pytest.mark.slow
def test_a_plan_that_does_not_fit_and_the_largest_batch(tmp_path, capsys):
    args = ["--topology", "cpu:8", "--batch-size", 16, "--programs", "train", "--mesh", "data=2", "--chip-gib", 1e-3]
    plan = run(tmp_path, *args, "--largest", 1)
    assert not plan["fits"] and plan["bytes_per_chip"] > plan["chip_bytes"] and not plan["programs"]["train"]["fits"]
    assert plan["largest_batch"] < 16
    assert "Does not fit: train needs" in capsys.readouterr().out


@pytest.mark.slow
def test_search_names_the_best_mesh(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "meshes", lambda devices: [Axes(4, 1), Axes(2, 2), Axes(16, 1)])
    small = ["--topology", "cpu:8", "--batch-size", 8, "--programs", "train", "--largest", 0, "--search"]
    plan = run(tmp_path, *small, "--num-hypotheses", 2)
    assert plan["mesh"] == {"data": 2, "model": 2}  # a CPU has no speeds, so that memory decides
    assert "--mesh needs 16 chips" in capsys.readouterr().out


def test_flops_by_formula_for_every_backward_pass():
    one = flops.Forward(products=100.0, attention=10.0, adapters=3.0, head=7.0, last=9.0)
    full = 120.0 + 100 + 26 + 14 + 104
    assert flops.step(one, 2, 3, "sampled", "full") == flops.step(one, 2, 3, "winner", "full") == 2 * (360 + full)
    assert flops.step(one, 2, 3, "all", "none") == 2 * 3 * (full - 104)
    assert flops.step(one, 2, 3, "all", "none", chooses_first=True) == 2 * 3 * (full - 104 + 120)
    assert flops.step(one, 2, 1, "winner", "dots") == 2 * (full - 104 + 13)


# ----------------------------------------------------------------------------------------------- Bases of 7B parameters

# The examples that each part of the data axis holds at a time are few enough for a v5e.
SETTINGS = {
    "alma-7b-en-de": (4, 2, 32),
    "textcaps-llava-7b": (4, 2, 2),
    "audiocaps-qwen2-7b": (2, 4, 1),
    "clotho-qwen2-7b": (2, 4, 1),
}


@pytest.mark.plan
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: make test-plan")
@pytest.mark.parametrize("objective", ["wta", "relaxed"])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4"])
@pytest.mark.parametrize("preset", SETTINGS)
def test_presets_of_7b_bases_fit(tmp_path, preset, topology, objective):
    data, model, accumulate = SETTINGS[preset]
    file = tmp_path / "plan.json"
    args = ["--preset", preset, "--topology", topology, "--objective", objective, "--json", str(file)]
    mesh = ["--mesh", f"data={data},model={model}", "--accumulate", str(accumulate), "--largest", "0"]
    with jax.numpy_dtype_promotion("standard"):
        main(parse([*args, *mesh, "--programs", "train"]))
    plan = json.loads(file.read_text())
    assert plan["fits"] and plan["backward"] == {"wta": "winner", "relaxed": "sampled"}[objective]
    assert 0.95 < plan["flops_per_chip"] * 8 / plan["model_flops"] < 1.2
    assert math.isfinite(sum(plan["seconds_at_least"].values()))
