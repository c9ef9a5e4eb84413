"""Makes generation.npz: what Hugging Face generates with the tiny models of models/, token for token.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6"`), and for diverse beam search, which
was last native in 4.56.2, in another (`pip install torch==2.13.0 transformers==4.56.2`):

    python tests/golden/make_generation.py
    python tests/golden/make_generation.py --diverse

Prompts are padded on the left. Each entry `CASE/tokens` [B·n, T] holds the continuations only, padded with `pad`, and
`CASE/scores` [B·n] the scores of beams; `CASE/options` says what was asked for, as JSON. `filtered/…` are next-token
scores after the sampling filters, with −∞ for what was cut.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
EOS, PAD = [3, 5, 11, 17, 23], 2  # a padding token of 0 is taken for none by beam search there
CASES = {
    "greedy": dict(max_new_tokens=13),
    "greedy_penalty": dict(max_new_tokens=13, repetition_penalty=1.7, min_new_tokens=4),
    "greedy_ngrams": dict(max_new_tokens=13, no_repeat_ngram_size=2, repetition_penalty=1.2, min_new_tokens=5),
    "beam_ngrams": dict(max_new_tokens=13, num_beams=3, num_return_sequences=3, no_repeat_ngram_size=1),
    "beam": dict(max_new_tokens=13, num_beams=3, num_return_sequences=3),
    "beam_long": dict(max_new_tokens=11, num_beams=4, num_return_sequences=2, length_penalty=2.0, early_stopping=True),
    "beam_short": dict(max_new_tokens=12, num_beams=5, num_return_sequences=5, length_penalty=-0.7),
    "beam_never": dict(
        max_new_tokens=12,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=0.6,
        early_stopping="never",
        repetition_penalty=1.3,
        min_new_tokens=3,
    ),
}
DIVERSE = {
    "diverse": dict(max_new_tokens=12, num_beams=6, num_beam_groups=3, diversity_penalty=0.8, num_return_sequences=6),
    "diverse_stop": dict(
        max_new_tokens=10,
        num_beams=4,
        num_beam_groups=4,
        diversity_penalty=0.5,
        num_return_sequences=3,
        early_stopping=True,
        length_penalty=0.4,
    ),
}


def model() -> LlamaForCausalLM:
    """The tiny Llama, from its numbers: version 4 of transformers writes its config otherwise."""
    config = json.loads((HERE / "models" / "llama" / "config.json").read_text())
    rope = dict(config.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    old = torch.__version__ and "--diverse" in sys.argv
    extra = dict(rope_theta=theta, rope_scaling=rope) if old else dict(rope_parameters=rope | {"rope_theta": theta})
    made = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "dtype"}, **extra))
    made.load_state_dict(load_file(HERE / "models" / "llama" / "model.safetensors"))
    with torch.no_grad():
        made.lm_head.weight *= 0.3  # flatter, so that rows end at different lengths
    return made.eval()


def main() -> None:
    rng = np.random.default_rng(7)
    tokens, mask = rng.integers(6, 41, (4, 7)), np.ones((4, 7), int)
    mask[1, :3], mask[2, :5] = 0, 0
    tokens[mask == 0] = PAD
    file = HERE / "generation.npz"
    found = {"tokens": tokens, "mask": mask.astype(bool), "eos": EOS, "pad": PAD}
    if "--diverse" in sys.argv:
        found |= dict(np.load(file))
    for name, options in (DIVERSE if "--diverse" in sys.argv else CASES).items():
        out = model().generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=EOS,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        new = np.full((len(out.sequences), options["max_new_tokens"]), PAD)
        new[:, : out.sequences.shape[1] - 7] = out.sequences[:, 7:]
        found |= {f"{name}/tokens": new, f"{name}/options": json.dumps(options)}
        if getattr(out, "sequences_scores", None) is not None:
            found[f"{name}/scores"] = out.sequences_scores.numpy()
        print(name, [len(row[row != PAD]) for row in new])
    if "--diverse" not in sys.argv:
        found |= filtered()
    np.savez_compressed(file, **found)


def filtered() -> dict[str, np.ndarray]:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

    scores = torch.tensor(np.random.default_rng(3).normal(0, 2, (5, 37)).astype(np.float32))
    warpers = {
        "temperature": [TemperatureLogitsWarper(0.7)],
        "top_k": [TopKLogitsWarper(7)],
        "top_p": [TopPLogitsWarper(0.83)],
        "typical": [TypicalLogitsWarper(0.6)],
        "all": [TemperatureLogitsWarper(1.3), TopKLogitsWarper(19), TopPLogitsWarper(0.9), TypicalLogitsWarper(0.8)],
    }
    out = {"filtered/scores": scores.numpy()}
    for name, steps in warpers.items():
        after = scores
        for step in steps:
            after = step(None, after)
        out[f"filtered/{name}"] = after.numpy()
    return out


if __name__ == "__main__":
    main()
