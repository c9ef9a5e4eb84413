"""Folders of PEFT with other settings than plain LoRA (tests/golden/make_peft_variants.py), to and from PEFT."""

import functools
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from toys import randomized

import mcl_jax as mcl
from mcl_jax import interop

GOLDEN = Path(__file__).parent / "golden"
PEFT = GOLDEN / "peft"


@functools.cache
def load_base(name="llama", **options):
    return mcl.models.from_pretrained(GOLDEN / "models" / name, **options)[:2]


@functools.cache
def forward(module):
    return jax.jit(lambda params, tokens: module.apply({"params": params}, tokens))


def expected(name):
    golden = np.load(PEFT / name / "expected.npz")
    return jnp.asarray(golden["tokens"]), golden["logits"]


def tensors_in(folder):
    return load_file(folder / "adapter_model.safetensors")


def settings_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def assert_close(actual, desired, tolerance=1e-4):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def assert_merged_give(name, base, model, adapters):
    """The plain base computes PEFT's logits with each hypothesis merged in."""
    (module, params), (tokens, logits) = base, expected(name)
    for k in range(3):
        assert_close(forward(module)(model.merge(params, adapters, k), tokens), logits[k])


# ------------------------------------------------------------------------------------------- Ranks differ by hypothesis


@pytest.mark.parametrize("name", ["ranks", "ranks_stabilized"])
def test_folders_of_different_ranks_are_padded_and_keep_their_scales(name, tmp_path):
    model, adapters = interop.load_peft(PEFT / name, load_base()[0])
    shapes = {path[-2]: leaf.shape[-1] for path, leaf in flatten_dict(adapters).items() if path[-1] == "a"}
    assert shapes == {"q_proj": 3, "down_proj": 5}  # the largest of 2, 3, 3 and of 2, 5, 3
    assert_merged_give(name, load_base(), model, adapters)
    folders = interop.save_peft(tmp_path, model, adapters)
    for k, folder in enumerate(folders):
        theirs, ours = tensors_in(PEFT / name / f"lora{k}"), tensors_in(folder)
        assert {key: of.shape for key, of in ours.items()} == {key: of.shape for key, of in theirs.items()}
    again, adapters_again = interop.load_peft(tmp_path, load_base()[0])
    assert_merged_give(name, load_base(), again, adapters_again)
    jax.tree.map(np.testing.assert_array_equal, adapters, adapters_again)


def test_a_common_scale_leaves_every_number_as_it_was(tmp_path):
    """α = 2 r in each folder, the usual choice: nothing is rounded, and the folders come back as they were."""
    for k, rank in enumerate((2, 5, 3)):
        tensors = {}
        for name, tensor in tensors_in(PEFT / "ranks" / f"lora{k}").items():
            if ".down_proj." in name:
                tensors[name] = tensor
        folder = tmp_path / f"lora{k}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2 * rank}))
    model, adapters = interop.load_peft(tmp_path, load_base()[0])
    assert (model.config.rank, model.config.alpha, model.config.rank_pattern) == (5, 10.0, {})
    for k, folder in enumerate(interop.save_peft(tmp_path / "ours", model, adapters)):
        jax.tree.map(np.testing.assert_array_equal, tensors_in(folder), tensors_in(tmp_path / f"lora{k}"))
        saved = settings_in(folder)
        assert (saved["r"], saved["lora_alpha"], saved["rank_pattern"]) == ((2, 5, 3)[k], 2 * (2, 5, 3)[k], {})


def test_components_that_all_lack_are_no_padding(tmp_path):
    """Zeros that no folder brought along keep their rank."""
    model, adapters = interop.load_peft(PEFT / "llama", load_base()[0])
    zeros = jax.tree.map(jnp.zeros_like, adapters)
    for folder in interop.save_peft(tmp_path, model, zeros):
        assert settings_in(folder)["r"] == 3 and all(3 in tensor.shape for tensor in tensors_in(folder).values())


@pytest.mark.parametrize("name", ["ranks", "ranks_stabilized"])
def test_one_rank_for_programs_that_read_no_patterns(name, tmp_path):
    """W + s B A is the same with r and lora_alpha alone."""
    base = load_base()
    model, adapters = interop.load_peft(PEFT / name, base[0])
    for folder in interop.save_peft(tmp_path, model, adapters, one_rank=True):
        saved = settings_in(folder)
        assert (saved["r"], saved["rank_pattern"], saved["alpha_pattern"]) == (5, {}, {})
        assert all(5 in tensor.shape for tensor in tensors_in(folder).values())
    assert_merged_give(name, base, *interop.load_peft(tmp_path, base[0]))


