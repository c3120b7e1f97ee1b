"""A few-shot network in one file: NumPy is all it needs.

    import network
    features = network.embed(pixels)        # uint8 [B, S, S, C], or float32 [B, C, S, S]

`METADATA` says what images it takes; `classify` tells classes apart of which it is shown a few.
"""

import base64
import json
import math
import zlib

import numpy as np

METADATA: dict = {}
_NODES: list = []
_WEIGHTS: dict = {}


def embed(pixels):
    """Embed images as float32 `[B, features]`: `METADATA["input"]` says uint8 or float."""
    wanted = np.uint8 if METADATA["input"] == "uint8" else np.float32
    pixels = np.asarray(pixels)
    if pixels.dtype != wanted:
        raise TypeError(f"images of {pixels.dtype} were given, {np.dtype(wanted)} is needed")
    return _run(_NODES, _WEIGHTS, pixels)


def _run(nodes, weights, images):
    values = {**weights, "images": images, "": None}
    last = {name: number for number, node in enumerate(nodes) for name in node[1]}
    last["features"] = len(nodes)
    with np.errstate(over="ignore"):
        for number, (operation, inputs, outputs, attributes) in enumerate(nodes):
            found = _OPERATIONS[operation](*[values[name] for name in inputs], **attributes)
            several = found if isinstance(found, tuple) else (found,)
            values.update(zip(outputs, several, strict=False))
            for name in inputs:  # all maps of a large batch would take gigabytes
                if last[name] == number:
                    values.pop(name, None)
    return values["features"]


def classify(support, labels, query):
    """Classes and probabilities of `query`, learnt from `support` with its `labels` `[n]`.

    All images as `embed` takes them. Gives the class of each query `[m]`, and the probabilities
    `[m, classes]` in the order of `np.unique(labels)`.
    """
    names, which = np.unique(np.asarray(labels), return_inverse=True)
    taught, asked = _normalized(embed(support)), _normalized(embed(query))
    means = np.stack([taught[which == label].mean(axis=0) for label in range(len(names))])
    if METADATA["metric"] == "cosine":
        scores = _unit(asked) @ _unit(means).T
    else:
        scores = -np.square(asked[:, None] - means[None]).sum(axis=2)
    scaled = (scores - scores.max(axis=1, keepdims=True)) / METADATA["temperature"]
    raised = np.exp(scaled)
    return names[scores.argmax(axis=1)], raised / raised.sum(axis=1, keepdims=True)


def _normalized(features):
    features = features.astype(np.float64)
    if METADATA["normalize"] == "none":
        return features
    if METADATA["normalize"] == "cl2n":
        features = features - np.asarray(METADATA["base_mean"])
    return _unit(features)


def _unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


# The operations of the graph, named and defined as ONNX has them.


def _conv(x, weight, bias=None, *, strides=None, pads=None, dilations=None, group=1, **_):
    strides, dilations = strides or [1, 1], dilations or [1, 1]
    windows = _windows(x, weight.shape[2:], strides, pads or [0, 0, 0, 0], dilations, 0)
    batch, _, high, wide = windows.shape[:4]
    out = weight.shape[0] // group
    # [B, G, C/G, H, W, k, k] -> [G, B, H, W, C/G, k, k]: one matrix product for each group.
    columns = windows.reshape(batch, group, -1, *windows.shape[2:]).transpose(1, 0, 3, 4, 2, 5, 6)
    columns = columns.reshape(group, batch * high * wide, -1)
    kernels = weight.reshape(group, out, -1).transpose(0, 2, 1)
    found = (columns @ kernels).reshape(group, batch, high, wide, out)
    found = found.transpose(1, 0, 4, 2, 3).reshape(batch, group * out, high, wide)
    return found if bias is None else found + bias[:, None, None]


