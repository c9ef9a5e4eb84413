"""Decoding: `generate` runs every hypothesis on every prompt; a decoder chooses the next token.

    tokens = mcl.generate(model, params, adapters, {"tokens": tokens, "mask": mask}, BeamSearch(num_beams=4),
                          max_new_tokens=32, eos_token_id=2)                                            # [K, B, n, T]

`decode` also returns scores and lengths. With a selector (`mcl_jax.selector`), it decodes each prompt under its
likeliest hypotheses only; a selector reads `prompt_features`. `log_likelihoods` scores every answer under every
hypothesis, and `mixture_scores` ranks the answers by these; `mcl_jax.metrics.minimum_bayes_risk` picks an answer
without a model. `Defaults` reads the generation_config.json of a model folder.
"""

from mcl_jax.generation.choosing import prompt_features
from mcl_jax.generation.decoders import BeamSearch, Decoder, DiverseBeamSearch, Greedy, Sampling
from mcl_jax.generation.defaults import Defaults
from mcl_jax.generation.generate import decode, generate, lower_decode
from mcl_jax.generation.limits import Generation
from mcl_jax.generation.ranking import log_likelihoods, mixture_scores
from mcl_jax.generation.stopping import text_of

__all__ = [
    "BeamSearch",
    "Decoder",
    "Defaults",
    "DiverseBeamSearch",
    "Generation",
    "Greedy",
    "Sampling",
    "decode",
    "generate",
    "log_likelihoods",
    "lower_decode",
    "mixture_scores",
    "prompt_features",
    "text_of",
]
