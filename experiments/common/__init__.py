"""What the experiments that adapt a language model share.

Reading order: `options`, `groups`, `config`; `task`, `perception`, `training`, `decoding`; `experiment`, `figures`,
`page`. `captioning` has what pictures and clips have in common.
"""
