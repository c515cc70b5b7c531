"""The generator for other programs: its weights folded, as a file of their own or as an ONNX graph.

Folded means that what is constant once training is over has been carried out: w / sigma is a weight, and batch norm
with its standing statistics a scale and a shift,

    gain (x - mean) / sqrt(var + eps) + bias = scale x + shift        scale = gain / sqrt(var + eps)

Both files are NCHW inside, as their readers are. The names and shapes of the folded weights, N the path of a layer in
the generator (nn.py), r = 8, 16, ... the resolutions up to the images' own, K the classes:

    input.w, .b                           (16 C, latent), (16 C,): to (C, 4, 4)
    up{r}.norm1, .norm2: N.scale, .shift  (K, C), or (C,) without classes; a ReLU follows
    up{r}.conv1, .conv2: N.w, .b          (O, C, 3, 3), (O,); before conv1 each pixel is repeated 2x2
    up{r}.shortcut.w, .b                  (O, C, 1, 1), (O,): from the block's input, then repeated 2x2
    attention.query, .key, .value: N.w    (d, C, 1, 1), after the block of its resolution
    attention.output.w, .gamma            (C, C/2 or C/8, 1, 1), ()
    norm.scale, .shift                    (C,); a ReLU follows
    output.w, .b                          (channels, C, 3, 3), (channels,): then tanh
"""

import json
from time import perf_counter

import numpy as np

from minisagan import __version__, cpu, nn
from minisagan.autograd import Tensor, no_tape
from minisagan.data import to_uint8
from minisagan.errors import Fault, UsageError
from minisagan.module import Module
from minisagan.ops.batch_norm import EPS
from minisagan.sampling import generate, in_turn, latents
from minisagan.together import spectral_weights

OPSET, IR_VERSION = 13, 7  # of December 2020: softmax over any one axis is the newest thing that the graph needs
TOLERANCE = 1e-4  # between our images and the graph's, of [-1, 1]; one grey level for uint8
CHECKED = 64  # images that they are compared on


def folded(generator):
    """The weights of a generator in evaluation mode, folded: name -> float32 array, as the table above has them."""
    own = generator.parameters()  # spectral_weights lays what it makes beside them
    with no_tape(), spectral_weights(generator):
        weights = dict(_folded(generator, "", own))
    for name in ("input.w", "input.b"):  # its outputs are (4, 4, C), and are to be (C, 4, 4)
        w = weights[name]
        weights[name] = np.moveaxis(w.reshape(16, -1, *w.shape[1:]), 1, 0).reshape(w.shape)
    return {name: np.asarray(w, np.float32, order="C") for name, w in weights.items()}


def _folded(module, path, own):
    for name, child in vars(module).items():
        at = path + name
        if isinstance(child, nn.BatchNorm):
            scale = child.gain.data / np.sqrt(child.var + EPS)
            yield f"{at}.scale", scale
            yield f"{at}.shift", child.bias.data - scale * child.mean
        elif isinstance(child, nn.Layer):
            yield f"{at}.w", np.moveaxis(child.weight().data, (-1, -2), (0, 1))  # (..., C, O) -> (O, C, ...)
            if child.b is not None:
                yield f"{at}.b", child.b.data
        elif isinstance(child, Module):
            yield from _folded(child, f"{at}.", own)
        elif isinstance(child, Tensor) and at in own:
            yield at, child.data


def metadata(config, about, file):
    """What both files say of themselves, name -> text: the classes' names, in the order of their labels; the side of
    the data's images in pixels; the run's configuration; the checkpoint; our version."""
    return {
        "classes": json.dumps(about["classes"] if config.architecture.classes else []),
        "image_size": str(about["image_size"]),
        "config": json.dumps(config.to_dict()),
        "checkpoint": file.name,
        "minisagan": __version__,
    }


def to_onnx(generator, about, size=None):
    """The generator as a serialised ONNX graph (bytes), `about` its metadata.

    z (N, latent) float32 and, of a conditional generator, labels (N,) int64 -> images (N, S, S, channels) float32 in
    (-1, 1); or with `size`, cropped to it, (N, size, size, channels) uint8. UsageError without the extra `onnx`.
    """
    onnx, _ = _packages()
    helper, kinds = onnx.helper, onnx.TensorProto
    arch = generator.arch
    graph = _Graph(folded(generator), helper)
    images = graph.images(arch, size)
    inputs = [helper.make_tensor_value_info("z", kinds.FLOAT, ["N", arch.latent])]
    if arch.classes:
        inputs.append(helper.make_tensor_value_info("labels", kinds.INT64, ["N"]))
    kind, side = (kinds.UINT8, size) if size else (kinds.FLOAT, arch.size)
    output = helper.make_tensor_value_info(images, kind, ["N", side, side, arch.channels])
    tensors = [onnx.numpy_helper.from_array(x, name) for name, x in graph.constants.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "generator", inputs, [output], tensors),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="minisagan", producer_version=__version__,
    )
    helper.set_model_props(model, about)
    return model.SerializeToString()


