"""Base models: plain functional Flax Linen modules that know nothing about LoRA or hypotheses."""

from mcl_jax.models.gpt_neo import GPTNeo, GPTNeoConfig

__all__ = ["GPTNeo", "GPTNeoConfig"]
