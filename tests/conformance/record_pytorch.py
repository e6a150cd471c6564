"""Records PyTorch's batch norm in float64 on the CPU, forward and by autograd.

Shapes and options of the cases `opinfo_*` and `module_*` are those of PyTorch's own tests
(torch/testing/_internal: sample_inputs_batch_norm, module_inputs_torch_nn_BatchNorm1d, 2d, 3d); its empty tensors are
left out. The values are ours, from fixed seeds.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from common import Recording, batch, seeded, stored, vectors

recording = Recording("pytorch", f"PyTorch {torch.__version__.split('+')[0]}")

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky-relu:0.2": partial(F.leaky_relu, negative_slope=0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
MODULES = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}


def double(tensor):
    return None if tensor is None else tensor.double()


def channels_second(tensor, axis):
    """A view of a stored array as PyTorch indexes it."""
    return tensor.movedim(axis, 1) if tensor.dim() > 1 else tensor


def record(name, op, shape, *, axis=1, dtype="f32", eps=1e-5, momentum=0.1, affine=True, bias=None, tracked=True,
           functional=False, activation="none", residual=False, batches=0, values=None, note=None):
    """`momentum=None` is the cumulative average. `functional` has no count of batches. Where
    there is a ReLU, z stays clear of its corner: rounding shall not choose the gradient's side."""
    training = op in ("forward_training", "backward")
    backward = op.startswith("backward")
    for attempt in range(100):
        rng = seeded(f"{name} {attempt}" if attempt else name)
        inputs = {"input": stored(batch(rng, shape, axis) if values is None else values(rng), dtype)}
        if residual:
            inputs["residual"] = stored(rng.normal(0, 1, shape), dtype)
        given = vectors(rng, shape[axis])
        if not affine:
            del given["weight"], given["bias"]
        elif bias is False:
            del given["bias"]
        if not tracked:
            del given["running_mean"], given["running_var"]
        elif training and not functional:
            given["num_batches_tracked"] = torch.tensor(batches)
        inputs |= given
        if backward:
            inputs["grad_output"] = stored(rng.normal(0.2, 1, shape), dtype)

        x, r = (double(inputs.get(key)) for key in ("input", "residual"))
        weight, shift = (double(inputs.get(key)) for key in ("weight", "bias"))
        leaves = {"input": x, "residual": r, "weight": weight, "bias": shift}
        leaves = {key: leaf.requires_grad_(backward) for key, leaf in leaves.items() if leaf is not None}
        mean, var = (double(inputs.get(key)) for key in ("running_mean", "running_var"))
        if functional:
            z = F.batch_norm(channels_second(x, axis), mean, var, weight, shift, training, momentum, eps)
        else:
            layer = MODULES[len(shape)](shape[axis], eps, momentum, affine, tracked, bias=affine and bias is not False)
            layer = layer.double().train(training)
            if affine:
                layer.weight = torch.nn.Parameter(weight)
                leaves["weight"] = layer.weight
            if affine and bias is not False:
                layer.bias = torch.nn.Parameter(shift)
                leaves["bias"] = layer.bias
            if tracked:
                layer.running_mean, layer.running_var = mean, var
                layer.num_batches_tracked.fill_(batches)
            z = layer(channels_second(x, axis))
            if tracked:
                mean, var = layer.running_mean, layer.running_var
        z = z.movedim(1, axis)
        z = z if r is None else z + r
        if activation not in ("relu", "leaky-relu:0.2") or z.detach().abs().min() > 1e-3:
            break
    else:
        raise AssertionError(name)
    y = ACTIVATIONS[activation](z)

    expected = {}
    if backward:
        y.backward(inputs["grad_output"].double())
        expected |= {f"grad_{key}": leaf.grad for key, leaf in leaves.items()}
    else:
        expected["output"] = y
    if training:
        none = (None,) * 4
        _, save_mean, save_invstd = torch.native_batch_norm(channels_second(x, axis), *none, True, 0.0, eps)
        expected |= {"save_mean": save_mean, "save_invstd": save_invstd}
    if op == "forward_training" and tracked:
        expected |= {"new_running_mean": mean, "new_running_var": var}
        if not functional:
            expected["new_num_batches_tracked"] = layer.num_batches_tracked
    recording.add(name, op, inputs | expected, axis=axis, dtype=dtype, eps=eps, new_weight=momentum,
                  running_variance="unbiased", activation=activation, frozen=op == "backward_frozen", note=note)


