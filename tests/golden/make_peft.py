"""Makes peft/: LoRA adapters written by PEFT for the tiny Llama of models/, and the logits with each of them.

In an environment of its own (`pip install torch==2.13.0 "transformers>=5.23,<6" "peft>=0.21,<0.22"`):

    python tests/golden/make_peft.py

lora0, lora1 and lora2 are plain PEFT folders; expected.npz has tokens and logits [3 adapters, B, T, V]. `--check DIR`
loads the adapters that mcl_jax wrote into DIR and prints the largest difference to the logits it stored there.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
FOLDER = HERE / "peft"


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(HERE / "models" / "llama").eval()


def main() -> None:
    tokens, logits = np.random.default_rng(1).integers(0, 41, (2, 7)), []
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    for k in range(3):
        torch.manual_seed(k)
        model = get_peft_model(base(), config).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        model.peft_config["default"].base_model_name_or_path = ""  # else the path of this machine
        model.save_pretrained(FOLDER / f"lora{k}")
        (FOLDER / f"lora{k}" / "README.md").unlink(missing_ok=True)
        with torch.no_grad():
            logits.append(model(torch.tensor(tokens)).logits.numpy())
    np.savez_compressed(FOLDER / "expected.npz", tokens=tokens, logits=np.stack(logits))


def check(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    for k, logits in enumerate(expected["logits"]):
        model = PeftModel.from_pretrained(base(), folder / f"lora{k}").eval()
        with torch.no_grad():
            found = model(torch.tensor(expected["tokens"])).logits.numpy()
        print(f"lora{k}: largest difference {np.abs(found - logits).max():.1e}")


if __name__ == "__main__":
    check(Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else main()
