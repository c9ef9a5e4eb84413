"""Decoding: `generate` runs every hypothesis on every prompt; decoders say how the next token is chosen.

    tokens = mcl.generate(model, params, adapters, {"tokens": tokens, "mask": mask}, BeamSearch(num_beams=4),
                          max_new_tokens=32, eos_token_id=2)                                            # [K, B, n, T]

`decode` returns scores and lengths too. `log_likelihoods` has every hypothesis read every answer, and `mixture_scores`
ranks them by it; `mcl_jax.metrics.minimum_bayes_risk` picks one without a model.
"""

from mcl_jax.generation.decoders import BeamSearch, Decoder, DiverseBeamSearch, Greedy, Sampling
from mcl_jax.generation.generate import Generation, decode, generate
from mcl_jax.generation.ranking import log_likelihoods, mixture_scores

__all__ = [
    "BeamSearch",
    "Decoder",
    "DiverseBeamSearch",
    "Generation",
    "Greedy",
    "Sampling",
    "decode",
    "generate",
    "log_likelihoods",
    "mixture_scores",
]
