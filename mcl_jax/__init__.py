"""LoRA-MCL in JAX: K low-rank hypotheses of one frozen language model, trained so that each learns a mode of the data.

Reading order: `lora`, `bases` and `hypotheses` (stacked adapters on any module of Linen or NNX, over `stacking` and
`independence`), `likelihood`, `objectives`, `sharding`, `mesh`, `packing`, `update` (over `train_state` and
`kept_winners`), `training` (over `over_mesh`), `parallel`; `checkpoint` (over `stored_state`), `run` (over `console`
and `json_io`) and `fitting`, which has `fit` (over `loss_guard`). Language models: `tokenization`, `models`,
`language_model`, then `generation` (over `selector`) and `interop`; `data` makes their batches, `metrics` scores their
answers, and `answer` is the command that uses what was trained. `averaging` merges hypotheses. `moe` and `augmentation`
are baselines. `options` and `token_ids` check input from users and files.

Axes, in this order: K hypotheses · B batch · T time · D model · H heads · V vocabulary · E experts · R rank · L layers.
A `loss` is minimised, a `log_likelihood` (nats) is maximised.

A core install is enough for everything that is imported here. `answer`, `checkpoint`, `data`, `fit`, `metrics` and
`run` are loaded when they are first used. If a part needs another library, its error names the command that installs
it, see `extras`.
"""

import importlib
from typing import TYPE_CHECKING

from mcl_jax import (
    augmentation,
    generation,
    interop,
    language_model,
    models,
    moe,
    objectives,
    packing,
    parallel,
    selector,
)
from mcl_jax.generation import generate
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.likelihood import chunked_sequence_log_likelihood, sequence_log_likelihood
from mcl_jax.lora import LoraConfig
from mcl_jax.moe import MixtureOfExperts
from mcl_jax.soft_prompts import SoftPrompts
from mcl_jax.train_state import TrainState
from mcl_jax.training import make_train_step

if TYPE_CHECKING:
    from mcl_jax import answer, checkpoint, data, metrics, run
    from mcl_jax.fitting import fit

LOADED_WHEN_USED = ("answer", "checkpoint", "data", "metrics", "run")

__all__ = [
    "Hypotheses",
    "LoraConfig",
    "MixtureOfExperts",
    "SoftPrompts",
    "TrainState",
    "answer",
    "augmentation",
    "checkpoint",
    "chunked_sequence_log_likelihood",
    "data",
    "fit",
    "generate",
    "generation",
    "interop",
    "language_model",
    "make_train_step",
    "metrics",
    "models",
    "moe",
    "objectives",
    "packing",
    "parallel",
    "run",
    "selector",
    "sequence_log_likelihood",
]


def __getattr__(name: str):
    if name in LOADED_WHEN_USED:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "fit":
        return importlib.import_module(f"{__name__}.fitting").fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