# ------------------------------------------------------------------------------------- Embeddings and the output layer

UNTIED = {"tie_word_embeddings": False}
TIED = "llama_tied_biased"


def all_logits(base, model, adapters, tokens):
    return jax.jit(model.apply_all)(base[1], adapters, tokens)


def assert_written_as_read(name, folders):
    for k, folder in enumerate(folders):
        theirs, ours = tensors_in(PEFT / name / f"lora{k}"), tensors_in(folder)
        assert set(ours) == set(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        for entry in ("r", "lora_alpha", "use_dora"):
            assert settings_in(folder)[entry] == settings_in(PEFT / name / f"lora{k}")[entry]


@pytest.mark.parametrize(
    ("name", "base"),
    [("embeddings", load_base()), pytest.param("tied", load_base(TIED, **UNTIED), marks=pytest.mark.slow)],
)
def test_adapters_of_embeddings_and_output_layer_give_the_logits_of_peft(name, base, tmp_path):
    model, adapters = interop.load_peft(PEFT / name, base[0])
    table = adapters["model"]["embed_tokens"]
    assert (table["a"].shape, table["b"].shape) == ((3, 41, 3), (3, 3, 24))
    assert table["shared_embedding"].shape == (41, 24)  # PEFT writes the weights beneath the adapter, too
    tokens, logits = expected(name)
    assert_close(all_logits(base, model, adapters, tokens), logits)
    assert_merged_give(name, base, model, adapters)
    assert_written_as_read(name, interop.save_peft(tmp_path, model, adapters))


def test_a_tied_matrix_has_no_adapter_of_one_use_alone():
    for name, what in (("tied", "lm_head"), ("saved_tied", "lm_head")):
        with pytest.raises(ValueError, match=f"lora0 changes one of {what}.weight and model.embed_tokens.weight alone"):
            interop.load_peft(PEFT / name, load_base(TIED)[0])


def test_adapters_that_peft_ties_are_refused(tmp_path):
    for name in ("tied", "saved_tied"):
        folder = shutil.copytree(PEFT / name / "lora1", tmp_path / name)
        (folder / "adapter_config.json").write_text(json.dumps(settings_in(folder) | {"ensure_weight_tying": True}))
        for base in (load_base(TIED), load_base(TIED, **UNTIED)):
            with pytest.raises(
                ValueError, match=f"{name} has ensure_weight_tying = true, which is not supported for lm_"
            ):
                interop.load_peft(folder, base[0])


def test_an_adapter_of_tied_embeddings_changes_the_lookup_alone():
    """As in PEFT: the output layer stays, so there is no merged model without an output layer of its own."""
    config = mcl.LoraConfig(rank=2, alpha=5, targets="embed_tokens")
    tied, untied = load_base(TIED), load_base(TIED, **UNTIED)
    tokens, _ = expected("tied")
    models = [mcl.Hypotheses(module, config) for module, _ in (tied, untied)]
    shapes = jax.eval_shape(lambda: models[0].init(jax.random.key(0), tied[1], tokens, num_hypotheses=3))
    adapters = randomized(shapes, seed=1)
    found = all_logits(tied, models[0], adapters, tokens)
    assert_close(found, all_logits(untied, models[1], adapters, tokens))
    assert_close(forward(untied[0])(models[1].merge(untied[1], adapters, 2), tokens), found[2])
    with pytest.raises(ValueError, match="merge: model/embed_tokens is the output layer too"):
        models[0].merge(tied[1], adapters, 2)


@pytest.mark.parametrize(
    ("name", "base"),
    [("saved", load_base()), ("saved_tied", load_base(TIED, **UNTIED)), ("saved_alike", load_base())],
)
def test_trained_copies_take_the_place_of_the_base(name, base, tmp_path):
    model, adapters = interop.load_peft(PEFT / name, base[0])
    alike = name == "saved_alike"
    head = adapters["lm_head"]["shared_kernel" if alike else "kernel"]
    assert head.shape == ((24, 41) if alike else (3, 24, 41))  # equal ones are stored once
    tokens, logits = expected(name)
    if name == "saved":
        assert_close(all_logits(base, model, adapters, tokens), logits)
    assert_merged_give(name, base, model, adapters)
    folders = interop.save_peft(tmp_path, model, adapters)
    assert_written_as_read(name, folders)
    modules = ["lm_head", "model.embed_tokens"] if name == "saved" else ["lm_head"]
    assert settings_in(folders[1])["modules_to_save"] == modules


@pytest.mark.parametrize("name", ["embeddings", pytest.param("saved", marks=pytest.mark.slow)])
def test_the_likelihood_is_that_of_these_logits(name):
    model, adapters = interop.load_peft(PEFT / name, load_base()[0])
    tokens, logits = expected(name)
    mask = np.arange(6)[None] >= np.array([[1], [3]])
    batch = {"tokens": tokens, "target_mask": mask}
    found, _ = mcl.language_model.evaluate(model, load_base()[1], adapters, [batch])
    log_p = jax.nn.log_softmax(logits[:, :, :-1])
    picked = np.take_along_axis(np.asarray(log_p), np.asarray(tokens)[None, :, 1:, None], -1)[..., 0]
    assert_close(found, (picked * mask).sum(-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embeddings", "saved"])
def test_greedy_tokens_are_those_of_the_logits(name):
    module, params = load_base()
    model, adapters = interop.load_peft(PEFT / name, module)
    tokens, logits = expected(name)
    found = mcl.generate(model, params, adapters, tokens, max_new_tokens=2)[:, :, 0]  # [K, B, 2]
    first = logits[:, :, -1].argmax(-1)
    np.testing.assert_array_equal(found[..., 0], first)
    for k in range(3):
        longer = jnp.concatenate([tokens, jnp.asarray(first[k], jnp.int32)[:, None]], axis=1)
        second = forward(module)(model.merge(params, adapters, k), longer)[:, -1].argmax(-1)
        np.testing.assert_array_equal(found[k, :, 1], second)


def test_copies_that_do_not_fit_are_named(tmp_path):
    for k in range(3):
        shutil.copytree(PEFT / "saved" / f"lora{k}", tmp_path / f"lora{k}")
    file, name = tmp_path / "lora1" / "adapter_model.safetensors", "base_model.model.lm_head.weight"
    tensors = load_file(file)
    for change, message in (
        (
            {name: tensors[name][:-2]},
            r"the copy of lm_head.weight must have shape \(41, 24\), as in the base, got \(39,",
        ),
        ({name: np.full_like(tensors[name], np.nan)}, "lora1.*lm_head.weight must hold finite numbers"),
    ):
        save_file(tensors | {key: np.ascontiguousarray(tensor) for key, tensor in change.items()}, file)
        with pytest.raises(ValueError, match=message):
            interop.load_peft(tmp_path, load_base()[0])
    with pytest.raises(
        ValueError, match="must have copies of the same modules; hypotheses 1 and 0 differ in .*embed_tokens"
    ):
        interop.load_peft([PEFT / "saved" / "lora0", PEFT / "saved_alike" / "lora0"], load_base()[0])


# ---------------------------------------------------------------------------------------------------------------- DoRA


@pytest.mark.parametrize(
    ("name", "base"), [("dora", "llama"), pytest.param("dora_gpt2", "gpt2", marks=pytest.mark.slow)]
)
def test_weight_decomposed_adapters_give_the_logits_of_peft(name, base, tmp_path):
    base = load_base(base)
    model, adapters = interop.load_peft(PEFT / name, base[0])
    assert model.config.dora
    tokens, logits = expected(name)
    assert_close(all_logits(base, model, adapters, tokens), logits)
    assert_merged_give(name, base, model, adapters)
    assert_written_as_read(name, interop.save_peft(tmp_path, model, adapters))


@pytest.mark.slow
def test_a_quantized_base_has_no_exact_norms():
    module, params = load_base(quantization="int8")
    model, adapters = interop.load_peft(PEFT / "dora", module)
    with pytest.raises(ValueError, match="_proj is quantized, so the norms that DoRA needs are not exact"):
        model.apply_all(params, adapters, expected("dora")[0])


# --------------------------------------------------------------------------------------------------------- Soft prompts


@pytest.mark.parametrize(
    ("name", "base"), [("prompts", "llama"), pytest.param("prompts_gemma3", "gemma3", marks=pytest.mark.slow)]
)
def test_soft_prompts_give_the_logits_of_peft(name, base, tmp_path):
    base = load_base(base)
    model, adapters = interop.load_peft(PEFT / name, base[0])
    assert isinstance(model, mcl.SoftPrompts) and model.length == 3
    tokens, logits = expected(name)
    assert_close(all_logits(base, model, adapters, tokens), logits)
    for k, folder in enumerate(interop.save_peft(tmp_path, model, adapters, base="tiny")):
        assert_close(*(tensors_in(f)["prompt_embeddings"] for f in (folder, PEFT / name / f"lora{k}")), 1e-6)
        ours, theirs = settings_in(folder), settings_in(PEFT / name / f"lora{k}")
        assert {entry: theirs[entry] for entry in ours} == ours | {"base_model_name_or_path": ""}
    assert_close(*map(jax.tree.leaves, (interop.load_peft(tmp_path, base[0])[1], adapters)), 1e-6)


def change_prompt(folder, tensor=None, **entries):
    if tensor is not None:
        save_file({"prompt_embeddings": tensor}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings_in(folder) | entries))


@pytest.mark.parametrize(
    ("tensor", "entries", "message"),
    [
        (np.zeros((2, 24), np.float32), {}, r"lora1/.*must hold 3 vectors, as in adapter_config.json, got \[2, 24\]"),
        (np.zeros((3, 23), np.float32), {}, "lora1 must hold 3 vectors of 24 numbers, as .*lora0 .* got 3 of 23"),
        (np.full((3, 24), np.inf, np.float32), {}, "prompt_embeddings must hold finite numbers"),
        (None, {"peft_type": "LORA"}, "lora1/.*: peft_type must be PROMPT_TUNING, as in the first folder, got 'LORA'"),
        (None, {"num_transformer_submodules": 2}, "num_transformer_submodules must be 1, got 2"),
        (None, {"encoder_hidden_size": 5}, "settings of a soft prompt that are not supported: encoder_hidden_size"),
    ],
)
def test_soft_prompts_that_are_broken_are_named(tmp_path, tensor, entries, message):
    for k in range(2):
        shutil.copytree(PEFT / "prompts" / f"lora{k}", tmp_path / f"lora{k}")
    change_prompt(tmp_path / "lora1", tensor, **entries)
    with pytest.raises(ValueError, match=message):
        interop.load_peft(tmp_path, load_base()[0])


def test_soft_prompts_of_models_that_see_or_hear_are_not_those_of_peft(tmp_path):
    module = mcl.models.families.build(json.loads((GOLDEN / "whisper" / "tiny" / "config.json").read_text()))[1]
    with pytest.raises(ValueError, match="PEFT has soft prompts for models of text, but Whisper takes more than that"):
        interop.load_peft(PEFT / "prompts", module)
    with pytest.raises(ValueError, match="but Whisper takes more"):
        interop.save_peft(tmp_path, mcl.SoftPrompts(module, 3), {"table": {"prompt": np.zeros((3, 3, 24))}})


# ------------------------------------------------------------------------------------------------------ vLLM and LoRAX


@pytest.mark.parametrize("name", ["ranks", "ranks_stabilized"])
def test_what_vllm_and_lorax_read_is_the_hypothesis(name, tmp_path):
    """See docs/how-to/serving.md: s of W + s B A comes from r, lora_alpha and use_rslora alone; nothing is refused."""
    module, params = load_base()
    model, adapters = interop.load_peft(PEFT / name, module)
    for k, folder in enumerate(interop.save_peft(tmp_path, model, adapters, base="BASE", one_rank=True)):
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        saved, tensors = settings_in(folder), tensors_in(folder)
        assert (saved["peft_type"], saved["bias"], saved["base_model_name_or_path"]) == ("LORA", "none", "BASE")
        assert not saved["use_dora"] and not saved.get("modules_to_save") and type(saved["r"]) is int
        rank, rooted = saved["r"], saved["use_rslora"]
        scale = saved["lora_alpha"] / (rank**0.5 if rooted else rank)
        merged = model.merge(params, adapters, k)["model"]["layers"]
        assert len(tensors) == 2 * 3 * 2  # A and B of two kinds of layers in three layers
        for i, (block, layer) in itertools.product(range(3), [("self_attn", "q_proj"), ("mlp", "down_proj")]):
            a, b = (tensors[f"base_model.model.model.layers.{i}.{block}.{layer}.lora_{half}.weight"] for half in "AB")
            kernel = params["model"]["layers"][block][layer]["kernel"][i]
            assert a.shape[0] == b.shape[1] == rank
            assert_close(merged[block][layer]["kernel"][i], kernel + scale * (b @ a).T, 1e-5)
