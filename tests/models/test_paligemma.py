"""PaliGemma: parity with Hugging Face (tests/golden/make_paligemma.py), the prompt as a whole, processor, refusals."""

import functools
import json
import shutil
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from published_sizes import config_of, shapes_of
from safetensors.numpy import load_file, save_file
from test_llava_next import in_memory, published
from tiny_paligemma import with_processor
from transformers import AutoConfig

import mcl_jax as mcl
from mcl_jax.likelihood import soft_cap
from mcl_jax.models import families, names
from mcl_jax.models.decoder import context_of
from mcl_jax.models.tensors import Arrays, Renamed

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "paligemma"
NAMES = ("gemma2", pytest.param("gemma", marks=pytest.mark.slow))
TARGETS = ("q_proj", "v_proj", "down_proj")  # the tower has layers of the first two names as well
SMALLEST = "paligemma2-3b-224"


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


@functools.cache
def load(name="gemma2"):
    module, params, _ = mcl.models.from_pretrained(FOLDER / name)
    return module, params, np.load(FOLDER / name / "expected.npz")


def pixels_of(golden):
    """Those of the four rows, the second without a picture."""
    return np.insert((golden["pixels"] / 64 - 2).astype(np.float32).transpose(0, 2, 3, 1), 1, 0.0, axis=0)


@functools.cache
def features_of(name):
    module, params, golden = load(name)
    return jax.jit(functools.partial(module.apply, method="encode"))({"params": params}, pixels_of(golden))


def hypotheses(module, params, K=3):
    """The model and adapters of zeros; nothing is compiled."""
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=TARGETS))
    init = functools.partial(model.init, num_hypotheses=K)
    shapes = jax.eval_shape(init, jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32))
    return model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


# ------------------------------------------------------------------------------------------------------------ Parity


@pytest.mark.parametrize("name", NAMES)
def test_states_embeddings_and_logits_are_hugging_faces(name):
    """Of prompts with answers, padded on the left."""
    module, params, golden = load(name)
    tokens, mask = golden["tokens"], golden["mask"]

    @jax.jit
    def all_of(params):
        call = functools.partial(module.apply, {"params": params})
        states = call(pixels_of(golden), method=lambda module, pixels: module.vision_tower(pixels))
        features = call(pixels_of(golden), method="encode")
        return states, call(tokens, features, method="embed"), call(tokens, mask, features, ~golden["answer"])

    states, embeddings, logits = map(np.asarray, all_of(params))
    assert_close(states[[0, 2, 3]], golden["states"])
    assert_close(embeddings, golden["embeddings"])
    assert_close(logits[mask], golden["logits"][mask])


def batch_of(tokens, mask, targets, features):
    """A batch for training, which is padded on the right."""
    starts = [np.flatnonzero(row)[0] for row in mask]
    moved = lambda x: np.stack([np.roll(row, -start, axis=0) for row, start in zip(x, starts, strict=True)])
    return {"tokens": moved(tokens), "target_mask": moved(targets)[:, 1:], "features": features}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_answers_and_likelihoods_are_hugging_faces(name):
    """Greedy tokens past the windows; answers that are decoded have the same likelihood when they are ranked."""
    module, params, golden = load(name)
    model, adapters = hypotheses(module, params)
    tokens, mask, answer, features = *(golden[key] for key in ("tokens", "mask", "answer")), features_of(name)
    evaluated = lambda batch: mcl.language_model.evaluate(model, params, adapters, [batch])[0]
    theirs, _ = mcl.sequence_log_likelihood(golden["logits"][:, :-1], tokens[:, 1:], answer[:, 1:])
    assert_close(evaluated(batch_of(tokens, mask, answer, features)), np.stack([theirs] * 3))

    inputs = {"tokens": golden["prompts"], "mask": golden["prompt_mask"], "features": features}
    decoded = mcl.generation.decode(model, params, adapters, inputs, max_new_tokens=golden["generated"].shape[1])
    for of_hypothesis in decoded.tokens[:, :, 0]:  # each is the base
        np.testing.assert_array_equal(of_hypothesis, golden["generated"])
    last = mcl.generation.prompt_features(model, params, inputs) @ module.unembedding(params)
    at = answer.argmax(1) - 1  # no token of a prompt sees the answer
    assert_close(soft_cap(last, module.logit_cap), golden["logits"][np.arange(len(at)), at])
    ranked = mcl.generation.log_likelihoods(model, params, adapters, inputs, decoded)[:, 0, :, 0]
    whole = np.concatenate([golden["prompts"], golden["generated"]], axis=1)
    targets = np.broadcast_to(np.arange(whole.shape[1]) >= golden["prompts"].shape[1], whole.shape)
    assert_close(evaluated(batch_of(whole, golden["prompt_mask"], targets, features)), ranked)


