"""generation_config.json of a model folder, and prompts in a chat template."""

import json

import pytest
import tokenizers as tk
from transformers import PreTrainedTokenizerFast

from mcl_jax import data
from mcl_jax.generation import BeamSearch, Defaults, Sampling
from mcl_jax.tokenization import chat_ids


def read(folder, **entries):
    (folder / "generation_config.json").write_text(json.dumps(entries))
    return Defaults.read(folder)


@pytest.mark.parametrize(
    ("entries", "options", "decoder", "unused"),
    [
        ({}, {}, None, ()),
        (
            {"eos_token_id": [5, 3], "do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05},
            {"eos_token_id": (5, 3), "repetition_penalty": 1.05},
            Sampling(temperature=0.7, top_p=0.8, top_k=50),
            (),
        ),
        ({"do_sample": True, "top_k": 0, "min_p": 0.1, "typical_p": 0.9}, {}, Sampling(min_p=0.1, typical_p=0.9), ()),
        ({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}, {"eos_token_id": (2,)}, None, ("temperature", "top_p")),
        (
            {"num_beams": 5, "length_penalty": 0.6, "early_stopping": True, "max_length": 512},
            {},
            BeamSearch(5, length_penalty=0.6, early_stopping=True),
            ("max_length",),
        ),
        (
            {"no_repeat_ngram_size": 3, "max_new_tokens": 7, "stop_strings": "\n\n", "num_beams": 1, "pad_token_id": 0},
            {"no_repeat_ngram_size": 3, "max_new_tokens": 7, "stop_strings": ("\n\n",)},
            None,
            (),
        ),
        ({"do_sample": True, "num_beams": 4, "_from_model_config": True}, {}, Sampling(top_k=50), ("num_beams",)),
        ({"suppress_tokens": [1], "eos_token_id": None, "transformers_version": "5"}, {}, None, ("suppress_tokens",)),
    ],
)
def test_what_the_file_says(tmp_path, entries, options, decoder, unused):
    found = read(tmp_path, **entries)
    assert (dict(found.options), found.decoder, found.unused) == (options, decoder, unused)


def test_what_was_taken_is_said(tmp_path, capsys):
    found = read(tmp_path, eos_token_id=[5, 3], do_sample=True, temperature=0.7, repetition_penalty=1.1, max_length=9)
    found.say(given=("repetition_penalty",))
    path = tmp_path / "generation_config.json"
    taken, unused = capsys.readouterr().out.splitlines()
    assert taken == f"Taken from {path}: eos_token_id=[5, 3], Sampling(temperature=0.7, top_k=50)."
    assert unused == f"Not used from {path}: max_length."
    found.say(given=("eos_token_id", "repetition_penalty", "decoder"))
    assert capsys.readouterr().out.splitlines() == [unused]
    Defaults.read(tmp_path / "none").say()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer of at least 0, got '</s>'"),
        ({"do_sample": True, "temperature": 0}, "temperature must be positive, got 0"),
        ({"repetition_penalty": -1}, "repetition_penalty must be positive and finite, got -1"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size must be an integer"),
        ({"stop_strings": [""]}, "stop_strings must be texts that are not empty, got ''"),
    ],
)
def test_a_wrong_entry_names_the_file(tmp_path, entries, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, **entries)
    assert str(error.value).startswith(f"{tmp_path / 'generation_config.json'}: {message}")


# ---------------------------------------------------------------------------------------------------- Chat templates

TEMPLATE = (
    "<s>{% for message in messages %}[ {{ message['role'] }} ] {{ message['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}[ assistant ]{% endif %}"
)


def words(template=TEMPLATE):
    """A tokenizer that begins every text with <s>, as Llama's does."""
    names = ["<unk>", "<s>", "</s>", "[", "]", "user", "assistant", "one", "two"]
    tokenizer = tk.Tokenizer(tk.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def test_a_prompt_in_a_chat_template_is_hugging_faces():
    """It begins once with <s>, and the user's text is taken as it is."""
    tokenizer = words()
    messages = [{"role": "user", "content": "two one {{ two }}"}]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat_ids(tokenizer, "two one {{ two }}").tolist() == wanted
    assert wanted[:5] == [1, 3, 5, 4, 8] and wanted[-3:] == [3, 6, 4] and wanted.count(1) == 1
    prompt = data.Prompt("one {source}", chat=True)
    assert prompt.encode(tokenizer, "two").tolist() == [1, 3, 5, 4, 7, 8, 2, 3, 6, 4]
    assert data.Prompt("one {source}").encode(tokenizer, "two").tolist() == [1, 7, 8]


def test_a_tokenizer_without_a_chat_template_names_its_file(tmp_path):
    tokenizer = words(None)
    with pytest.raises(ValueError, match=r"needs the chat template of the tokenizer \w+, but there is none; write"):
        chat_ids(tokenizer, "one")
    tokenizer.name_or_path = str(tmp_path)
    with pytest.raises(ValueError) as error:
        chat_ids(tokenizer, "one")
    names = f"chat_template in {tmp_path / 'tokenizer_config.json'} or the file {tmp_path / 'chat_template.jinja'}"
    assert names in str(error.value)
    file = tmp_path / "m.gguf"
    file.touch()
    tokenizer.name_or_path = str(file)
    with pytest.raises(ValueError, match=f"needs tokenizer.chat_template in {file}, but there is none"):
        chat_ids(tokenizer, "one")


def test_a_template_that_takes_no_user(tmp_path):
    tokenizer = words("{{ raise_exception('only systems') }}")
    tokenizer.name_or_path = str(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/chat_template.jinja does not take a message .*: only systems"):
        chat_ids(tokenizer, "one")
    with pytest.raises(ValueError, match="does not take a message .*: can only concatenate list"):
        chat_ids(words("{{ [] + messages[0].content }}"), "one")


def test_an_instruction_may_be_a_chat_too():
    prompt = data.Instruction("one two", chat=True)
    assert prompt.encode(words(), "").tolist() == [1, 3, 5, 4, 7, 8, 2, 3, 6, 4]
