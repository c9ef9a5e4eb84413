"""BERTScore and FENSE: by hand, from folders of tiny models, and without models."""

import jax
import numpy as np
import pytest
from test_metrics_embedding import HF_CONFIG, WEIGHTS, write_folder

from mcl_jax import metrics
from mcl_jax.metrics import embedding
from mcl_jax.metrics.bert import Bert, BertConfig, params_from_hf

CLASSES = 5
HEAD = {
    "clf.weight": np.random.default_rng(5).normal(size=(CLASSES, 21)).astype(np.float32),
    "clf.bias": np.arange(CLASSES, dtype=np.float32) / 7,
}
ITEM = metrics.Item(1, ("a b", "c d", " "), ("a b", "c"))


class Compass:
    """An encoder of known vectors: each letter of a text is a token that points somewhere; [CLS] is up, [SEP] down."""

    DIRECTIONS = {"e": (1.0, 0.0, 0.0), "n": (0.0, 1.0, 0.0), "a": (0.6, 0.8, 0.0), "u": (0.6, 0.0, 0.8)}
    DIRECTIONS |= {"[": (0.0, 0.0, 1.0), "]": (0.0, 0.0, -1.0)}

    def encode(self, texts):
        marked = {text: f"[{text}]" if text.strip() else "" for text in texts}
        return {text: np.reshape([self.DIRECTIONS[letter] for letter in own], (-1, 3)) for text, own in marked.items()}


def test_bert_score_by_hand():
    answers = [["e", "en", "aa", " ", "u"], ["n"]]
    references = [["e", ""], ["e", "en", "a"]]
    first, second = metrics.bert_score(answers, references, Compass())
    # "en" against "e": P = (1 + 0) / 2, R = 1; "aa" against "e": P = R = 0.6.
    # "u" is nearer to [CLS] than to "e": P = 0.8, R = 0.6.
    np.testing.assert_allclose(first, [1.0, 2 * 0.5 / 1.5, 0.6, 0.0, 2 * 0.8 * 0.6 / 1.4])
    # "n" against "en": P = 1, R = 1/2; against "a": 0.8, which is the best.
    np.testing.assert_allclose(second, [0.8])


def test_tokens_are_encoded_by_three_quarters_of_the_layers(tmp_path):
    again = {name.replace(f"layer.{n}", f"layer.{n + 2}"): w[::-1] for name, w in WEIGHTS.items() for n in (0, 1)}
    weights = {name: np.ascontiguousarray(w) for name, w in (again | WEIGHTS).items()}
    config = {**HF_CONFIG, "num_hidden_layers": 4}
    vectors = metrics.TokenEncoder.load(write_folder(tmp_path, config, weights)).encode(["a c", " ", "k"])
    lower = BertConfig.from_hf({**config, "num_hidden_layers": 3})
    inputs = np.array([[2, 4, 6, 3]]), np.ones((1, 4), bool)
    hidden = np.asarray(jax.jit(Bert(lower).apply)({"params": params_from_hf(weights, lower)}, *inputs))[0]
    np.testing.assert_allclose(vectors["a c"], hidden / np.linalg.norm(hidden, axis=1, keepdims=True), atol=1e-5)
    assert vectors[" "].shape == (0, 21) and vectors["k"].shape == (3, 21)


@pytest.mark.slow  # reads MiniLM
def test_bert_score_is_the_authors():
    """The numbers are those of bert-score 0.3.13, `utils.bert_cos_score_idf`, with 4 of MiniLM's 6 layers."""
    pairs = {
        ("A cat sleeps on the sofa.", "The kitten is sleeping on a couch."): 0.8689477443695068,
        ("Two dogs run!", "A man reads."): 0.42793411016464233,
        ("naïve café, 1,234.5 %", "coffee"): 0.4203795790672302,
        ("x", "A very long reference with many many words indeed, and more of them than before."): 0.1962480992078781,
        ("same text", "same text"): 1.0,
    }
    try:
        encoder = metrics.TokenEncoder.load(embedding._package_folder())
    except metrics.EncoderNotFoundError as error:
        pytest.skip(str(error))
    found = metrics.bert_score([[answer] for answer, _ in pairs], [[reference] for _, reference in pairs], encoder)
    np.testing.assert_allclose(np.concatenate(found), list(pairs.values()), atol=1e-5)


