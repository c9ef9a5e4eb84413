"""PEFT folders: settings that are read or refused, tensors that fit the base, and sets that are never mixed."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mcl_jax as mcl
from mcl_jax import interop, peft_files
from mcl_jax.models import names

PEFT = Path(__file__).parent / "golden" / "peft" / "llama"
LAYER = "base_model.model.model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def module():
    return mcl.models.from_pretrained(Path(__file__).parent / "golden" / "models" / "llama")[0]


@pytest.fixture
def folder(tmp_path):
    for k in range(3):
        shutil.copytree(PEFT / f"lora{k}", tmp_path / f"lora{k}")
    return tmp_path


@pytest.fixture(scope="module")
def adapters(module):
    """(model, adapters) by K and a seed."""
    config = mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj", "down_proj"))
    model = mcl.Hypotheses(module, config)
    kernels = names.abstract_params(module)["model"]["layers"]

    def of(K, seed):
        flat = {}
        rng = np.random.default_rng(seed)
        for target in ("self_attn/q_proj", "mlp/down_proj"):
            block, layer = target.split("/")
            layers, inputs, outputs = kernels[block][layer]["kernel"].shape
            shapes = {"a": (K, layers, inputs, 3), "b": (K, layers, 3, outputs)}
            flat[block] = {layer: {ab: rng.normal(size=shape).astype(np.float32) for ab, shape in shapes.items()}}
        return model, {"model": {"layers": flat}}

    return of


def set_config(folder, **changed):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def change(folder, half, with_):
    """Replaces lora_A or lora_B of one layer."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = f"{LAYER}.lora_{half}.weight"
    tensors[name] = np.ascontiguousarray(with_(tensors[name]))
    save_file(tensors, file)


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


