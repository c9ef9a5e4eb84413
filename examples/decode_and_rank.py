"""Decode K answers for each prompt and rank them: `python examples/decode_and_rank.py FOLDER --adapters DIR`.

DIR holds adapters as `examples/fine_tune.py --out DIR` saved them (PEFT folders lora0, lora1 ...). `--tiny` makes a
tiny random Llama and random adapters instead: its words mean nothing, but every call is the same.
"""

import argparse
import tempfile

import jax
import numpy as np
import tiny_llama
import words

import mcl_jax as mcl
from mcl_jax.metrics import minimum_bayes_risk

PROMPTS = [words.prompt(word) for word in ("cat", "house", "door")]


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Prints the answers to each prompt, the likeliest first, and the one that minimum Bayes risk chooses."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="Hugging Face folder of the base model")
    parser.add_argument("--adapters", help="folder with the PEFT folders lora0, lora1 ...")
    parser.add_argument("--tiny", action="store_true", help="a tiny random Llama with random adapters")
    options = parser.parse_args(argv)
    if options.tiny == bool(options.folder) or bool(options.folder) != bool(options.adapters):
        parser.error("give either FOLDER and --adapters, or --tiny")
    if options.folder:
        module, params, tokenizer = mcl.models.from_pretrained(options.folder)
        model, adapters = mcl.interop.load_peft(options.adapters, module)
        return decode_and_rank(model, params, adapters, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        module, params, tokenizer = mcl.models.from_pretrained(tiny_llama.make(folder, words.PROMPTS + words.ANSWERS))
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=4, alpha=4, targets=mcl.models.lora_targets(module)))
    return decode_and_rank(model, params, random_adapters(model, params), tokenizer)


def random_adapters(model: mcl.Hypotheses, params, num_hypotheses: int = 3):
    """Adapters that differ, as trained ones do; freshly initialised ones all equal the base."""
    adapters = model.init(jax.random.key(0), params, np.zeros((1, 2), np.int32), num_hypotheses=num_hypotheses)
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def decode_and_rank(model: mcl.Hypotheses, params, adapters, tokenizer) -> dict[str, object]:
    """Answers of every hypothesis, ranked by all hypotheses together."""
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # some tokenizers have no padding token
    inputs = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="np")
    decoder = mcl.generation.BeamSearch(num_beams=4, num_return=2)
    found = mcl.generation.decode(
        model, params, adapters, inputs, decoder, max_new_tokens=8, eos_token_id=tokenizer.eos_token_id
    )  # tokens [K, B, n, T], scores and lengths [K, B, n]

    # Each hypothesis reads each answer; an answer scores well if one of the hypotheses finds it likely.
    log_p = mcl.generation.log_likelihoods(model, params, adapters, inputs, found)  # [H, K, B, n]
    scores = np.asarray(mcl.generation.mixture_scores(log_p, found.lengths))  # [K, B, n], nats per token

    num_prompts, texts = len(PROMPTS), []
    for b in range(num_prompts):
        tokens = np.asarray(found.tokens[:, b]).reshape(-1, found.tokens.shape[-1])
        texts.append([text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)])
    of_prompt = scores.swapaxes(0, 1).reshape(num_prompts, -1)  # in the order of the texts
    order = np.argsort(-of_prompt, axis=1)

    # Minimum Bayes risk needs no model: it picks the answer that is nearest to all others, by chrF.
    picked = minimum_bayes_risk(texts, weights=np.exp(of_prompt).tolist())
    for b, prompt in enumerate(PROMPTS):
        print(f"{prompt}   minimum Bayes risk: {texts[b][picked[b]]!r}")
        for i in order[b]:
            print(f"    {of_prompt[b, i]:7.3f}  {texts[b][i]}")
    return {"texts": texts, "scores": of_prompt, "order": order, "picked": picked}


if __name__ == "__main__":
    main()
