"""Makes gpt_neo.npz: weights, inputs and outputs of a tiny random GPT-Neo computed by Hugging Face on the CPU.

Run in an environment of its own, with torch==2.13.0, transformers==5.23.* and numpy>=2; takes seconds:

    python tests/golden/make_gpt_neo.py

The file holds
    config                      the config.json, as a string
    weights/NAME                the state dict without the tied lm_head, every bias and layer norm random
    tokens [B, T]               token ids
    logits [B, T, V]            without padding
    hidden [L + 1, B, T, D]     embeddings, then the output of each block (of the last one after ln_f)
    mask [B, T]                 row 0 padded on the left, row 1 on the right, row 2 on both sides
    padded_logits [B, T, V]     with the mask and positions counted from it; zero at padding

All sizes differ and most are prime, so that a mixed-up axis cannot pass.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

B, T = 3, 13
PADDING = ((5, 0), (0, 4), (2, 1))  # (left, right) for each row
CONFIG = GPTNeoConfig(
    vocab_size=29,
    hidden_size=21,
    num_layers=4,
    num_heads=3,
    intermediate_size=43,
    max_position_embeddings=17,
    window_size=3,
    attention_types=[[["global", "local"], 2]],
    bos_token_id=0,
    eos_token_id=0,
)


def random_model(generator: torch.Generator) -> GPTNeoForCausalLM:
    """Every parameter is drawn, biases and layer norms too: one left out of the port would show."""
    model = GPTNeoForCausalLM._from_config(CONFIG, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        offset = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    model.tie_weights()
    return model


@torch.no_grad()
def main() -> None:
    generator = torch.Generator().manual_seed(1235)
    model = random_model(generator)
    tokens = torch.randint(CONFIG.vocab_size, (B, T), generator=generator)
    mask = torch.stack([(torch.arange(T) >= left) & (torch.arange(T) < T - right) for left, right in PADDING])

    plain = model(tokens, output_hidden_states=True)
    position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
    padded = model(tokens, attention_mask=mask.long(), position_ids=position_ids)

    weights = {f"weights/{name}": w.numpy() for name, w in model.state_dict().items() if name != "lm_head.weight"}
    np.savez_compressed(
        Path(__file__).with_name("gpt_neo.npz"),
        config=np.array(CONFIG.to_json_string(use_diff=False)),
        tokens=tokens.numpy().astype(np.int32),
        logits=plain.logits.numpy(),
        hidden=torch.stack(plain.hidden_states).numpy(),
        mask=mask.numpy(),
        padded_logits=torch.where(mask[..., None], padded.logits, 0.0).numpy(),
        **weights,
    )


if __name__ == "__main__":
    main()