def forward_and_backward(name, shape, *, note=None, **options):
    record(f"{name}/forward", "forward_training", shape, note=note, **options)
    record(f"{name}/backward", "backward", shape, note=note, **options)


def frozen(name, shape, **options):
    record(f"{name}/inference", "inference", shape, **options)
    record(f"{name}/backward_frozen", "backward_frozen", shape, **options)


# PyTorch's own operator tests: values from -9 to 9, running statistics given, momentum and eps at odd places.
def wide(shape):
    return lambda rng: rng.uniform(-9, 9, shape)


opinfo = partial(forward_and_backward, functional=True)
opinfo("opinfo_5x5x5", (5, 5, 5), momentum=0.5, eps=0.6, values=wide((5, 5, 5)))
opinfo("opinfo_3x1", (3, 1), momentum=0.0, values=wide((3, 1)))
opinfo("opinfo_3x2x3x4", (3, 2, 3, 4), momentum=1.0, eps=0.5, values=wide((3, 2, 3, 4)),
       note="momentum is -1.0 there, which no average has; 1.0 here")
opinfo("opinfo_2x1", (2, 1), values=wide((2, 1)))
opinfo("opinfo_1x2x3_no_arguments", (1, 2, 3), affine=False, tracked=False, values=wide((1, 2, 3)))
frozen("opinfo_3x2x4_eval", (3, 2, 4), functional=True, values=wide((3, 2, 4)))
frozen("opinfo_3x2x3x4_eval", (3, 2, 3, 4), functional=True, eps=0.5, values=wide((3, 2, 3, 4)))
frozen("opinfo_2x1_eval", (2, 1), functional=True, values=wide((2, 1)))

# PyTorch's own module tests.
MODULE_TESTS = [
    ("1d_affine", (4, 10), {}),
    ("1d_3d_input", (4, 5, 3), {}),
    ("1d_affine_simple_average", (4, 10), {"eps": 1e-3, "momentum": None}),
    ("1d_not_affine", (4, 10), {"eps": 1e-3, "momentum": 0.3, "affine": False}),
    ("1d_not_tracking_stats", (4, 10), {"eps": 1e-3, "momentum": 0.3, "tracked": False}),
    ("1d_3d_input_not_affine", (4, 5, 3), {"eps": 1e-3, "momentum": 0.3, "affine": False}),
    ("1d_affine_not_bias", (4, 10), {"bias": False}),
    ("2d", (2, 3, 6, 6), {}),
    ("2d_simple_average", (2, 3, 6, 6), {"eps": 1e-3, "momentum": None}),
    ("2d_momentum", (2, 3, 6, 6), {"eps": 1e-3, "momentum": 0.8}),
    ("2d_not_affine", (2, 3, 6, 6), {"eps": 1e-3, "momentum": 0.8, "affine": False}),
    ("2d_not_tracking_stats", (2, 3, 6, 6), {"eps": 1e-3, "momentum": 0.8, "tracked": False}),
    ("2d_affine_not_bias", (2, 3, 6, 6), {"bias": False}),
    ("3d", (2, 3, 4, 4, 4), {}),
    ("3d_simple_average", (2, 3, 4, 4, 4), {"eps": 1e-3, "momentum": None}),
    ("3d_momentum", (2, 3, 4, 4, 4), {"eps": 1e-3, "momentum": 0.7}),
    ("3d_not_affine", (2, 3, 4, 4, 4), {"eps": 1e-3, "momentum": 0.7, "affine": False}),
    ("3d_not_tracking_stats", (2, 3, 4, 4, 4), {"eps": 1e-3, "momentum": 0.7, "tracked": False}),
    ("3d_affine_not_bias", (2, 3, 4, 4, 4), {"bias": False}),
]
for test, shape, options in MODULE_TESTS:
    # Without running statistics, eval normalises by the batch too: no case of its own. Momentum shows in forward only.
    forward = partial(record, f"module_{test}/forward", "forward_training", shape)
    forward(**options, batches=0 if options.get("momentum", 0.1) is not None else 3)
    if options.get("momentum", 0.1) is None:
        record(f"module_{test}_first/forward", "forward_training", shape, **options)
    elif "momentum" not in test:
        record(f"module_{test}/backward", "backward", shape, **options)
    if options.get("tracked", True) and options.get("momentum", 0.1) == 0.1:
        frozen(f"module_{test}_eval", shape, **options)

