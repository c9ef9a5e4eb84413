"""The Hugging Face side of the benchmark, for a Python with torch, transformers and peft (without this library).

    python hugging_face.py BASE ADAPTERS

reads one JSON object per line, {"tokens", "mask", "new_tokens", "num_beams", "hypotheses"}, runs `generate` once per
hypothesis with its adapters, and answers with one line {"seconds", "tokens"}.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(base: str, adapters: str):
    """Loads the base with the adapters of every hypothesis."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folders = sorted(Path(adapters).iterdir(), key=lambda folder: int(folder.name.removeprefix("lora")))
    model = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    for k, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(k))
    model.generation_config.eos_token_id = None  # nothing ends early
    return model.eval().to(DEVICE)


@torch.no_grad()
def answer(model, asked: dict) -> dict:
    """Decodes with one hypothesis after the other; returns all tokens, and the total time in seconds."""
    inputs = {"input_ids": torch.tensor(asked["tokens"]), "attention_mask": torch.tensor(asked["mask"], dtype=int)}
    inputs = {name: x.to(DEVICE) for name, x in inputs.items()}
    options = {"max_new_tokens": asked["new_tokens"], "num_beams": asked["num_beams"], "do_sample": False}
    tokens, started = [], time.perf_counter()
    for k in range(asked["hypotheses"]):
        model.set_adapter(str(k))
        generated = model.generate(**inputs, **options, pad_token_id=0)
        tokens.append(generated[:, inputs["input_ids"].shape[1] :].tolist())
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


if __name__ == "__main__":
    served = load(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(answer(served, json.loads(line))), flush=True)
