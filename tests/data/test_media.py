"""Media of records: read when asked, named in errors, shown on pages; what corpora and prompts make of them."""

import base64
import pickle

import numpy as np
import pytest
from tiny_media import PIXELS, ogg, png, write
from tiny_tokenizers import Letters

from mcl_jax.data import (
    Clip,
    Corpus,
    Instruction,
    Picture,
    Prompt,
    Record,
    Target,
    Unreadable,
    encode_records,
    train_batches,
    write_jsonl,
)
from mcl_jax.data.clips import decode_clip
from mcl_jax.data.media import media_in
from mcl_jax.data.pictures import decode_picture
from mcl_jax.data.records import describe_left_out
from mcl_jax.data.schedule import BatchConfig


def test_media_are_read_when_asked_and_not_before(tmp_path):
    path = tmp_path / "a.PNG"
    picture = media_in(path, "a.PNG")
    write(path, png())
    np.testing.assert_array_equal(picture.read(), PIXELS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(picture)).read(), PIXELS)
    assert repr(picture) == "Picture(name='a.PNG')" and picture == media_in(path, "a.PNG") and hash(picture)
    assert picture.kind == "picture" and Clip("a.PNG", path.read_bytes) != picture


def test_errors_name_the_file(tmp_path):
    write(tmp_path / "b.wav", b"no sound")
    for media, message in (
        (media_in(tmp_path / "b.wav", "in/b.wav"), "^in/b.wav: the clip cannot be read"),
        (media_in(tmp_path / "c.jpg", "in/c.jpg"), "^in/c.jpg: no such file$"),
    ):
        for use in (media.read, media.pack, media.data_uri):
            with pytest.raises(Unreadable, match=message) as caught:
                use()
        assert caught.value.name == media.name and media.name not in caught.value.reason
    with pytest.raises(
        ValueError, match=r"file 'd.txt' must be an image or an audio clip; its name must end in .*\.png, .*\.wav"
    ):
        media_in(tmp_path / "d.txt", "d.txt")


def test_pages_and_data_sets_get_what_is_read():
    picture, clip = Picture("a", png), Clip("b", ogg)
    kind, content = picture.data_uri().split(";base64,")
    assert kind == "data:image/jpeg" and decode_picture(base64.b64decode(content)).shape == PIXELS.shape
    kind, content = clip.data_uri().split(";base64,")
    assert kind == "data:audio/flac"
    np.testing.assert_allclose(decode_clip(base64.b64decode(content)), clip.read(), atol=1e-4)
    assert picture.pack() == png()
    np.testing.assert_allclose(decode_clip(clip.pack()), clip.read(), atol=1e-4)


def captioned(name="a", *modes, **fields):
    targets = tuple(Target(f"{name} in {mode}", mode) for mode in modes or ("en", "fr"))
    return Record(name, "", targets, media=Picture(f"{name}.png", png), **fields)


def test_a_record_needs_a_source_or_media(tmp_path):
    assert captioned().source == ""
    with pytest.raises(ValueError, match="record 'a' needs a source text, an image or an audio clip"):
        Record("a", " ", (Target("b"),))
    with pytest.raises(ValueError, match="record 'a' has a picture, but .*a.jsonl can hold only text"):
        write_jsonl(tmp_path / "a.jsonl", Corpus("c", (captioned(),)))


def test_with_modes_keeps_whole_records_only():
    further = (Target("x", "fr"), Target("y", "de"))
    lacking = captioned("b", "en", "es"), captioned("d", "fr")
    corpus = Corpus("c", (captioned("a", "en", "fr", "es"), *lacking, captioned("c", further_references=further)))
    bilingual = corpus.with_modes("fr", "en")
    assert [record.id for record in bilingual.records] == ["a", "c"] and bilingual.modes == ("en", "fr")
    assert [target.mode for target in bilingual.records[0].targets] == ["fr", "en"]
    assert bilingual.records[1].further_references == (Target("x", "fr"),)
    assert bilingual.left_out == (("b", "no target in fr"), ("d", "no target in en"))
    assert bilingual.records[0].media is not None
    assert len(corpus.records[0].targets) == 3
    with pytest.raises(ValueError, match="corpus 'c': a mode must be one of .*, got 'frr'; did you mean 'fr'"):
        corpus.with_modes("en", "frr")


def test_what_is_left_out_is_counted_by_reason():
    pairs = [*((f"{n}.png", "broken") for n in range(7)), ("x", "missing")]
    text = "broken: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more; missing: x"
    assert describe_left_out(pairs) == text


def test_an_instruction_is_the_same_for_all_and_batches_say_whose_picture():
    records = tuple(captioned(name) for name in "abcde")
    instruction = Instruction("Say it.")
    encoded = encode_records(records, Letters(), instruction, max_length=20, mode_names=("en", "fr"))
    assert all("".join(map(chr, ids)) == "Say it." for ids in encoded.prompts)
    batch = next(train_batches(encoded, BatchConfig(batch_size=5, lengths=(20,))))
    for row, index in enumerate(batch["index"]):
        answer = batch["tokens"][row, 1:][batch["target_mask"][row]]
        assert chr(answer[0]) == records[index].id
    with pytest.raises(ValueError, match="an instruction must not contain"):
        Instruction("What is {source}?")
    with pytest.raises(ValueError, match="record 't' needs a picture or a clip, because an instruction"):
        encode_records([Record("t", "text", (Target("a"),))], Letters(), instruction, max_length=20)
    question = Record("q", "what?", (Target("a"),), media=Picture("q.png", png))
    assert chr(encode_records([question], Letters(), Prompt("{source}>"), max_length=20).prompts[0][0]) == "w"
