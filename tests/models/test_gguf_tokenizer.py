"""Tokenizers in GGUF files and in `tokenizer.model`: SentencePiece's own tokens, and what their metadata say."""

import io
import json
import shutil
from pathlib import Path

import gguf
import pytest
import sentencepiece

import mcl_jax as mcl
from mcl_jax.models import gguf_tokenizer, tokenizer_files
from mcl_jax.models.tensors import Safetensors

GOLDEN = Path(__file__).parents[1] / "golden"

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["<s>", "</s>", "<pad>", "Ġ", *LETTERS, "ca", "cat", "Ġcat", "<think>", "<|im|>", "    "]
KINDS = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 30
KINDS += [gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED]
TEXTS = ["the cat sat", " the  cat\n12 x", "naïve 東 🦜", "", "loweest", "a" * 19, "\n", "dog ", "  "]
CORPUS = ["the cat sat on the mat", "a dog and 12 cats ran 345 miles", "naïve café tea", "low lower lowest newer wider"]


def metadata(**changed):
    """Of a byte-level BPE, as `GGUF.fields` has them."""
    fields = dict(model="gpt2", pre="gpt-2", tokens=PIECES, merges=["c a", "ca t", "Ġ cat"], token_type=KINDS)
    fields |= dict(bos_token_id=0, eos_token_id=1) | changed
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}


def build(**changed):
    return gguf_tokenizer.build("m.gguf", metadata(**changed))


@pytest.fixture(scope="module")
def model():
    """A SentencePiece BPE with bytes for unknown characters, as Llama 2's, serialised."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=written,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


def of_sentencepiece(model, **changed):
    """Metadata of the same vocabulary as llama.cpp's converter writes them."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = theirs.get_piece_size()
    kind = lambda i: 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
    return theirs, metadata(
        model="llama",
        pre="default",
        merges=None,
        tokens=[theirs.id_to_piece(i) for i in range(size)],
        scores=[theirs.get_score(i) for i in range(size)],
        token_type=[kind(i) for i in range(size)],
        **dict(bos_token_id=1, eos_token_id=2, unknown_token_id=0) | changed,
    )


# ----------------------------------------------------------------------------------------------------- SentencePiece


def test_a_sentencepiece_vocabulary_gives_its_own_tokens(model):
    theirs, fields = of_sentencepiece(model)
    ours = gguf_tokenizer.build("m.gguf", fields)
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text)], text
        assert ours.decode(ours.encode(text), skip_special_tokens=True) == theirs.decode(theirs.encode(text)), text
    assert ours.encode("cat</s>dog", add_special_tokens=False) == [*theirs.encode("cat"), 2, *theirs.encode("dog")]


def test_a_sentencepiece_vocabulary_does_without_what_llama_cpp_knows(model):
    theirs, fields = of_sentencepiece(model, bos_token_id=None, eos_token_id=None, unknown_token_id=None)
    ours = gguf_tokenizer.build("m.gguf", fields)
    assert (ours.unk_token_id, ours.bos_token_id, ours.eos_token_id) == (0, 1, 2)
    assert ours.encode("the cat") == [1, *theirs.encode("the cat")]


def test_no_space_is_put_before_a_text_where_the_file_says_so(model):
    _, fields = of_sentencepiece(model, add_space_prefix=False)
    ours = gguf_tokenizer.build("m.gguf", fields)
    assert ours.tokenize("the")[0] == "t"
    assert ours.decode(ours.encode(" the"), skip_special_tokens=True) == " the"


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_folder_with_only_a_sentencepiece_model_has_a_tokenizer(model, tmp_path, model_type):
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours = tokenizer_files.read_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text)], text
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")


# --------------------------------------------------------------------------------------------------------- Metadata


def test_tokens_that_users_defined_are_whole_and_are_not_skipped():
    tokenizer = build()
    ids = tokenizer.encode("a<think>cat    <|im|>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<think>", "cat", "    ", "<|im|>"]
    assert ids == [PIECES.index(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>cat    "
    assert len(tokenizer) == len(PIECES)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.6, 0.97])
