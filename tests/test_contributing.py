"""What CONTRIBUTING.md shows works: an objective, a decoder and a data set, written as it says."""

import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcl_jax as mcl
from experiments.datasets import loading
from mcl_jax import objectives
from mcl_jax.data import records
from mcl_jax.generation import decoders

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
OBJECTIVE, DECODER, DATA = map(textwrap.dedent, re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))


def defined(code: str, module: object, **names: object) -> dict[str, object]:
    """What the code defines where it is put into the module."""
    namespace = vars(module) | names
    exec(code, namespace)
    return namespace


def test_objective():
    top_two = defined(OBJECTIVE, objectives)["top_two"]()
    log_p = jnp.log(jnp.array([[0.5, 0.1, 0.2], [0.1, 0.6, 0.3], [0.4, 0.3, 0.5]]))
    np.testing.assert_allclose(top_two.weights(log_p), [[0.5, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0.5]])
    loss, aux = top_two(log_p)
    np.testing.assert_allclose(loss, -np.log([0.5 * 0.4, 0.6 * 0.3, 0.3 * 0.5]).sum() / 6, rtol=1e-6)
    assert aux.winner.tolist() == [0, 1, 2]
    tied = top_two.weights(jnp.zeros((3, 300)), rng=jax.random.key(0))
    np.testing.assert_allclose(tied.mean(1), 1 / 3, atol=0.1)
    np.testing.assert_allclose(top_two.weights(jnp.array([[jnp.nan], [-1.0], [-2.0]]))[:, 0], [0, 0.5, 0.5])
    np.testing.assert_allclose(top_two.weights(log_p[:1]), [[1, 1, 1]])


def test_decoder():
    sampling = defined(DECODER, decoders)["EpsilonSampling"](epsilon=0.2)
    scores = jnp.log(jnp.array([0.5, 0.15, 0.05, 0.3]))[None, None]
    draws = [int(sampling.choose(scores, jax.random.key(seed)[None, None])[0, 0]) for seed in range(30)]
    assert set(draws) == {0, 3}
    module, params, _ = mcl.models.from_pretrained(ROOT / "tests" / "golden" / "models" / "llama")
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=3, alpha=7, targets=("q_proj",)))
    adapters = model.init(jax.random.key(0), params, jnp.zeros((1, 2), jnp.int32), num_hypotheses=3)
    prompts = np.array([[7, 8, 9], [10, 11, 12]])
    assert mcl.generate(model, params, adapters, prompts, sampling, 5).shape == (3, 2, 1, 5)


def test_data_set(tmp_path, monkeypatch):
    path = tmp_path / "proverbs.tsv"
    path.write_text(
        "Übung macht den Meister\ten\tPractice makes perfect\nÜbung macht den Meister\tfr\tÀ force\n", "utf-8"
    )
    read_proverbs = defined(DATA, records)["read_proverbs"]
    monkeypatch.setitem(loading.READERS, ".tsv", read_proverbs)
    corpus = loading.load_corpus(path)
    (record,) = corpus.records
    assert [(target.mode, target.text) for target in record.targets] == [
        ("en", "Practice makes perfect"),
        ("fr", "À force"),
    ]
    assert corpus.modes == ("en", "fr")
    path.write_text("Übung macht den Meister\ten", "utf-8")
    with pytest.raises(ValueError, match="proverbs.tsv must have 3 columns, got 2 in line 1"):
        loading.load_corpus(path)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:mcl_jax|experiments|tests|docs|examples)/[\w/.]*)`", TEXT)))
)
def test_files_that_it_names_exist(path):
    assert (ROOT / path).exists() or "NAME" in path
