"""Makes further folders of peft/: LoRA with other settings, and soft prompts, written by PEFT for tiny text models.

In the environment of make_peft.py:

    python tests/golden/make_peft_variants.py

Names of folders as arguments make those alone. As there, lora0, lora1 and lora2 are plain PEFT folders, and
expected.npz has the logits [3 adapters, B, T, V] with each on `tokens`. `--check DIR` has PEFT load the same adapters
as `save_peft` wrote them into folders of these names in DIR, and prints how far its logits are from the expected ones.

    ranks             ranks and alphas differ by folder, and by layer in lora1
    ranks_stabilized  the same with rank-stabilised scales
    embeddings        adapters of the embeddings and of the output layer, which are two matrices
    tied              the same where they are one matrix: PEFT leaves each of its two uses to its own adapter
    saved             trained copies of embeddings and output layer (modules_to_save)
    saved_tied        the same of a tied output layer
    saved_alike       the same copies in all three folders
    dora              weight-decomposed adapters
    dora_gpt2         the same of layers that store [in, out]
    prompts           soft prompts
    prompts_gemma3    the same of a model that multiplies its embeddings
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from make_peft import FOLDER, HERE, logits_of
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import Gemma3ForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

LLAMA = (LlamaForCausalLM, HERE / "models" / "llama")
TIED = (LlamaForCausalLM, HERE / "models" / "llama_tied_biased")
GEMMA3 = (Gemma3ForCausalLM, HERE / "models" / "gemma3")
GPT2 = (GPT2LMHeadModel, HERE / "models" / "gpt2")
LAYERS = ["q_proj", "down_proj"]
RANKS = [
    {"r": 2, "lora_alpha": 7},
    {"r": 5, "lora_alpha": 3, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 11}},
    {"r": 3, "lora_alpha": 7},
]
SMALL = {"r": 3, "lora_alpha": 7, "target_modules": LAYERS}
OUTER = {"r": 3, "lora_alpha": 7, "target_modules": ["v_proj", "embed_tokens", "lm_head"]}
SAVED = {"r": 3, "lora_alpha": 7, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
VARIANTS = {
    "ranks": (LLAMA, [one | {"target_modules": LAYERS} for one in RANKS]),
    "ranks_stabilized": (LLAMA, [one | {"target_modules": LAYERS, "use_rslora": True} for one in RANKS]),
    "embeddings": (LLAMA, [OUTER] * 3),
    "tied": (TIED, [OUTER] * 3),
    "saved": (LLAMA, [SAVED] * 3),
    "saved_tied": (TIED, [SAVED | {"modules_to_save": ["lm_head"]}] * 3),
    "saved_alike": (LLAMA, [SAVED | {"modules_to_save": ["lm_head"]}] * 3),
    "dora": (LLAMA, [SMALL | {"use_dora": True}] * 3),
    "dora_gpt2": (GPT2, [SMALL | {"use_dora": True, "target_modules": ["c_attn", "mlp.c_proj"]}] * 3),
    "prompts": (LLAMA, [{"num_virtual_tokens": 3}] * 3),
    "prompts_gemma3": (GEMMA3, [{"num_virtual_tokens": 3}] * 3),
}


def load(base) -> torch.nn.Module:
    family, folder = base
    return family.from_pretrained(folder).eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor(np.random.default_rng(1).integers(0, 41, (2, 7)))}


def settings(options) -> LoraConfig | PromptTuningConfig:
    kind = LoraConfig if "r" in options else PromptTuningConfig
    return kind(task_type="CAUSAL_LM", **options)


def draw(model: torch.nn.Module, name: str, k: int) -> None:
    """Gives everything that is trained a random value, the copies of all three folders of saved_alike the same."""
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        torch.manual_seed(1000 if name == "saved_alike" and "modules_to_save" in key else k)
        noise = torch.randn_like(parameter)
        keeps = "magnitude" in key or "modules_to_save" in key
        parameter.data = parameter.data * (1 + 0.3 * noise) if keeps else 0.3 * noise


def main(name: str) -> None:
    base, variants = VARIANTS[name]
    logits = []
    for k, options in enumerate(variants):
        torch.manual_seed(k)
        model = get_peft_model(load(base), settings(options)).eval()
        draw(model, name, k)
        model.peft_config["default"].base_model_name_or_path = ""  # else the path of this machine
        folder = FOLDER / name / f"lora{k}"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        logits.append(logits_of(model, inputs()))
    np.savez_compressed(FOLDER / name / "expected.npz", logits=np.stack(logits), tokens=inputs()["input_ids"])


def check(name: str, folder: Path) -> None:
    base, _ = VARIANTS[name]
    for k, logits in enumerate(np.load(FOLDER / name / "expected.npz")["logits"]):
        model = PeftModel.from_pretrained(load(base), folder / f"lora{k}").eval()
        difference = np.abs(logits_of(model, inputs()) - logits).max()
        print(f"{name}/lora{k}: largest difference {difference:.1e}")


if __name__ == "__main__":
    checked = sys.argv[1:2] == ["--check"]
    for variant in VARIANTS if checked else sys.argv[1:] or VARIANTS:
        check(variant, Path(sys.argv[2]) / variant) if checked else main(variant)