# --------------------------------------------------------------------------------------------------------- The prompt


def test_tokens_of_the_prompt_see_one_another_and_those_of_the_answer_what_is_before_them():
    mask = np.array([[False, True, True, True, True]])
    prefix = np.array([[True, True, True, False, False]])
    positions = np.array([[0, 0, 1, 2, 3]])
    own = context_of(positions, mask, (), keep=False, prefix=prefix).own[0]
    visible = (own >= 0).astype(int)[1:, 1:].tolist()
    assert visible == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert not (own[:, 0] >= 0).any()
    assert own[1, 2] == own[2, 1] == 0 and own[4, 1] == 3  # windows hide nothing within the prompt


class Whole(nn.Module):
    """A model of embeddings that records the prefix of each call."""

    seen: ClassVar[list] = []
    takes_prefix = True

    @nn.compact
    def hidden(self, tokens, mask=None, prefix=None):
        self.seen.append(prefix)
        return nn.Embed(13, 5, name="table")(tokens)

    @staticmethod
    def unembedding(params):
        return params["table"]["embedding"].T


def test_the_likelihood_tells_the_prompt_from_the_answer():
    """Row by row, up to the first target; a soft prompt belongs to the prompt."""
    tokens = np.array([[3, 4, 5, 6, 0], [7, 8, 9, 10, 11], [1, 2, 0, 0, 0]], np.int32)
    targets = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], bool)
    prompt = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(mcl.language_model.prompt_of(targets), prompt)
    module, key = Whole(), jax.random.key(0)
    params, model = {"table": {"embedding": jnp.ones((13, 5))}}, mcl.SoftPrompts(module, 3)
    one = jax.tree.map(lambda x: x[0], model.init(key, params, tokens, num_hypotheses=3, method="hidden"))
    model.apply(params, one, tokens[:, 1:], prefix=prompt, method="hidden")
    np.testing.assert_array_equal(module.seen[-1], np.concatenate([np.ones((3, 3), bool), prompt], axis=1))
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    jax.eval_shape(log_likelihood, params, one, {"tokens": tokens, "target_mask": targets}, None)
    assert module.seen[-1].shape == (3, 3 + 4)


# ------------------------------------------------------------------------------------------------------------- Names


@pytest.mark.slow
def test_every_tensor_of_a_full_size_model_has_its_place_under_the_names_in_memory():
    """And what a contrast with texts needs is passed over."""
    family, module = families.build(config_of(SMALLEST))
    shapes = shapes_of(SMALLEST) | {"vision_tower.vision_model.head.probe": (1, 1, 1152)}
    theirs = {in_memory(name.replace(".vision_model", "")): jax.ShapeDtypeStruct(s, "f4") for name, s in shapes.items()}
    source = Renamed(Arrays(theirs), family.renames)
    names.check(names.places(names.abstract_params(module), family), source.shapes, family)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_has_the_published_names(name, tmp_path):
    module, params, _ = load(name)
    mcl.models.save_pretrained(tmp_path, module, params)
    again, params_again, _ = mcl.models.from_pretrained(tmp_path)
    assert again.config == module.config
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, ours, {published(tensor): of for tensor, of in theirs.items()})


def test_names_in_memory_load_alike(tmp_path):
    shutil.copy(FOLDER / "gemma2" / "config.json", tmp_path)
    tensors = load_file(FOLDER / "gemma2" / "model.safetensors")
    save_file({in_memory(name): of for name, of in tensors.items()}, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, mcl.models.from_pretrained(tmp_path)[1], load()[1])


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_config_that_is_written(name):
    config = load(name)[0].config
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config.to_hf()))).to_dict()
    assert theirs["text_config"]["use_bidirectional_attention"]
    assert type(config).from_hf(theirs) == config


