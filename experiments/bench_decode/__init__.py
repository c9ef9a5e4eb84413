"""Decoding speed of K hypotheses together, compared with one Hugging Face `generate` call per hypothesis."""
