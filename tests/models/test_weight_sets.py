"""Folders of weights: a set is replaced as a whole, whatever it is made of, and two of them are never mixed."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import mcl_jax as mcl
from mcl_jax.models import GPT2, pretrained, tensors

LLAMA = Path(__file__).parents[1] / "golden" / "models" / "llama"


@pytest.fixture
def golden(tmp_path):
    """A golden Llama in a folder of its own."""
    return Path(shutil.copytree(LLAMA, tmp_path / "model"))


def save(folder, seed, shard_bytes, monkeypatch, tokenizer=None):
    """Saves a GPT-2 of this seed; returns its parameters."""
    monkeypatch.setattr(pretrained, "MAX_SHARD_BYTES", shard_bytes)
    config = mcl.models.GPT2Config(vocab_size=11, hidden_size=6, num_layers=2, num_heads=3, max_position_embeddings=5)
    params = GPT2(config).init(jax.random.key(seed), np.zeros((1, 1), np.int32))["params"]
    mcl.models.save_pretrained(folder, GPT2(config), params, tokenizer)
    return params


MANY, FEW, ONE = 300, 1300, 10**9


@pytest.mark.parametrize(("before", "now"), [(MANY, FEW), (FEW, MANY), (MANY, ONE), (ONE, MANY), (ONE, ONE)])
def test_weights_leave_nothing_of_those_before(before, now, tmp_path, monkeypatch):
    save(tmp_path, 0, before, monkeypatch)
    old = {file.name for file in tmp_path.iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    params = save(tmp_path, 1, now, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path)[1], params)
    listed = {file.name for file in tmp_path.iterdir()} - {"config.json", "notes.txt"}
    assert (tmp_path / "notes.txt").is_file()
    save(tmp_path / "fresh", 1, now, monkeypatch)
    assert listed - {"fresh"} == {file.name for file in (tmp_path / "fresh").iterdir()} - {"config.json"}
    assert before == now or old - {"config.json"} != listed


def test_shards_of_any_name_that_an_index_lists_are_replaced(tmp_path, monkeypatch):
    save(tmp_path, 0, MANY, monkeypatch)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: f"part.{file}" for name, file in content["weight_map"].items()}
    for file in tmp_path.glob("model-*.safetensors"):
        file.rename(tmp_path / f"part.{file.name}")
    (tmp_path / "notes.txt").write_text("mine")
    content["weight_map"]["x"] = "notes.txt"  # no weights, so a save must not remove it
    index.write_text(json.dumps(content))
    save(tmp_path, 1, ONE, monkeypatch)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}


@pytest.mark.parametrize(("before", "now"), [(MANY, FEW), (ONE, MANY), (MANY, ONE)])
def test_a_save_that_ends_midway_leaves_the_old_weights_or_none(before, now, tmp_path, monkeypatch):
    """Stopped after each of its steps in turn: what is then read is all old or, never mixed, refused."""
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        old = save(folder, 0, before, monkeypatch)
        left = [steps]

        def stop(of, left=left):
            def step(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("no space left on device")
                return of(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(tensors, "save_file", stop(tensors.save_file))
            patch.setattr(tensors.os, "replace", stop(tensors.os.replace))
            patch.setattr(Path, "unlink", stop(Path.unlink))
            try:
                save(folder, 1, now, monkeypatch)
                break
            except OSError:
                steps += 1
        try:
            read = mcl.models.from_pretrained(folder)[1]
        except ValueError as error:
            assert "no weight file" in str(error)
        else:
            jax.tree.map(np.testing.assert_array_equal, read, old)
    assert steps > 4
    new = save(tmp_path / "2", 1, now, monkeypatch)  # and again, over what the third try left
    jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path / "2")[1], new)
    assert not list((tmp_path / "2").glob("*.tmp"))


def test_two_sets_of_weights_in_one_folder_are_refused(tmp_path, monkeypatch):
    save(tmp_path, 0, MANY, monkeypatch)
    save(tmp_path / "other", 1, ONE, monkeypatch)
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must hold one set of weights, got model.safetensors and the shards .* lists"):
        mcl.models.from_pretrained(tmp_path)


def test_an_index_that_lists_one_file_of_the_usual_name_is_one_set(golden):
    names = load_file(golden / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (golden / "model.safetensors.index.json").write_text(json.dumps(index))
    _, params, _ = mcl.models.from_pretrained(golden)
    jax.tree.map(np.testing.assert_array_equal, params, mcl.models.from_pretrained(LLAMA)[1])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "model.safetensors"}, r"model.safetensors must hold the tensors \['x'\], as .*index.json says"),
        ({"x": "../model.safetensors"}, "the file of 'x' must be in the same folder, got '../model.safetensors'"),
        ({"x": 3}, "the file of 'x' must be in the same folder, got 3"),
        ({}, "must have a weight_map"),
        ("x", "must have a weight_map, {tensor: file}, got str"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_named(weight_map, message, golden):
    (golden / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        mcl.models.from_pretrained(golden)


def test_weights_as_pickles_are_named(golden):
    (golden / "model.safetensors").rename(golden / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must hold model.safetensors, got \['pytorch_model.bin'\]; convert these"):
        mcl.models.from_pretrained(golden)


def test_a_tokenizer_replaces_all_files_of_the_one_before(tmp_path, monkeypatch):
    class Tokenizer:
        def save_pretrained(self, folder):
            (Path(folder) / "vocab.json").write_text("{}")

    for name in ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "merges.txt", "chat_template.jinja"):
        (tmp_path / name).write_text("old")
    save(tmp_path, 0, ONE, monkeypatch, Tokenizer())
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "vocab.json"}
