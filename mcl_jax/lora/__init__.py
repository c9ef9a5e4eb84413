"""Low-rank adapters for Flax modules that know nothing about them.

A method interceptor of Flax Linen (`mcl_jax.bases` does the same for Flax NNX) changes every targeted linear layer to

    y = W x + (α/r) · B A x

and keeps A and B in their own variable collection, `"lora"`, under the path of the layer:

    params                               lora (one hypothesis)
    └── block                            └── block
        └── q_proj                           └── q_proj
            ├── kernel [in, out]                 ├── a [in, r]
            └── bias   [out]                     └── b [r, out]

A leaf with the name of a parameter is a trained copy, which takes that parameter's place; see `copies`.

With `dora`, a leaf `magnitude` [out] stands beside them, see `dora`.

With `shared_rank`, `shared_a` and `shared_b` beside them are further components, which all K hypotheses have in common;
of all leaves, they alone have no axis K when hypotheses are stacked.

`a` has the contracted axes of the kernel and ends in r; `b` has the axes of the kernel with r in place of the
contracted ones. This rule holds for `nn.Dense`, `nn.DenseGeneral` and `nn.Einsum`, and for the leading axis that
`nn.scan` adds. Layers of NNX have the same. A table of embeddings, `nn.Embed`, is adapted where its rows are looked up,
E[i] + (α/r) · (A B)[i], and not where it is the output layer too. Source: Hu et al., LoRA (arXiv 2106.09685);
rank-stabilised scaling α/√r: arXiv 2312.03732.
"""

from mcl_jax.lora.adapted import Adapted
from mcl_jax.lora.config import SHARED, SHARED_A, SHARED_B, LoraConfig, matches, with_layer_ranks, with_layer_scales
from mcl_jax.lora.copies import split_copies
from mcl_jax.lora.dora import MAGNITUDE, start_of_m, with_length
from mcl_jax.lora.intercept import ADAPTABLE, intercept
from mcl_jax.lora.kernels import check_kernels, sampling_delta
from mcl_jax.lora.layer import COLLECTION, AbsentAdapterError, DeltaFn, Layer, adapter_delta, dropout, variable
from mcl_jax.lora.linear import (
    KERNELS,
    LinearSpec,
    contract,
    delta,
    dense_general_spec,
    einsum_spec,
    init_a,
    merge_kernel,
    rank_axes,
)

__all__ = [
    "ADAPTABLE",
    "COLLECTION",
    "KERNELS",
    "MAGNITUDE",
    "SHARED",
    "SHARED_A",
    "SHARED_B",
    "AbsentAdapterError",
    "Adapted",
    "DeltaFn",
    "Layer",
    "LinearSpec",
    "LoraConfig",
    "adapter_delta",
    "check_kernels",
    "contract",
    "delta",
    "dense_general_spec",
    "dropout",
    "einsum_spec",
    "init_a",
    "intercept",
    "matches",
    "merge_kernel",
    "rank_axes",
    "sampling_delta",
    "split_copies",
    "start_of_m",
    "variable",
    "with_layer_ranks",
    "with_layer_scales",
    "with_length",
]
