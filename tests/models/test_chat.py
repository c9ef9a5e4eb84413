"""Messages about pictures and clips in chat templates: as Hugging Face renders and tokenizes them, and refusals."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers as tk
from chat_templates import OF_TEXT, SMOL, VICUNA
from PIL import Image
from test_efficient_llava import CONFIG, N
from tiny_paligemma import with_processor
from transformers import PreTrainedTokenizerFast

from mcl_jax.models import families
from mcl_jax.models.assembly import with_placeholder
from mcl_jax.models.efficient_llava_processor import EfficientLlavaProcessor
from mcl_jax.models.hf_config import read_config

GOLDEN = Path(__file__).parents[1] / "golden"
HEARS = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>"
CASES = {
    "llava": ("llava/llama", VICUNA, "USER: <image>\nwhat is this ? ASSISTANT:"),
    "begins-with-bos": ("llava/llama", "{{ bos_token }}" + VICUNA, "<s>USER: <image>\nwhat is this ? ASSISTANT:"),
    "smolvlm": ("smolvlm/smolvlm", SMOL, "<|im_start|>User:<image>what is this ?<end_of_utterance>\nAssistant:"),
    "qwen2-audio": (
        "qwen2_audio/grouped",
        None,
        HEARS.format("Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nwhat is this ?") + "assistant\n",
    ),
}


def processor_in(folder, source, template=None):
    """Reads the processor of a golden model, with another chat template beside it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.npz"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    family, module = families.build(read_config(folder))
    return family.processor.from_pretrained(folder, module.config)


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """A processor, what it makes of the message "what is this ?", and (type of its media, one of them)."""
    name, template, chat = CASES[request.param]
    processor = processor_in(tmp_path / "base", GOLDEN / name, template)
    if processor.media == "clips":
        return processor, chat, ("audio", np.sin(np.arange(7001) / 9).astype(np.float32))
    if request.param == "begins-with-bos":  # and so do all texts
        begin = tk.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        processor.tokenizer.backend_tokenizer.post_processor = begin
    picture = np.random.default_rng(3).integers(0, 256, (19, 31, 3), dtype=np.uint8)
    return processor, chat, ("image", picture)


def test_a_chat_is_hugging_faces_in_text_and_tokens(case):
    processor, chat, (kind, media) = case
    content = [{"type": kind, kind: Image.fromarray(media) if kind == "image" else media}]
    content.append({"type": "text", "text": "what is this ?"})
    messages = [{"role": "user", "content": content}]
    theirs = processor.hf.apply_chat_template(messages, add_generation_prompt=True)
    assert processor.chat("what is this ?") == processor.chat(f"{processor.placeholder[1]}what is this ?") == theirs
    assert theirs == chat

    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True)
    (wanted,) = processor.hf.apply_chat_template(messages, **options)["input_ids"]
    found = processor([chat], [media])["tokens"][0].tolist()
    assert found == wanted
    assert found.count(processor.placeholder[0]) == processor.num_features(media) > 5
    bos = processor.tokenizer.bos_token_id
    assert found.count(bos) == (1 if chat.startswith(("<s>", "<|im_start|>U")) else 0)


def test_a_picture_is_where_its_placeholder_is(tmp_path):
    processor = processor_in(tmp_path / "base", GOLDEN / "smolvlm" / "smolvlm", SMOL)
    assert processor.chat("now <image> is") == "<|im_start|>User: now <image> is<end_of_utterance>\nAssistant:"
    assert processor.chat("what<image>").startswith("<|im_start|>User: what<image><end")
    assert processor.chat("<image>") == processor.chat("") == "<|im_start|>User:<image><end_of_utterance>\nAssistant:"
    with pytest.raises(ValueError, match=r"must have '<image>' \(token \d+\) 1 times, .* got 2 in '<\|im_start"):
        processor.prompt(processor.chat("<image> or <image>"), 1)


def test_a_template_may_know_a_clip_by_its_url(tmp_path):
    """As the template did that was published first with Qwen2-Audio."""
    template = (
        "{% for part in messages[0].content %}{{ '<|AUDIO|>' if 'audio_url' in part else part.text }}{% endfor %}"
    )
    processor = processor_in(tmp_path / "base", GOLDEN / "qwen2_audio" / "grouped", template)
    assert processor.chat("what is this") == "<|AUDIO|>what is this"


# -------------------------------------------------------------------------------------- The template of a tokenizer


def tokenizer(template):
    words = ["<unk>", "</s>", "<unused>", "<user>", "<assistant>", "what", "is", "this"]
    words += [f"w{n}" for n in range(CONFIG.text_config.vocab_size - len(words))]
    made = tk.Tokenizer(tk.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>", "<unused>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", chat_template=template)


def test_the_template_of_a_tokenizer_gets_the_placeholder_in_the_text(tmp_path):
    """So it is with an EfficientLlava that is made of SmolLM2, also after it is saved."""
    made = EfficientLlavaProcessor(CONFIG, with_placeholder(tokenizer(OF_TEXT), "<unused>", "<image>"))
    made.save_pretrained(tmp_path)
    for processor in (made, EfficientLlavaProcessor.from_pretrained(tmp_path, CONFIG)):
        chat = processor.chat(" what is this")
        assert chat == processor.chat("<image> what is this") == "<user> <image> what is this <assistant>"
        assert processor.prompt(chat, N).tolist() == [3, *[CONFIG.image_token_index] * N, 5, 6, 7, 4]
        assert processor.chat("what <image> is") == "<user> what <image> is <assistant>"


def test_so_does_a_processor_without_a_template_whose_tokenizer_has_one(tmp_path):
    source = shutil.copytree(GOLDEN / "llava" / "llama", tmp_path / "source")
    entries = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(entries | {"chat_template": OF_TEXT}))
    processor = processor_in(tmp_path / "base", source)
    assert processor.chat("what is this") == "<user> <image>what is this <assistant>"


# ---------------------------------------------------------------------------------------------------------- Refusals


@pytest.mark.parametrize("name", ["paligemma", "whisper", "efficient-llava"])
def test_a_base_without_a_template_names_the_files_that_could_have_one(name, tmp_path):
    folder = tmp_path / "base"
    if name == "efficient-llava":
        EfficientLlavaProcessor(CONFIG, with_placeholder(tokenizer(None), "<unused>", "<image>")).save_pretrained(
            folder
        )
        processor = EfficientLlavaProcessor.from_pretrained(folder, CONFIG)
    elif name == "paligemma":
        processor = processor_in(folder, with_processor(GOLDEN / "paligemma" / "gemma2", tmp_path / "source"))
    else:
        processor = processor_in(folder, GOLDEN / "whisper" / "tiny")
    needed = f"a prompt as a chat needs chat_template in {folder / 'tokenizer_config.json'} or the file {folder}"
    with pytest.raises(ValueError, match=re.escape(needed) + ".*, but there is none; write the prompt out"):
        processor.chat("what is this")


def test_a_template_that_takes_only_text_is_refused(tmp_path):
    processor = processor_in(tmp_path / "base", GOLDEN / "llava" / "llama", OF_TEXT)
    with pytest.raises(ValueError, match=r"base/chat_template.jinja does not take a message of a user: .*list"):
        processor.chat("what is this")
    processor = processor_in(tmp_path / "other", GOLDEN / "llava" / "llama", "{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"must have '<image>' \(token \d+\) 1 times, .* got 0"):
        processor.prompt(processor.chat("what is this"), 1)