def test_a_sentencepiece_model_that_is_cut_short_is_called_so(model, tmp_path, part):
    """transformers took it for a vocabulary of tiktoken, and asked for that library."""
    (tmp_path / "tokenizer.model").write_bytes(model[: int(part * len(model))])
    with pytest.raises(ValueError, match=r"tokenizer.model is not a SentencePiece model: it was cut short"):
        tokenizer_files.read_tokenizer(tmp_path)


@pytest.mark.parametrize("begins", [None, False, True])
@pytest.mark.parametrize("ends", [None, False, True])
def test_texts_begin_and_end_as_the_file_says(begins, ends, tmp_path):
    tokenizer = build(add_bos_token=begins, add_eos_token=ends)
    expected = ["<s>"] * bool(begins) + ["cat"] + ["</s>"] * bool(ends)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("cat")) == expected
    assert tokenizer.tokenize("cat", add_special_tokens=False) == ["cat"]
    tokenizer.save_pretrained(tmp_path)
    again = tokenizer_files.read_tokenizer(tmp_path)
    assert again.convert_ids_to_tokens(again.encode("cat")) == expected


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("smaug-bpe", False), ("smollm", False)])
def test_whether_texts_begin_with_a_token_is_llama_cpps_default(pre, begins):
    assert (build(pre=pre).encode("cat")[0] == 0) is begins
    assert build(pre=pre, add_bos_token=False).encode("cat")[0] != 0


def test_a_file_may_do_without_token_types_or_a_vocabulary():
    assert build(token_type=None).tokenize("cat") == ["cat"]
    assert build(tokens=None) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(token_type=[1, 1]), "token_type must have 36 entries, one per token, got 2"),
        (dict(eos_token_id=36), "eos_token_id must be one of 36 tokens, got 36"),
        (dict(merges=None), "must have tokenizer.ggml.merges for its tokenizer 'gpt2'"),
        (dict(merges=["cat"]), r"merges must be pairs .* got \['cat'\]"),
        (dict(merges=["c zz"]), "its tokenizer cannot be read: .*`zz` out of vocabulary"),
        (dict(merges=[1]), r"merges must hold texts, got \[1\]"),
        (dict(tokens=[*range(36)]), r"tokens must hold texts, got \[0, 1, 2\]"),
        (dict(token_type=["1"] * 36), "token_type must hold integers, got"),
        (dict(bos_token_id=1.5), "bos_token_id must be one of 36 tokens, got 1.5"),
        (dict(bos_token_id="0"), "bos_token_id must be one of 36 tokens, got 0"),
        (dict(model="llama"), "must have tokenizer.ggml.scores .* but has none"),
        (
            dict(add_bos_token=True, bos_token_id=None),
            "needs tokenizer.ggml.bos_token_id, since texts begin or end with .'bos_token'",
        ),
    ],
)
def test_metadata_that_do_not_fit_are_named(changed, message):
    with pytest.raises(ValueError, match=f"m.gguf.*{message}"):
        build(**changed)


# ------------------------------------------------------------------------------------------------------ Broken files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"\xff\xfe{}", "tokenizer.json is not text in UTF-8"),
        ("tokenizer.json", b"{", "tokenizer.json is not valid JSON"),
        ("tokenizer.json", b"{}", "the tokenizer or processor files cannot be read"),
        ("tokenizer_config.json", b"[" * 100000, "tokenizer_config.json is not valid JSON"),
        ("special_tokens_map.json", b"\x80", "special_tokens_map.json is not text in UTF-8"),
        ("tokenizer.model", b"1234", "tokenizer.model is not a SentencePiece model: it was cut short"),
        ("vocab.json", b'{"a": 0}', "vocab.json without merges.txt"),
    ],
)
def test_tokenizer_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if name not in tokenizer_files.VOCABULARIES:
        build().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        tokenizer_files.read_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(Safetensors, "read", lambda *args: read.append(args))
    shutil.copytree(GOLDEN / "models" / "llama", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes(b"1234")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        mcl.models.from_pretrained(tmp_path)
    assert not read
