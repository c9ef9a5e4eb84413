"""Code that the experiments with a language model share.

Reading order: `options`, `groups`, `decoders`, `processes`, `config`; `task`, `perception`, `training`, `decoding`;
`experiment`, `figures`, `page`. The two captioning experiments also share `captioning`.
"""