def detector_folder(folder, head=HEAD):
    return write_folder(folder, weights={f"encoder.{name}": w for name, w in WEIGHTS.items()} | head)


def test_an_error_is_the_last_class_at_the_first_token(tmp_path):
    detector = metrics.ErrorDetector.load(detector_folder(tmp_path))
    config = BertConfig.from_hf(HF_CONFIG)
    inputs = np.array([[2, 4, 6, 3]]), np.ones((1, 4), bool)
    first = np.asarray(jax.jit(Bert(config).apply)({"params": params_from_hf(WEIGHTS, config)}, *inputs))[0, 0]
    logit = first @ HEAD["clf.weight"][-1] + HEAD["clf.bias"][-1]
    found = detector.probabilities(["a c", "A, C!", "", "?", "k"])
    np.testing.assert_allclose(found[:4], [1 / (1 + np.exp(-logit))] * 2 + [1, 1], atol=1e-5)
    assert abs(found[4] - found[0]) > 1e-3


def test_an_error_costs_nine_tenths_of_the_similarity():
    class Detector:
        def probabilities(self, texts):
            return np.array([{"e": 0.95, "n": 0.9, "": 1.0}[text] for text in texts])

    errors = metrics.fluency_errors([["e", "n", ""], ["n"]], Detector())
    assert [e.tolist() for e in errors] == [[1, 0, 1], [0]]
    similarity = [np.array([0.5, 0.5, 0.0]), np.array([-0.5])]
    np.testing.assert_allclose(np.concatenate(metrics.fense(similarity, errors)), [0.05, 0.5, 0.0, -0.5])


def test_folders_of_the_settings_are_read_and_missing_ones_are_said(tmp_path):
    paths = {}
    for name, write in {"encoder": write_folder, "bert": write_folder, "fluency": detector_folder}.items():
        (tmp_path / name).mkdir()
        paths[name] = write(tmp_path / name)
    groups = {"embedding": metrics.GROUPS["embedding"]}
    scores = metrics.score_items([ITEM], settings=metrics.Settings(**paths), groups=groups)
    assert scores["mean_bert_score"].mean <= scores["oracle_bert_score"].mean == pytest.approx(1.0, abs=1e-5)
    assert scores["fluency_error_rate"].mean in (1 / 3, 2 / 3, 1.0)  # the blank answer has one
    assert -1 <= scores["mean_fense"].mean <= scores["oracle_fense"].mean <= 1
    del paths["bert"], paths["fluency"]
    scores = metrics.score_items([ITEM], settings=metrics.Settings(**paths), groups=groups)
    assert "BERTScore needs the folder of a BERT" in scores["oracle_bert_score"].reason
    for name in ("oracle_fense", "mean_fense", "fluency_error_rate"):
        assert "FENSE needs the folder of its error detector" in scores[name].reason


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"BERTScore needs \['config.json', .*\] in {tmp_path}"):
        metrics.TokenEncoder.load(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors: the state dict of this BERT must have"):
        metrics.TokenEncoder.load(detector_folder(tmp_path))
    with pytest.raises(ValueError, match=r"model.safetensors must hold clf.weight .* of FENSE's .* got .*None"):
        metrics.ErrorDetector.load(detector_folder(tmp_path, {"clf.bias": HEAD["clf.bias"]}))
    with pytest.raises(ValueError, match=r"got {'clf.weight': \(5, 20\), 'clf.bias': \(5,\)}"):
        metrics.ErrorDetector.load(detector_folder(tmp_path, HEAD | {"clf.weight": HEAD["clf.weight"][:, 1:].copy()}))
