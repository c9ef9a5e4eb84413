"""Makes peft/: LoRA adapters written by PEFT for tiny models of models/ and of the folders of those that see or hear.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6" "peft>=0.21,<0.22" pillow`):

    python tests/golden/make_peft.py

Names of bases as arguments make those alone. In each folder lora0, lora1 and lora2 are plain PEFT folders, and
expected.npz has the logits of the last 7 tokens with each, [3 adapters, B, 7, V], on the inputs of the base's own
expected.npz, of text models on `tokens`. authors/ is for the Llama too, with the settings and calls of the paper's ALMA
recipe: all linear layers, α = 2 r, a dropout, and K adapters of one model that are saved together. `--check DIR` has
PEFT load the same adapters as `save_peft` wrote them into folders of these names in DIR, and prints what differs.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    LlamaForCausalLM,
    LlavaNextForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    Phi3ForCausalLM,
    Qwen2AudioForConditionalGeneration,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
    SmolVLMForConditionalGeneration,
    WhisperForConditionalGeneration,
)

HERE = Path(__file__).parent
FOLDER = HERE / "peft"
BASES = {
    "gemma2": (Gemma2ForCausalLM, HERE / "models" / "gemma2"),
    "gemma3": (Gemma3ForCausalLM, HERE / "models" / "gemma3"),
    "llama": (LlamaForCausalLM, HERE / "models" / "llama"),
    "llava": (LlavaNextForConditionalGeneration, HERE / "llava" / "llama"),
    "paligemma": (PaliGemmaForConditionalGeneration, HERE / "paligemma" / "gemma2"),
    "phi3": (Phi3ForCausalLM, HERE / "models" / "phi3_longrope"),
    "qwen2_audio": (Qwen2AudioForConditionalGeneration, HERE / "qwen2_audio" / "grouped"),
    "qwen3": (Qwen3ForCausalLM, HERE / "models" / "qwen3_windows"),
    "smollm3": (SmolLM3ForCausalLM, HERE / "models" / "smollm3"),
    "smolvlm": (SmolVLMForConditionalGeneration, HERE / "smolvlm" / "smolvlm"),
    "whisper": (WhisperForConditionalGeneration, HERE / "whisper" / "tiny"),
}
TEXT = ("gemma2", "gemma3", "llama", "phi3", "qwen3", "smollm3")
# Towers and encoders have layers of these names too.
TARGETS = r"(?!.*tower)(?!.*encoder\.).*\.(q_proj|v_proj|down_proj|fc2)"
OTHER_TARGETS = {"phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
TASKS = {"whisper": None}  # PEFT's wrapper for encoder-decoders hands the base `input_ids`


def base(name: str) -> torch.nn.Module:
    family, folder = BASES[name]
    return family.from_pretrained(folder).eval()


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    if name in TEXT:
        return {"input_ids": torch.tensor(np.random.default_rng(1).integers(0, 41, (2, 7)))}
    golden = {key: torch.tensor(value) for key, value in np.load(BASES[name][1] / "expected.npz").items()}
    mask = golden["mask"].long()
    if name == "whisper":
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        decoder = {"input_ids": golden["tokens"], "attention_mask": mask, "position_ids": positions}
        return {"input_features": golden["mel"]} | {f"decoder_{key}": value for key, value in decoder.items()}
    inputs = {"input_ids": golden["tokens"], "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    if name == "llava":
        return inputs | {"pixel_values": golden["pixels"] / 64 - 2, "image_sizes": golden["sizes"]}
    if name == "paligemma":
        return inputs | {"pixel_values": golden["pixels"] / 64 - 2, "token_type_ids": golden["answer"].long()}
    if name == "smolvlm":
        real = torch.arange(golden["pixels"].shape[1])[None] < golden["tiles"][:, None]
        return inputs | {"pixel_values": torch.where(real[..., None, None, None], golden["pixels"] / 64 - 2, 0.0)}
    heard = torch.arange(golden["mel"].shape[-1])[None] < golden["frames"][:, None]
    return inputs | {"input_features": golden["mel"], "feature_attention_mask": heard.long()}


@torch.no_grad()
def logits_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    return model(**inputs).logits[:, -7:].numpy()


def main(name: str) -> None:
    inputs, logits = inputs_of(name), []
    settings = dict(target_modules=OTHER_TARGETS.get(name, TARGETS), task_type=TASKS.get(name, "CAUSAL_LM"))
    config = LoraConfig(r=3, lora_alpha=7, **settings)
    for k in range(3):
        torch.manual_seed(k)
        model = get_peft_model(base(name), config).eval()
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = ""  # else the path of this machine
        model.save_pretrained(FOLDER / name / f"lora{k}")
        (FOLDER / name / f"lora{k}" / "README.md").unlink(missing_ok=True)
        logits.append(logits_of(model, inputs))
    tokens = {"tokens": inputs["input_ids"]} if name in TEXT else {}
    np.savez_compressed(FOLDER / name / "expected.npz", logits=np.stack(logits), **tokens)


def authors() -> None:
    """As in load_model and main of the authors' ALMA/utils/utils.py and run_llmmt.py, without their changes of PEFT."""
    inputs = inputs_of("llama")
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules="all-linear", lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base("llama"), config, adapter_name="lora0")
    for k in range(1, 3):
        model.add_adapter(f"lora{k}", config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    for one in model.peft_config.values():
        one.base_model_name_or_path = ""
    model.eval().save_pretrained(FOLDER / "authors")
    (FOLDER / "authors" / "README.md").unlink(missing_ok=True)
    logits = []
    for k in range(3):
        model.set_adapter(f"lora{k}")
        logits.append(logits_of(model, inputs))
    np.savez_compressed(FOLDER / "authors" / "expected.npz", logits=np.stack(logits), tokens=inputs["input_ids"])


def check(name: str, folder: Path) -> None:
    for k, logits in enumerate(np.load(FOLDER / name / "expected.npz")["logits"]):
        model = PeftModel.from_pretrained(base(name), folder / f"lora{k}").eval()
        names = set(get_peft_model_state_dict(model)) ^ set(
            load_file(folder / f"lora{k}" / "adapter_model.safetensors")
        )
        difference = np.abs(logits_of(model, inputs_of(name)) - logits).max()
        print(f"{name}/lora{k}: largest difference {difference:.1e}; tensors of one of the two alone: {sorted(names)}")


if __name__ == "__main__":
    checked = sys.argv[1:2] == ["--check"]
    for base_name in BASES if checked else sys.argv[1:] or [*BASES, "authors"]:
        if checked:
            check(base_name, Path(sys.argv[2]) / base_name)
        else:
            authors() if base_name == "authors" else main(base_name)