def _max_pool(x, *, kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0, **_):
    strides, pads = strides or [1, 1], list(pads or [0, 0, 0, 0])
    if ceil_mode:
        pads = [*pads[:2], *_reached(x, kernel_shape, strides, pads)]
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _windows(x, kernel_shape, strides, pads, dilations or [1, 1], least).max(axis=(4, 5))


def _average_pool(
    x, *, kernel_shape, strides=None, pads=None, count_include_pad=0, ceil_mode=0, **_
):
    strides, pads = strides or [1, 1], list(pads or [0, 0, 0, 0])
    ends = _reached(x, kernel_shape, strides, pads) if ceil_mode else pads[2:]
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if count_include_pad:  # but not what lies beyond the padding
        around = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
        x, ones = np.pad(x, around), np.pad(ones, around, constant_values=1)
        ends, pads = [max(0, ends[n] - pads[2 + n]) for n in (0, 1)], [0, 0]
    total, count = (
        _windows(one, kernel_shape, strides, [*pads[:2], *ends], [1, 1], 0).sum(axis=(4, 5))
        for one in (x, ones)
    )
    return total / count


def _reached(x, kernel, strides, pads):
    """The padding at both ends up to which windows reach that begin in the image, or before it."""
    ends = []
    for n in (0, 1):
        begin = x.shape[2 + n] + pads[n]
        last = -(-(begin + pads[2 + n] - kernel[n]) // strides[n]) * strides[n]
        if last >= begin:
            last -= strides[n]
        ends.append(max(0, last + kernel[n] - begin))
    return ends


def _windows(x, kernel, strides, pads, dilations, fill):
    """`[B, C, H, W]` -> `[B, C, H', W', kernel, kernel]`, a view of the padded images."""
    if any(pads):
        around = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
        x = np.pad(x, around, constant_values=fill)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    product = np.float32(alpha) * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + np.float32(beta) * c


def _batch_norm(x, scale, bias, mean, variance, *, epsilon=1e-5, **_):
    factor = scale / np.sqrt(variance + np.float32(epsilon))
    return x * factor[:, None, None] + (bias - mean * factor)[:, None, None]


def _layer_norm(x, scale, bias=None, *, axis=-1, epsilon=1e-5, **_):
    axes = tuple(range(axis % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    found = centred / np.sqrt(variance + np.float32(epsilon)) * scale
    return found if bias is None else found + bias


def _softmax(x, *, axis=-1):
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def _erf(x):
    """NumPy has none: a table of math.erf in steps of 2^-12, linear between, right to 1e-8."""
    step = 2.0**-12
    at = np.clip(np.abs(x.astype(np.float64)), 0, 6) / step
    low = np.minimum(at.astype(np.int64), len(_ERF) - 2)
    return (np.sign(x) * (_ERF[low] + (at - low) * (_ERF[low + 1] - _ERF[low]))).astype(x.dtype)


_ERF = np.array([math.erf(n * 2.0**-12) for n in range(6 * 2**12 + 2)])


def _gelu(x, *, approximate="none"):
    if approximate == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
        return np.float32(0.5) * x * (1 + np.tanh(inner))
    return np.float32(0.5) * x * (1 + _erf(x / np.float32(math.sqrt(2))))


def _slice(x, starts, ends, axes=None, steps=None):
    where = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        where[axis] = slice(start, end if abs(end) < 2**31 - 1 or step > 0 else None, step)
    return x[tuple(where)]


def _reshape(x, shape, *, allowzero=0):
    sizes = [
        x.shape[axis] if size == 0 and not allowzero else size
        for axis, size in enumerate(shape.tolist())
    ]
    return x.reshape(sizes)


def _reduced(reduce):
    def reducing(x, axes=None, *, keepdims=1, noop_with_empty_axes=0):
        if axes is None and noop_with_empty_axes:
            return x
        over = None if axes is None else tuple(axes.tolist())
        return reduce(x, axis=over, keepdims=bool(keepdims))

    return reducing


def _shape(x, *, start=0, end=None):
    return np.array(x.shape[start:end], np.int64)


def _split(x, split=None, *, axis=0, num_outputs=None):
    if split is None:
        return tuple(np.array_split(x, num_outputs, axis=axis))
    return tuple(np.split(x, np.cumsum(split)[:-1], axis=axis))


def _pad(x, pads, value=None, axes=None, *, mode="constant"):
    axes = range(x.ndim) if axes is None else axes.tolist()
    around, half = [(0, 0)] * x.ndim, len(pads) // 2
    for place, axis in enumerate(axes):
        around[axis] = (int(pads[place]), int(pads[half + place]))
    if mode != "constant":
        return np.pad(x, around, mode=mode)
    return np.pad(x, around, constant_values=0 if value is None else value)


def _leaky_relu(x, *, alpha=0.01):
    return np.where(x < 0, np.float32(alpha) * x, x)


def _elu(x, *, alpha=1.0):
    return np.where(x < 0, np.float32(alpha) * np.expm1(np.minimum(x, 0)), x)


def _selu(x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return np.float32(gamma) * _elu(x, alpha=alpha)


def _hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    return np.clip(np.float32(alpha) * x + np.float32(beta), 0, 1)


def _sigmoid(x):
    return (1 / (1 + np.exp(-x))).astype(x.dtype)


def _clip(x, low=None, high=None):
    return x if low is None and high is None else np.clip(x, low, high)


_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: float}
_OPERATIONS = {
    "Add": np.add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda x, *, to, **_: x.astype(_TYPES[to]),
    "Clip": _clip,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "Conv": _conv,
    "Div": lambda a, b: a // b if a.dtype.kind == "i" else a / b,
    "Elu": _elu,
    "Erf": _erf,
    "Exp": np.exp,
    "Expand": lambda x, shape: x * np.ones(shape.tolist(), x.dtype),
    "Flatten": lambda x, *, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gather": lambda x, indices, *, axis=0: np.take(x, indices, axis=axis),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean(axis=(2, 3), keepdims=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x: x * _hard_sigmoid(x, alpha=1 / 6),
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "MatMul": np.matmul,
    "MaxPool": _max_pool,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pad": _pad,
    "Pow": lambda x, power: np.power(x, power).astype(x.dtype),
    "Range": lambda first, end, step: np.arange(first, end, step, dtype=first.dtype),
    "ReduceMax": _reduced(np.max),
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "Relu": lambda x: np.maximum(x, 0),
    "Reshape": _reshape,
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": np.sqrt,
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(axes.tolist())),
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Transpose": lambda x, *, perm: x.transpose(perm),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes.tolist())),
}


def _unpacked(graph, weights):
    """The graph and its weights from the text below."""
    found = json.loads(graph)
    raw = zlib.decompress(base64.b85decode(weights))
    arrays, start = {}, 0
    for name, kind, shape in found["weights"]:
        dtype = np.dtype(kind).newbyteorder("<")
        stop = start + math.prod(shape) * dtype.itemsize
        native = np.frombuffer(raw[start:stop], dtype).reshape(shape).astype(np.dtype(kind))
        arrays[name], start = native, stop
    return found["metadata"], found["nodes"], arrays


def _main():
    about = METADATA["about"]
    size, channels = METADATA["image_size"], METADATA["channels"]
    print(f"{size} x {size} pixels of {channels} channels -> {METADATA['features']} features")
    print(f"{about['params']:,} params, {about['macs']:,} multiply-accumulates")
    for name, one in about["accuracy"].items():
        print(f"{name}: {one['accuracy']:.2f} +- {one['ci95']:.2f} %")
    taken = METADATA["input"]
    shape = (1, size, size, channels) if taken == "uint8" else (1, channels, size, size)
    black = np.zeros(shape, "uint8" if taken == "uint8" else "float32")
    print("features of a black image:", embed(black)[0, :4], "...")


# What follows is written by sseg-nase task=export.
