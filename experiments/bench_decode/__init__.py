"""Tokens per second of K hypotheses decoding together, beside Hugging Face `generate` run once for each."""
