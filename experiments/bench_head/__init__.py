"""What K hypotheses cost: time and memory of one step, for each way of computing it.

    python -m experiments.bench_head --json head.json --figure head.png          # the sizes of paper.md, section 3
    python -m experiments.bench_head --quick                                     # small sizes

Reading order: `config` (sizes) → `variants` (what is computed) → `programs` (compiled, with a first result to check) →
`measure` (check and clock) and `peak` (memory) → `report` → `__main__`.
"""
