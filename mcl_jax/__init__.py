"""LoRA-MCL in JAX: K low-rank hypotheses of one frozen language model, trained so that each learns a mode of the data.

Reading order: `lora` and `hypotheses` add stacked adapters to any Linen module (`independence` checks the module).
`likelihood`, `objectives`, `training` and `parallel` train them. `checkpoint` (with `stored_state`) and `run` (with
`console` and `json_io`) store a training. For language models, read `models`, then `generation` and `interop`. `data`
feeds them, and `metrics` scores their answers. `moe` and `augmentation` are baselines. `options` and `token_ids` check
the input of users and files.

Axes, in this order: K hypotheses · B batch · T time · D model · H heads · V vocabulary · E experts · R rank · L layers.
A `loss` is minimised; a `log_likelihood` (nats) is maximised.
"""

from mcl_jax import augmentation, generation, interop, models, moe, objectives, parallel
from mcl_jax.generation import generate
from mcl_jax.hypotheses import Hypotheses
from mcl_jax.likelihood import chunked_sequence_log_likelihood, sequence_log_likelihood
from mcl_jax.lora import LoraConfig
from mcl_jax.moe import MixtureOfExperts
from mcl_jax.training import TrainState, make_train_step

__all__ = [
    "Hypotheses",
    "LoraConfig",
    "MixtureOfExperts",
    "TrainState",
    "augmentation",
    "chunked_sequence_log_likelihood",
    "generate",
    "generation",
    "interop",
    "make_train_step",
    "models",
    "moe",
    "objectives",
    "parallel",
    "sequence_log_likelihood",
]
