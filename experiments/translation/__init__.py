"""One-to-many translation: K hypotheses of a language model against one, on verses or on anyone's text."""
