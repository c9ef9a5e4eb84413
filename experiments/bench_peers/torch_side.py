"""The side of torch and PEFT, for a Python with torch, transformers and peft (this library is not needed).

    python torch_side.py BASE ADAPTERS

reads one JSON object per line and answers each with one line. The requests, by their entry "do":

    decode  {"tokens", "mask", "new_tokens", "num_beams", "hypotheses"} -> {"seconds", "tokens"}: `generate` once per
            hypothesis with its adapter. This is what a request without "do" means.
    begin   {"cell", "way", "hypotheses", "tokens", "learning_rate"} -> {"losses"}: starts a training under the name
            `cell` from the adapters on disk, and takes two steps; only the first one changes the adapters
    step    {"cell"} -> {"seconds", "loss"}: takes one more step, which computes everything but changes nothing
    about   {} -> {"versions", "threads"}
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(base: str, adapters: str):
    """Loads the base with the adapters of every hypothesis."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folders = sorted(Path(adapters).iterdir(), key=lambda folder: int(folder.name.removeprefix("lora")))
    model = PeftModel.from_pretrained(model, folders[0], adapter_name="0", is_trainable=True)
    for k, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(k), is_trainable=True)
    model.generation_config.eos_token_id = None  # nothing ends early
    return model.eval().to(DEVICE)


@torch.no_grad()
def decode(model, asked: dict) -> dict:
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


class Training:
    """Winner-takes-all training of K adapters, with log p per token; every token but the first is a target.

    Args:
      model: the base with all adapters.
      start: tensors of the adapters to begin with, by name.
      asked: the request.
    """

    def __init__(self, model, start: dict, asked: dict):
        self.model, self.num_hypotheses = model, asked["hypotheses"]
        self.step = {"graphs": self.graphs, "winners": self.winners}[asked["way"]]
        self.tokens = torch.tensor(asked["tokens"], device=DEVICE)
        names = [f".{k}.weight" for k in range(self.num_hypotheses)]
        self.trained = [p for name, p in model.named_parameters() if "lora_" in name and name.endswith(tuple(names))]
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in start:
                    p.copy_(start[name])
        self.optimizer = torch.optim.AdamW(self.trained, lr=asked["learning_rate"], weight_decay=0.01)

    def first_losses(self) -> list[float]:
        """Returns the losses of a step with the learning rate, and of one after it with the rate 0."""
        before = self.step()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        return [before, self.step()]

    def loss_of(self, k: int, tokens):
        """Computes -log p per token of each example [B] under hypothesis k."""
        self.model.set_adapter(str(k))
        logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
        return nats.view(len(tokens), -1).mean(1)

    def learn(self, loss) -> None:
        """Adds the gradient of a loss."""
        for p in self.trained:  # set_adapter switches this off for all adapters but one
            p.requires_grad_(True)
        loss.backward()

    def graphs(self) -> float:
        """Takes a step through the least of K losses, whose graphs are all kept."""
        losses = torch.stack([self.loss_of(k, self.tokens) for k in range(self.num_hypotheses)])
        loss = losses.min(0).values.mean()
        self.learn(loss)
        self.update()
        return loss.item()

    def winners(self) -> float:
        """Takes a step whose graphs hold the winner of each example only."""
        with torch.no_grad():
            losses = torch.stack([self.loss_of(k, self.tokens) for k in range(self.num_hypotheses)])
        least, winner = losses.min(0)
        for k in winner.unique().tolist():
            self.learn(self.loss_of(k, self.tokens[winner == k]).sum() / len(self.tokens))
        self.update()
        return least.mean().item()

    def update(self) -> None:
        """Updates the adapters."""
        self.optimizer.step()
        self.optimizer.zero_grad()


class Server:
    """Answers requests about one model."""

    def __init__(self, base: str, adapters: str):
        warnings.simplefilter("ignore", FutureWarning)  # of what peft calls
        transformers.utils.logging.disable_progress_bar()
        if hasattr(os, "sched_getaffinity"):
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = load(base, adapters)
        self.start = {n: p.detach().clone() for n, p in self.model.named_parameters() if "lora_" in n}
        self.trainings = {}

    def begin(self, asked: dict) -> dict:
        """Begins to train, and takes two steps."""
        self.trainings[asked["cell"]] = training = Training(self.model, self.start, asked)
        return {"losses": training.first_losses()}

    def step(self, asked: dict) -> dict:
        """Takes one more step."""
        started = time.perf_counter()
        loss = self.trainings[asked["cell"]].step()
        return {"seconds": time.perf_counter() - started, "loss": loss}

    def decode(self, asked: dict) -> dict:
        """Decodes."""
        return decode(self.model, asked)

    def about(self, asked: dict) -> dict:
        """Names versions and threads."""
        versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
        return {"versions": versions, "threads": torch.get_num_threads()}

    def answer(self, asked: dict) -> dict:
        """Answers a request."""
        return getattr(self, asked.get("do", "decode"))(asked)


if __name__ == "__main__":
    server = Server(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), flush=True)