# Every activation, with and without a residual.
for activation in ACTIVATIONS:
    for residual in (False, True):
        name = f"{activation.split(':')[0]}{'_residual' if residual else ''}"
        options = {"activation": activation, "residual": residual}
        forward_and_backward(name, (2, 3, 5, 3), **options)
        frozen(name, (2, 3, 5, 3), **options)

# The short storage types; odd totals end in half a 32-bit word.
for dtype in ("f16", "bf16"):
    short = partial(forward_and_backward, dtype=dtype)
    short(dtype, (2, 4, 3, 4))
    short(f"{dtype}_odd", (3, 3, 5, 3), activation="relu")
    short(f"{dtype}_2d", (7, 5), activation="silu", residual=True)
    short(f"{dtype}_channels_last", (2, 3, 3, 5), axis=3, activation="leaky-relu:0.2", residual=True)
    frozen(dtype, (3, 3, 5, 3), dtype=dtype, activation="gelu", residual=True)

# Other places for the channels: NLC, NHWC and NDHWC, channels first.
forward_and_backward("nlc", (3, 5, 6), axis=2)
forward_and_backward("nhwc", (2, 4, 4, 8), axis=3)
forward_and_backward("nhwc_odd", (2, 3, 5, 7), axis=3, activation="relu", residual=True)
forward_and_backward("ndhwc", (2, 2, 3, 2, 5), axis=4)
forward_and_backward("feature_major", (6, 11), axis=0)
frozen("nhwc", (2, 4, 4, 8), axis=3)
frozen("nhwc_odd", (2, 3, 5, 7), axis=3, activation="relu", residual=True)

# Odd sizes: an inner of 49, primes, one channel, one position per image.
forward_and_backward("inner_49", (3, 5, 7, 7))
forward_and_backward("inner_49_one_image", (1, 3, 7, 7), residual=True, activation="relu")
forward_and_backward("odd_2d", (13, 9))
forward_and_backward("odd_3d", (5, 7, 11))
forward_and_backward("one_channel", (4, 1, 3, 5))
forward_and_backward("one_position", (5, 6, 1, 1))
forward_and_backward("one_row_wide", (1, 2, 67))
frozen("inner_49", (2, 3, 7, 7), activation="relu")
frozen("one_value", (1, 3), momentum=0.1)

# Values: a mean far from zero, a channel that is constant; a small eps (in training, PyTorch refuses 0).
forward_and_backward("far_mean", (4, 3, 8), values=lambda rng: 1000 + rng.normal(0, 1, (4, 3, 8)))
record("constant_channel/forward", "forward_training", (4, 3, 8),
       values=lambda rng: rng.normal(0, 1, (4, 3, 8)) * np.array([1.0, 0.0, 1.0])[:, None] + 0.75)
forward_and_backward("eps_1e-10", (4, 3, 8), eps=1e-10)
frozen("eps_0", (4, 3, 8), eps=0.0)
record("weight_of_new_1/forward", "forward_training", (4, 3, 8), momentum=1.0)
record("weight_of_new_0.01/forward", "forward_training", (4, 3, 8), momentum=0.01, batches=99)

recording.write()