# ---------------------------------------------------------------------------------------------------------- Settings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which also changes the weights of the base"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"use_dora": True}, "lacks lora_magnitude_vector of model.layers.0.*down_proj, but use_dora is True"),
        ({"use_dora": 1}, "use_dora must be true or false, got 1"),
        ({"use_qalora": True}, "not supported: use_qalora = True"),
        ({"lora_bias": True}, "not supported: lora_bias = True"),
        ({"bias": "lora_only"}, "bias must be 'none', .* got 'lora_only'"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "not supported: layer_replication = "),
        ({"modules_to_save": ["lm_head"]}, "must hold a copy of lm_head, as modules_to_save says, but holds none"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list, got 'lm_head'"),
        ({"trainable_token_indices": [1, 2]}, "not supported: trainable_token_indices"),
        ({"alora_invocation_tokens": [5]}, "not supported: alora_invocation_tokens"),
        ({"target_parameters": ["experts"]}, "not supported: target_parameters"),
        ({"enable_lora": [True, False, True]}, "not supported: enable_lora"),
        ({"something_of_next_year": 3}, "not supported: something_of_next_year = 3"),
        ({"peft_type": "ADALORA"}, "peft_type must be LORA, got 'ADALORA'"),
        ({"r": "3"}, "a rank must be an integer of at least 1, got '3' for 'r'"),
        ({"r": 0}, "got 0 for 'r'"),
        ({"rank_pattern": {"q_proj": True}}, "a rank must be an integer of at least 1, got True for 'q_proj'"),
        ({"lora_alpha": True}, "an alpha must be a finite number, got True for 'lora_alpha'"),
        ({"r": None}, r"with r = 8, as in adapter_config.json"),
        ({"rank_pattern": {"q_proj": -1}}, "got -1 for 'q_proj'"),
        ({"lora_alpha": float("nan")}, "an alpha must be a finite number, got nan for 'lora_alpha'"),
        ({"alpha_pattern": {"(": 2}}, r"'\(' is not a valid regular expression"),
        ({"alpha_pattern": [1]}, r"alpha_pattern must be an object, got \[1\]"),
        ({"lora_dropout": "0.1"}, "lora_dropout must be a number, got '0.1'"),
        ({"use_rslora": 1}, "use_rslora must be true or false, got 1"),
        ({"r": 5}, r"must be \[r, in\] and \[out, r\] with r = 5, as in adapter_config.json, got \[3, "),
        ({"rank_pattern": {r"layers\.1\..*down_proj": 4}}, "lora_B of model.layers.1.mlp.down_proj must be .* r = 4"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_settings_that_are_not_computed_are_refused_by_name(folder, module, changed, message):
    set_config(folder / "lora1", **changed)
    with pytest.raises(ValueError, match=message) as error:
        interop.load_peft(folder, module)
    assert "lora1/adapter_" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", None])
def test_settings_that_change_neither_pass_nor_base_are_taken(folder, module, start):
    for k in range(3):
        set_config(
            folder / f"lora{k}",
            init_lora_weights=start,
            layers_to_transform=[0, 1, 2],
            unknown_of_old=None,
            kept=[],
            loftq_config={"loftq_bits": 4},
            revision="main",
            auto_mapping={"unsloth_fixed": True},
        )
    _, adapters = interop.load_peft(folder, module)
    jax.tree.map(np.testing.assert_array_equal, adapters, interop.load_peft(PEFT, module)[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"r": "\xe9"}', "is not text in UTF-8"),
        (b"{", "is not valid JSON"),
        (b"3", "must hold a JSON object, got int"),
        (b"[" * 100000, "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_json_is_named(folder, module, content, message):
    (folder / "lora2" / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"lora2/adapter_config.json {message}"):
        interop.load_peft(folder, module)


# ----------------------------------------------------------------------------------------------------------- Tensors


@pytest.mark.parametrize(
    ("half", "with_", "message"),
    [
        ("A", lambda a: a[:, :-1], "must have 26 inputs and 24 outputs, as the layer itself, got 25 and 24"),
        ("B", lambda b: b[:-1], "must have 26 inputs and 24 outputs, as the layer itself, got 26 and 23"),
        ("B", lambda b: np.repeat(b, 2, 0), "as the layer itself, got 26 and 48"),
        ("A", lambda a: a[:2], r"with r = 3, .* got \[2, 26\] and \[24, 3\]"),
        ("B", lambda b: b[:, :2], r"with r = 3, .* got \[3, 26\] and \[24, 2\]"),
        ("A", lambda a: a[..., None], r"got \[3, 26, 1\] and \[24, 3\]"),
        ("A", lambda a: a[0], r"got \[26\] and \[24, 3\]"),
        ("A", lambda a: np.where(a == a.max(), np.nan, a), "lora_A of .* must hold finite numbers, got NaN"),
        ("B", lambda b: np.where(b == b.max(), -np.inf, b), "lora_B of .* must hold finite numbers"),
        ("B", lambda b: b.astype(np.int8), "lora_B of .* must be floating-point numbers, got int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, module, half, with_, message):
    change(folder / "lora2", half, with_)
    with pytest.raises(ValueError, match=f"model.layers.1.mlp.down_proj.*{message}|{message}"):
        interop.load_peft(folder, module)


def test_adapters_in_bfloat16_are_read(folder, module):
    """Rounded to 8 bits: within one part in 256 of what they were."""
    for k in range(3):
        file = folder / f"lora{k}" / "adapter_model.safetensors"
        save_file({name: of.astype(ml_dtypes.bfloat16) for name, of in load_file(file).items()}, file)
    rounded, plain = (interop.load_peft(path, module)[1] for path in (folder, PEFT))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1 / 256), rounded, plain)


def test_numbers_without_a_dtype_are_refused(folder):
    change(folder / "lora0", "A", lambda tensor: tensor.astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors must hold floating-point numbers, got"):
        peft_files.read(folder / "lora0")


@pytest.mark.parametrize("cut", [(9, 71), (8, 72)], ids=["A", "B"])
def test_grouped_adapters_that_do_not_divide_are_named(folder, module, cut):
    tensors = [load_file(folder / f"lora{k}" / "adapter_model.safetensors") for k in range(3)]
    grouped = {name: np.concatenate([of[name] for of in tensors])[..., None] for name in tensors[0]}
    for half, size in zip("AB", cut, strict=True):
        name = f"{LAYER}.lora_{half}.weight"
        grouped[name] = np.ascontiguousarray(grouped[name][:size])
    save_file(grouped, folder / "lora0" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.down_proj must be .* with r = 3"):
        interop.load_peft(folder / "lora0", module)


def test_two_adapters_in_one_file_are_refused(folder, module):
    file = folder / "lora0" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {f"{LAYER}.lora_A.other.weight": tensors[f"{LAYER}.lora_A.weight"]}, file)
    with pytest.raises(ValueError, match=r"lora0.* must hold one adapter, but it has lora_A of .*down_proj twice"):
        interop.load_peft(folder, module)


def test_files_of_no_adapters_or_in_another_format_are_named(folder, module):
    file = folder / "lora1" / "adapter_model.safetensors"
    save_file({}, file)
    with pytest.raises(ValueError, match="lora1.* holds no adapters"):
        interop.load_peft(folder, module)
    file.rename(folder / "lora1" / "adapter_model.bin")
    with pytest.raises(ValueError, match="lora1 is not a complete PEFT adapter folder: it holds adapter_model.bin"):
        interop.load_peft(folder, module)
    with pytest.raises(ValueError, match="nothing is not a complete PEFT adapter folder"):
        interop.load_peft([folder / "nothing"], module)
    with pytest.raises(ValueError, match="at least one adapter folder"):
        interop.load_peft([], module)


# -------------------------------------------------------------------------------------------------------------- Sets


@pytest.mark.parametrize(("before", "now"), [(5, 3), (3, 5), (4, 4)])
def test_a_set_leaves_nothing_of_the_one_before(tmp_path, module, adapters, before, now):
    interop.save_peft(tmp_path / "a", *adapters(before, 0))
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "lora1" / "README.md").write_text("mine")
    model, saved = adapters(now, 1)
    assert interop.save_peft(tmp_path / "a", model, saved) == [tmp_path / "a" / f"lora{k}" for k in range(now)]
    interop.save_peft(tmp_path / "b", model, saved)
    assert files(tmp_path / "a") == files(tmp_path / "b") | {"notes.txt", "lora1/README.md"}
    _, read = interop.load_peft(tmp_path / "a", module)
    jax.tree.map(np.testing.assert_array_equal, read, saved)


def test_what_someone_put_into_a_folder_that_goes_stays(tmp_path, module, adapters):
    interop.save_peft(tmp_path, *adapters(5, 0))
    (tmp_path / "lora4" / "README.md").write_text("mine")
    model, saved = adapters(3, 1)
    interop.save_peft(tmp_path, model, saved)
    assert files(tmp_path / "lora4") == {"README.md"}
    jax.tree.map(np.testing.assert_array_equal, interop.load_peft(tmp_path, module)[1], saved)


def test_folders_of_two_sets_are_not_taken_for_one(tmp_path, module, adapters):
    """Copied over one another, beside one another, or some of a larger set; as a list, what one asks for."""
    for name, seed in (("a", 0), ("b", 1)):
        interop.save_peft(tmp_path / name, *adapters(3, seed))
    shutil.copytree(tmp_path / "a", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "lora2")
    with pytest.raises(
        ValueError, match="part/lora0 must be hypothesis 0 of the 2 .* but it is marked as hypothesis 0 of 3"
    ):
        interop.load_peft(tmp_path / "part", module)
    shutil.rmtree(tmp_path / "a" / "lora1")
    shutil.copytree(tmp_path / "b" / "lora1", tmp_path / "a" / "lora1")
    with pytest.raises(ValueError, match="a/lora1 must be hypothesis 1 of the 3 that were saved together"):
        interop.load_peft(tmp_path / "a", module)
    shutil.copytree(PEFT / "lora2", tmp_path / "b" / "lora2", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="b/lora2 must be hypothesis 2 .* but it is not marked"):
        interop.load_peft(tmp_path / "b", module)
    _, mixed = interop.load_peft([tmp_path / "a" / "lora0", tmp_path / "a" / "lora1"], module)
    first, second = adapters(3, 0)[1], adapters(3, 1)[1]
    expected = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), first, second)
    jax.tree.map(np.testing.assert_array_equal, mixed, expected)


@pytest.mark.parametrize(("before", "now"), [(4, 3), (3, 4)])
def test_a_save_that_ends_midway_leaves_the_old_set_or_none(tmp_path, module, adapters, monkeypatch, before, now):
    """Stopped after each of its steps in turn: what is then read is all old or, never mixed, refused."""
    steps, (model, old), (_, new) = 0, adapters(before, 0), adapters(now, 1)
    while True:
        folder, left = tmp_path / str(steps), [steps]
        interop.save_peft(folder, model, old)

        def stop(of, left=left):
            def step(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("no space left on device")
                return of(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(peft_files, "save_file", stop(peft_files.save_file))
            patch.setattr(peft_files.os, "replace", stop(peft_files.os.replace))
            patch.setattr(Path, "unlink", stop(Path.unlink))
            try:
                interop.save_peft(folder, model, new)
                break
            except OSError:
                steps += 1
        try:
            read = interop.load_peft(folder, module)[1]
        except ValueError:
            continue
        jax.tree.map(np.testing.assert_array_equal, read, old)
    assert steps > now
    interop.save_peft(tmp_path / "2", model, new)  # and again, over what the third try left
    jax.tree.map(np.testing.assert_array_equal, interop.load_peft(tmp_path / "2", module)[1], new)
    assert not list((tmp_path / "2").rglob("*.tmp"))


def test_an_adapter_and_a_set_in_one_folder_are_refused(tmp_path, folder, module, adapters):
    for file in (PEFT / "lora0").iterdir():
        shutil.copy(file, folder)
    with pytest.raises(
        ValueError, match=r"is an adapter folder and also holds \['lora0', 'lora1', 'lora2'\]; pass the folders"
    ):
        interop.load_peft(folder, module)
    with pytest.raises(ValueError, match="is an adapter folder itself .adapter_config.json"):
        interop.save_peft(folder, *adapters(3, 0))
    with safe_open(str(folder / "lora0" / "adapter_model.safetensors"), framework="numpy") as tensors:
        assert tensors.metadata() == {"format": "pt"}  # as it was
