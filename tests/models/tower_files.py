"""A tiny EfficientNet-Lite with random weights under the published names, and files in torch's old format."""

import pickle

import numpy as np

from mcl_jax.models.efficientnet_lite import EfficientNetLiteConfig
from mcl_jax.models.torch_file import MAGIC, PROTOCOL

MAKE_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def inner(value):
    """The opcodes of a value in a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def tensor_opcodes(key, shape, strides, *, offset=0, count=None, kind=b"Float"):
    """The opcodes of a tensor as torch writes them."""
    count = int(np.prod(shape)) if count is None else count
    storage = b"(" + inner("storage") + b"ctorch\n" + kind + b"Storage\n" + inner(key) + inner("cpu") + inner(count)
    order = b"ccollections\nOrderedDict\n)R"
    view = storage + b"NtQ" + inner(offset) + inner(shape) + inner(strides) + inner(False) + order
    return MAKE_TENSOR + b"(" + view + b"tR"


def file_bytes(tensors, storages, *, magic=MAGIC, order=None, body=None):
    """A file of {name: opcodes} and {key: array}, or with another pickle as its `body`."""
    state = inner("_metadata") + b"}" + inner("") + b"}s"
    if body is None:
        items = b"".join(inner(name) + opcodes for name, opcodes in tensors.items())
        body = b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u}" + state + b"sb."
    sizes = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    numbers = (len(array).to_bytes(8, "little") + array.tobytes() for array in storages.values())
    head = b"".join(pickle.dumps(part, 2) for part in (magic, PROTOCOL, sizes))
    return head + body + pickle.dumps(list(storages) if order is None else order, 2) + b"".join(numbers)


def tower_file(file, tensors):
    """Writes tensors as torch does, each with a storage of its own."""
    storages = {str(i): np.asarray(x, "<f4").reshape(-1) for i, x in enumerate(tensors.values())}
    strides = lambda x: tuple(step // x.itemsize for step in np.ascontiguousarray(x).strides[: x.ndim])
    opcodes = {
        name: tensor_opcodes(key, tuple(map(int, np.shape(x))), strides(np.asarray(x)))
        for key, (name, x) in zip(storages, tensors.items(), strict=True)
    }
    file.write_bytes(file_bytes(opcodes, storages))
    return file


# From 27 pixels to 14, 14, 7 and 4: the strides of 2 pad by 2, 3 and 2. The last block of the second stage is added.
STAGES = ((3, 1, 1, 7, 1), (5, 2, 3, 11, 2), (3, 2, 2, 13, 1))
CONFIG = EfficientNetLiteConfig(image_size=27, stem_size=5, head_size=17, num_classes=19, stages=STAGES)
LAYERS = {  # (output channels, input channels of each, size of the kernel) by published name
    "_conv_stem": (5, 3, 3),
    "_blocks.0._depthwise_conv": (5, 1, 3),
    "_blocks.0._project_conv": (7, 5, 1),
    "_blocks.1._expand_conv": (21, 7, 1),
    "_blocks.1._depthwise_conv": (21, 1, 5),
    "_blocks.1._project_conv": (11, 21, 1),
    "_blocks.2._expand_conv": (33, 11, 1),
    "_blocks.2._depthwise_conv": (33, 1, 5),
    "_blocks.2._project_conv": (11, 33, 1),
    "_blocks.3._expand_conv": (22, 11, 1),
    "_blocks.3._depthwise_conv": (22, 1, 3),
    "_blocks.3._project_conv": (13, 22, 1),
    "_conv_head": (17, 13, 1),
}
NORMS = {"_conv_stem": "_bn0", "_conv_head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def norm_of(layer):
    """The published name of a layer's batch norm."""
    *block, own = layer.rsplit(".", 1)
    return ".".join([*block, NORMS[own if not block else own.strip("_").removesuffix("_conv")]])


def published(seed=0):
    """Random tensors under the published names."""
    rng, tensors = np.random.default_rng(seed), {}
    for layer, (outputs, inputs, k) in LAYERS.items():
        tensors[f"{layer}.weight"] = rng.normal(0, (inputs * k * k) ** -0.5, (outputs, inputs, k, k))
        tensors[f"{norm_of(layer)}.weight"] = rng.uniform(0.5, 2, outputs)
        tensors[f"{norm_of(layer)}.bias"] = rng.normal(0.5, 1, outputs)
        tensors[f"{norm_of(layer)}.running_mean"] = rng.normal(0, 1, outputs)
        tensors[f"{norm_of(layer)}.running_var"] = rng.uniform(0, 3, outputs) * (rng.random(outputs) > 0.2)
        tensors[f"{norm_of(layer)}.num_batches_tracked"] = np.array(0)
    return tensors | {"_fc.weight": rng.normal(0, 1, (19, 17)), "_fc.bias": rng.normal(0, 1, 19)}
