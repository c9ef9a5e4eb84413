"""What the experiments that adapt a language model share.

Reading order: `config`, `task`, `perception`, `training`, `decoding`, `figures`, `page`, `experiment`; `captioning` has
what pictures and clips have in common.
"""
