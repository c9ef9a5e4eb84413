"""Makes prompts.json: what one training example of each preset of the paper is, in texts and in token ids.

    python tests/golden/make_prompts.py

The texts follow the authors' published code: the conversation "v1" and `tokenizer_image_token` of LLaVA, `get_prompt`
of ALMA, and the data module of Qwen2-Audio. The published tokenizers cannot be had offline, so the ids are those of two
tiny tokenizers that work as those of Llama 2 and Qwen2 do (tests/data/tiny_tokenizers.py): they pin where spaces, first
tokens, line breaks and the end token go, not the ids of the published models. Prompt and answer are one text here, as
in the authors' code, and are encoded together; we encode them apart.

    text      the whole example
    ids       its ids; a picture or clip has a single placeholder
    learned   number of ids at the end that the loss is about
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "data"))

from tiny_tokenizers import like_llama, like_qwen2  # noqa: E402

CAPTION, GERMAN = "A sign that says THE END.", "Das ist das Ende."
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "<image>\nPlease carefully observe the image and come up with a caption for the image."


def llava() -> dict:
    tokenizer = like_llama("<image>")
    text = f"{SYSTEM} USER: {QUESTION} ASSISTANT: {CAPTION}</s>"
    before, after = (tokenizer(part)["input_ids"] for part in text.split("<image>"))
    learned = len(tokenizer(CAPTION + "</s>", add_special_tokens=False)["input_ids"])
    return {"text": text, "ids": [*before, tokenizer.convert_tokens_to_ids("<image>"), *after[1:]], "learned": learned}


def alma() -> dict:
    tokenizer = like_llama()
    prompt = "Translate this from English to German:\nEnglish: This is the end.\nGerman:"
    ids = [*tokenizer(prompt + GERMAN)["input_ids"], tokenizer.eos_token_id]
    # Theirs also learns the last token of the prompt, because its count of the prompt leaves out <s>.
    learned = len(ids) - len(tokenizer(prompt)["input_ids"]) + 1
    return {"text": f"{prompt}{GERMAN}</s>", "ids": ids, "learned": learned}


def qwen() -> dict:
    tokenizer = like_qwen2("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:"
    ids = tokenizer(f"{prompt} {CAPTION}{tokenizer.eos_token}")["input_ids"]
    learned = len(ids) - 1 - ids.index(tokenizer(prompt)["input_ids"][-1])
    return {"text": f"{prompt} {CAPTION}<|im_end|>", "ids": ids, "learned": learned}


if __name__ == "__main__":
    examples = {"textcaps-llava-7b": llava(), "textcaps-bilingual": llava(), "alma-7b-en-de": alma()}
    examples |= {"audiocaps-qwen2-7b": qwen(), "clotho-qwen2-7b": qwen()}
    (HERE / "prompts.json").write_text(json.dumps(examples, indent=1) + "\n")
