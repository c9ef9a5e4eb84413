"""The same model, adapters and batches under this library and under torch with PEFT, in turns.

    make bench-peers                      # an environment with both; an estimated 20 minutes on two idle cores
    make bench-peers ARGS="--quick"       # small sizes, to see that everything runs

Reading order: `config` (sizes, ways and cells) → `sides` (one process for each library) → `ours` and `torch_side` (what
the two processes run) → `measure` (equality, times in turns, memory) → `report` → `__main__`.
"""
