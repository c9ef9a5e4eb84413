"""What the experiments that adapt a language model share: methods, decoders, training, answers, figures, page, study.

Reading order: `config`, `task`, `training`, `answers`, `figures`, `page`, `study`. An experiment adds a config of its
own data, a function that loads its `Task`, and the scores of its answers; `study.main` does the rest.
"""
