"""Prompts, targets, end of sequence; what is too long or empty."""

import numpy as np
import pytest
from tiny_tokenizers import Letters, words

from mcl_jax.data import NO_MODE, Prompt, Record, Target, encode_records


def record(name="a", source="cat", *targets):
    return Record(name, source, targets or (Target("gato", "es"), Target("a cat", "en")))


def test_prompt_takes_its_source_once_and_as_it_is():
    assert Prompt().format("a {b} {source}") == "a {b} {source}\n=>\n"
    for template in ("no source", "{source} {source}"):
        with pytest.raises(ValueError, match=r'needs "\{source\}" once, got'):
            Prompt(template)


def test_prompt_keeps_the_first_special_token_and_targets_end_in_eos_once():
    tokenizer = words("cat => gato a")
    assert tokenizer.encode("cat") == [1, 4, 2]  # the tokenizer would end the prompt, and begin the target
    encoded = encode_records([record()], tokenizer, max_length=8, mode_names=("en", "es"))
    np.testing.assert_array_equal(encoded.prompts[0], [1, 4, 5])
    assert [list(target) for target in encoded.targets[0]] == [[6, 2], [7, 4, 2]]
    assert encoded.modes == ((1, 0),) and encoded.pad_id == 3 and encoded.index == (0,)
    np.testing.assert_array_equal(encoded.lengths()[0], [4, 5])


def test_a_tokenizer_with_encode_and_eos_is_enough():
    encoded = encode_records([record("a", "b", Target("c"))], Letters(), Prompt("{source}>"), max_length=3)
    assert [*encoded.prompts[0], *encoded.targets[0][0]] == [ord("b"), ord(">"), ord("c"), 0]
    assert encoded.modes == ((NO_MODE,),) and encoded.pad_id == 0


def test_prompt_of_generation_is_a_prefix_of_what_was_trained_on():
    prompt, tokenizer = Prompt("{source} =>"), words("cat => gato")
    encoded = encode_records([record("a", "cat", Target("gato"))], tokenizer, prompt, max_length=8)
    np.testing.assert_array_equal(prompt.encode(tokenizer, "cat"), encoded.prompts[0])


def test_too_long_is_an_error_or_counted_and_takes_the_whole_record(capsys):
    prompt = Prompt("{source}>")
    records = [
        record("fits", "abc", Target("d")),
        record("one too many", "abc", Target("de"), Target("d")),
        record("fits too", "a", Target("bcd"), Target("b")),
    ]
    with pytest.raises(ValueError, match=r"'one too many' has 6 predicted positions, but max_length is 5; .*drop"):
        encode_records(records, Letters(), prompt, max_length=5)
    encoded = encode_records(records, Letters(), prompt, max_length=5, too_long="drop")
    assert capsys.readouterr().out == "Left out 1 of 3 records that have more than 5 predicted positions.\n"
    assert encoded.dropped == ("one too many",) and encoded.index == (0, 2) and len(encoded.prompts) == 2
    with pytest.raises(ValueError, match="no records are left to make batches: got 3, of which 3 have more than 2"):
        encode_records(records, Letters(), prompt, max_length=2, too_long="drop")
    with pytest.raises(ValueError, match="too_long must be"):
        encode_records(records, Letters(), prompt, max_length=5, too_long="truncate")


def test_exactly_the_longest_length_fits_without_a_word(capsys):
    encoded = encode_records([record("a", "abc", Target("d"))], Letters(), Prompt("{source}>"), max_length=5)
    assert encoded.lengths()[0].tolist() == [5] and encoded.dropped == () and not capsys.readouterr().out


def test_bad_targets_are_errors_that_name_the_record():
    with pytest.raises(ValueError, match="record 'a': targets and references must not be empty"):
        record("a", "cat", Target(" "))
    with pytest.raises(ValueError, match="record 'a' needs at least one target"):
        Record("a", "cat", ())

    class Deaf(Letters):
        def encode(self, text):
            return [] if text == "gato" else super().encode(text)

    with pytest.raises(ValueError, match="record 'a': the target 'gato' is empty, or has no tokens"):
        encode_records([record()], Deaf(), max_length=99, mode_names=("en", "es"))
    with pytest.raises(ValueError, match="record 'a': the target contains the end-of-sequence token"):
        encode_records([record("a", "cat", Target("ga\0to"))], Letters(), max_length=99)
    with pytest.raises(ValueError, match=r"record 'a' has mode 'es', which is not among mode_names=\['en'\]"):
        encode_records([record()], Letters(), max_length=99, mode_names=("en",))


def test_what_is_no_tokenizer_is_refused():
    class Endless:
        def encode(self, text):
            return [1]

    with pytest.raises(TypeError, match="needs eos_token_id.*Endless has None"):
        encode_records([record()], Endless(), max_length=99)

    class Other(Letters):
        def encode(self, text):
            return words("a").backend_tokenizer.encode(text)

    with pytest.raises(TypeError, match="must return a list of token ids, got Encoding"):
        encode_records([record()], Other(), max_length=99)


def test_a_row_for_each_target_keeps_prompt_mode_and_index():
    records = [record("a", "cat"), record("b", "dog", Target("perro", "es"))]
    encoded = encode_records(records, Letters(), Prompt("{source}>"), max_length=9, mode_names=("en", "es"))
    each = encoded.one_target_each()
    assert [len(targets) for targets in each.targets] == [1, 1, 1]
    assert [Letters().decode(targets[0][:-1]) for targets in each.targets] == ["gato", "a cat", "perro"]
    assert [Letters().decode(prompt) for prompt in each.prompts] == ["cat>", "cat>", "dog>"]
    assert (each.modes, each.index) == (((1,), (0,), (1,)), (0, 0, 1))
