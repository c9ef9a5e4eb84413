"""Cost of K hypotheses: time and memory of one step, for several ways to compute it.

    python -m experiments.bench_head --json head.json --figure head.png          # the sizes of paper.md, section 3
    python -m experiments.bench_head --quick                                     # small sizes

Reading order: `config` (sizes) → `variants` (computations) → `programs` (compilation, and a first result to check) →
`measure` (checks and times) and `peak` (memory) → `report` → `__main__`.
"""
