"""One-to-many translation: compares K hypotheses of a language model with one model, on verses or your own text."""