@pytest.mark.slow
def test_adapters_of_peft_give_its_logits():
    """What `save_peft` writes is compared with PEFT's files in test_interop."""
    module, params, golden = load()
    model, adapters = mcl.interop.load_peft(GOLDEN / "peft" / "paligemma", module)
    assert {path[0] for path in flatten_dict(adapters)} == {"language_model"}
    inputs = golden["tokens"], golden["mask"], features_of("gemma2"), ~golden["answer"]
    logits = jax.jit(model.apply_all)(params, adapters, *inputs)
    assert_close(logits[:, :, -7:], np.load(GOLDEN / "peft" / "paligemma" / "expected.npz")["logits"])


# --------------------------------------------------------------------------------------------------------- Processor


def noise(*size):
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_processor(FOLDER / "gemma2", tmp_path_factory.mktemp("paligemma") / "model")


@pytest.fixture(scope="module")
def processor(folder):
    return mcl.models.from_pretrained(folder)[2]


def test_pixels_and_tokens_are_those_of_hugging_faces_processor(processor):
    prompts, pictures = ["<image>caption en", "what is", "<image>what is this"], [noise(9, 31), None, noise(3, 40)]
    found = processor(prompts, pictures)
    for row in (0, 2):
        options = dict(return_tensors="np", input_data_format="channels_last")
        theirs = processor.hf(text=[prompts[row]], images=[pictures[row]], **options)
        np.testing.assert_array_equal(found["tokens"][row][found["mask"][row]], theirs["input_ids"][0])
        np.testing.assert_array_equal(found["pixel_values"][row], theirs["pixel_values"][0].transpose(1, 2, 0))
    assert found["tokens"][1][found["mask"][1]].tolist() == [2, 7, 8, 4]
    assert found["tokens"][0][found["mask"][0]].tolist() == [47] * 9 + [2, 5, 6, 4]
    assert not found["pixel_values"][1].any()


def test_a_processor_of_another_size_is_refused(folder, tmp_path):
    file = Path(shutil.copytree(folder, tmp_path / "model")) / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["size"] = {"height": 26, "width": 13}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"size and image_seq_length must be \(.*13.*, 9\), got \(.*26.*, 9\)"):
        mcl.models.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("prompt", "picture", "message"),
    [
        ("a", noise(4, 5), r"must have '<image>' \(token 47\) 1 times, for its 1 pictures, got 0"),
        ("<image> <image>", noise(4, 5), "1 times, for its 1 pictures, got 2"),
        ("<image> a", None, "0 times, for its 0 pictures, got 1"),
        ("<image>", noise(4, 5)[..., 0], r"RGB, uint8\[H, W, 3\], got uint8\[4, 5\]"),
    ],
)
def test_prompts_and_pictures_that_do_not_fit_are_refused(processor, prompt, picture, message):
    with pytest.raises(ValueError, match=message):
        processor([prompt], [picture])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(vision_config=dict(model_type="clip_vision_model")),
            "model_type must be 'siglip_vision_model' or .* got",
        ),
        (dict(text_config=dict(model_type="llama")), "model_type must be one of .* got 'llama'"),
        (dict(vision_config=None), r"must have \['vision_config'\]"),
        (dict(projection_dim=17), "projection_dim must be hidden_size=16 of the text, got 17"),
        (dict(image_token_index=53), "image_token_index must be below vocab_size=53, got 53"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change, message):
    config = json.loads((FOLDER / "gemma2" / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        families.build(config)


def test_a_prefix_of_another_shape_is_refused():
    module, params, _ = load()
    with pytest.raises(ValueError, match=r"must be bool\[1, 3\] like tokens, got bool\[1, 2\]"):
        module.apply({"params": params}, jnp.ones((1, 3), jnp.int32), prefix=jnp.ones((1, 2), bool))
    with pytest.raises(ValueError, match=r"must be bool\[1, 3\] like tokens, got int32\[1, 3\]"):
        module.apply({"params": params}, jnp.ones((1, 3), jnp.int32), prefix=jnp.ones((1, 3), jnp.int32))
