"""Fine-tune a language model K ways: `python examples/fine_tune.py FOLDER`, or `--tiny` for a random model of seconds.

FOLDER is a Hugging Face folder (GPT-2, GPT-Neo, Llama, Mistral, Qwen, Gemma, Phi or SmolLM3). The data are English
words with two right answers, one in French and one in Spanish. Each of the two hypotheses takes a language, though
nothing names them.
With `--workdir DIR` the same training runs through `mcl.fit`: it logs, saves checkpoints, and resumes when it is
started again. With `--out DIR` the adapters are saved for PEFT.
"""

import argparse
import tempfile

import jax
import numpy as np
import optax
import tiny_llama
import words

import mcl_jax as mcl


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Trains the adapters, and prints the answers of each hypothesis."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="Hugging Face folder of the base model")
    parser.add_argument("--tiny", action="store_true", help="make a tiny random Llama and use it as the base")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workdir", help="train through mcl.fit in this run directory")
    parser.add_argument("--out", help="save the adapters here as PEFT folders lora0, lora1")
    options = parser.parse_args(argv)
    if options.tiny == bool(options.folder):
        parser.error("give either FOLDER or --tiny")
    if options.folder:
        return fine_tune(options.folder, options)
    with tempfile.TemporaryDirectory() as folder:
        return fine_tune(tiny_llama.make(folder, words.PROMPTS + words.ANSWERS), options)


def fine_tune(folder, options: argparse.Namespace) -> dict[str, object]:
    """From a folder to trained adapters and K answers."""
    module, params, tokenizer = mcl.models.from_pretrained(folder)
    model = mcl.Hypotheses(module, mcl.LoraConfig(rank=8, alpha=8, targets=mcl.models.lora_targets(module)))
    data = mcl.language_model.encode(tokenizer, words.PROMPTS, words.ANSWERS, max_length=16)
    adapters = model.init(jax.random.key(0), params, data["tokens"][:1], num_hypotheses=2)

    def batch_of(step: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng(step).choice(len(words.PROMPTS), 8, replace=False)
        return {name: values[rows] for name, values in data.items()}

    objective = mcl.objectives.balanced_wta()  # evens out the win rates, so that no hypothesis wins everything
    learning_rate = 5e-3 if options.tiny else 1e-3  # a random base needs larger steps than a trained one
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate))
    log_likelihood = mcl.language_model.log_likelihood_fn(model)
    step = mcl.make_train_step(log_likelihood, objective, optimizer, backward="winner")
    state = mcl.TrainState.create(
        params=params, adapters=adapters, optimizer=optimizer, rng=jax.random.key(1), objective=objective
    )

    if options.workdir:
        fitted = mcl.fit(
            step,
            state,
            batch_of,
            steps=options.steps,
            workdir=options.workdir,
            evaluate=lambda state: {"eval_loss": loss(model, state, data)},
            eval_every=50,
        )
        state = fitted.state
    else:
        for i in range(options.steps):
            state, _ = step(state, batch_of(i))
    print(f"loss {loss(model, state, data):.3f} nats per token")

    # Each hypothesis answers each prompt: tokens [K, B, n, T].
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # some tokenizers have no padding token
    prompts = tokenizer(words.PROMPTS[::2][:4], padding=True, padding_side="left", return_tensors="np")
    end = tokenizer.eos_token_id
    answers = mcl.generate(model, params, state.adapters, prompts, max_new_tokens=8, eos_token_id=end)
    texts = [tokenizer.batch_decode(tokens, skip_special_tokens=True) for tokens in np.asarray(answers)[:, :, 0]]
    for prompt, *of_hypotheses in zip(words.PROMPTS[::2], *texts, strict=False):
        print(prompt, " | ".join(text.strip() for text in of_hypotheses))
    if options.out:
        mcl.interop.save_peft(options.out, model, state.adapters)
    return {"state": state, "answers": texts, "loss": loss(model, state, data)}


def loss(model: mcl.Hypotheses, state: mcl.TrainState, batch: dict[str, np.ndarray]) -> float:
    """Winner-takes-all loss in nats per token, mean over answers."""
    log_p, tokens = mcl.language_model.evaluate(model, state.params, state.adapters, [batch])  # [K, N], [N]
    return float((-log_p.max(0) / tokens).mean())


if __name__ == "__main__":
    main()