class _Graph:
    """The nodes and constants of a graph in the making. Its methods are the layers of nn.py, by their paths."""

    def __init__(self, weights, helper):
        self.nodes, self.constants, self.helper = [], dict(weights), helper

    def add(self, op, *inputs, out=None, **attributes):
        """A node on inputs, each a name or an array; the name of its output."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        out = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(op, names, [out], **attributes))
        return out

    def constant(self, x):
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(x)
        return name

    def images(self, arch, size):
        x = self.add("Gemm", "z", "input.w", "input.b", transB=1)  # (N, 16 C)
        x = self.add("Reshape", x, np.array([0, -1, 4, 4]))  # (N, C, 4, 4)
        r = 4
        while r < arch.size:
            r *= 2
            x = self.up_block(f"up{r}", x)  # (N, O, r, r)
            if r == arch.attention:
                x = self.attention("attention", x, r, arch.attention_form)
        y = self.add("Tanh", self.conv("output", self.norm("norm", x)))  # (N, channels, S, S)
        nhwc = {"perm": [0, 2, 3, 1], "out": "images"}
        if not size:
            return self.add("Transpose", y, **nhwc)
        start = (arch.size - size) // 2
        y = self.add("Slice", y, np.array([start] * 2), np.array([start + size] * 2), np.array([2, 3]))
        y = self.add("Mul", self.add("Add", y, np.float32(1)), np.float32(127.5))
        y = self.add("Round", self.add("Clip", y, np.float32(0), np.float32(255)))
        y = self.add("Cast", y, to=self.helper.np_dtype_to_tensor_dtype(np.dtype(np.uint8)))
        return self.add("Transpose", y, **nhwc)

    def up_block(self, path, x):
        h = self.conv(f"{path}.conv1", self.upsample(self.norm(f"{path}.norm1", x)))
        h = self.conv(f"{path}.conv2", self.norm(f"{path}.norm2", h))
        return self.add("Add", h, self.upsample(self.conv(f"{path}.shortcut", x)))

    def norm(self, path, x):
        """relu(scale x + shift), scale and shift those of the labels if there are some for each class."""
        for op, name in (("Mul", f"{path}.scale"), ("Add", f"{path}.shift")):
            if self.constants[name].ndim == 2:
                name = self.add("Gather", name, "labels")  # (N, C)
            x = self.add(op, x, self.add("Unsqueeze", name, np.array([-2, -1])))  # (N, C, 1, 1) or (C, 1, 1)
        return self.add("Relu", x)

    def conv(self, path, x):
        w, b = f"{path}.w", f"{path}.b"
        kernel = self.constants[w].shape[2:]
        inputs = (x, w, b) if b in self.constants else (x, w)
        return self.add("Conv", *inputs, kernel_shape=kernel, pads=[k // 2 for k in kernel] * 2)

    def upsample(self, x):
        """Each pixel repeated 2x2."""
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.add("Resize", x, "", np.array([1, 1, 2, 2], np.float32), **how)

    def attention(self, path, x, side, form):
        query, key, value = (self.conv(f"{path}.{name}", x) for name in ("query", "key", "value"))
        if form == "official":
            key, value = (self.add("MaxPool", t, kernel_shape=[2, 2], strides=[2, 2]) for t in (key, value))
        query, key, value = (self.add("Reshape", t, np.array([0, 0, -1])) for t in (query, key, value))
        query, value = (self.add("Transpose", t, perm=[0, 2, 1]) for t in (query, value))  # (N, J, d), (N, I, e)
        beta = self.add("Softmax", self.add("MatMul", query, key), axis=-1)  # (N, J, I)
        mixed = self.add("Transpose", self.add("MatMul", beta, value), perm=[0, 2, 1])  # (N, e, J)
        o = self.conv(f"{path}.output", self.add("Reshape", mixed, np.array([0, 0, side, side])))  # (N, C, r, r)
        return self.add("Add", x, self.add("Mul", o, f"{path}.gamma"))


def compare(generator, model, size=None):
    """Both draw CHECKED images: (largest difference, our seconds, onnxruntime's), on as many threads.

    `model` and `size` are to_onnx's. Fault if they differ by more than TOLERANCE, or than one of uint8's grey levels.
    """
    _, runtime = _packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = cpu.threads()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    z, classes = latents(generator, CHECKED, 0), generator.arch.classes
    labels = in_turn(range(classes) or None, CHECKED)
    given = {"z": z} | ({"labels": labels} if classes else {})
    ours, seconds = _timed(lambda: generate(generator, z, labels, CHECKED))
    (theirs,), their_seconds = _timed(lambda: session.run(None, given))
    if size:
        ours = to_uint8(ours, size)
    difference = abs(ours - theirs.astype(np.float32)).max()
    if not difference <= (1 if size else TOLERANCE):  # True for NaN, too
        raise Fault(f"the ONNX graph's images differ from ours by {difference:.2g}: not written; please report it")
    return float(difference), seconds, their_seconds


def _timed(call):
    """What it returns, and the seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        start = perf_counter()
        result = call()
        seconds.append(perf_counter() - start)
    return result, min(seconds)


def _packages():
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f"a graph needs onnx and onnxruntime ({error}): pip install onnx onnxruntime, or take --to safetensors"
        ) from error
    return onnx, onnxruntime
