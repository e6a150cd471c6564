"""Records keras.layers.BatchNormalization in float64 on its PyTorch backend, forward and by autograd.

The cases `test_*` follow Keras' own layer tests (keras/src/layers/normalization/batch_normalization_test.py), with
values of ours from fixed seeds where the tests draw them.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from keras.src.backend.common import dtypes

from common import Recording, batch, seeded, stored, vectors

# Keras promotes float64 with float32 to float64 on TensorFlow only, elsewhere to float32, and a layer's first step is
# such a promotion. As on TensorFlow, then: the layer's own code in float64 throughout.
dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"

recording = Recording("keras", f"Keras {keras.__version__} (PyTorch backend)")
NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
MASKED = "statistics are sums divided by count + 1e-7; masked positions are normalised too"


def record(name, op, shape, *, axis=-1, dtype="f32", momentum=0.99, epsilon=1e-3, affine=True, trainable=True,
           mask=None, values=None, given=None, note=None):
    """`given` replaces drawn vectors. `trainable=False` calls the layer as in training, and it runs as in inference."""
    rng = seeded(name)
    training = op in ("forward_training", "backward")
    inputs = {"input": stored(batch(rng, shape, axis) if values is None else values(rng), dtype)}
    drawn = vectors(rng, shape[axis])
    drawn |= {key: stored(np.full(shape[axis], value)) for key, value in (given or {}).items()}
    inputs |= {key: vector for key, vector in drawn.items() if affine or key.startswith("running")}
    if mask is not None:
        inputs["mask"] = stored(mask(rng) if callable(mask) else mask)
        note = f"{MASKED}; {note}" if note else MASKED
    if op.startswith("backward"):
        inputs["grad_output"] = stored(rng.normal(0.2, 1, shape), dtype)

    layer = keras.layers.BatchNormalization(
        axis=axis, momentum=momentum, epsilon=epsilon, center=affine, scale=affine, dtype="float64")
    layer.build(shape)
    for key, attribute in NAMES.items():
        if key in inputs:
            getattr(layer, attribute).assign(inputs[key].double())
    layer.trainable = trainable
    x = inputs["input"].double().requires_grad_(op.startswith("backward"))
    y = layer(x, training=training or not trainable, mask=inputs.get("mask"))
    assert y.dtype == torch.float64

    expected = {}
    if op.startswith("backward"):
        y.backward(inputs["grad_output"].double())
        expected["grad_input"] = x.grad
        if affine and trainable:
            expected |= {"grad_weight": layer.gamma.value.grad, "grad_bias": layer.beta.value.grad}
    else:
        expected["output"] = y
    if op == "forward_training":
        expected |= {"new_running_mean": layer.moving_mean.value, "new_running_var": layer.moving_variance.value}
    recording.add(name, op, inputs | expected, axis=axis % len(shape), dtype=dtype, eps=epsilon,
                  new_weight=round(1 - momentum, 12), running_variance="biased",
                  frozen=op == "backward_frozen" or not trainable, note=note)


def forward_and_backward(name, shape, **options):
    record(f"{name}/forward", "forward_training", shape, **options)
    record(f"{name}/backward", "backward", shape, **options)


def frozen(name, shape, **options):
    record(f"{name}/inference", "inference", shape, **options)
    record(f"{name}/backward_frozen", "backward_frozen", shape, **options)


def normal_5_10(shape):
    return lambda rng: rng.normal(5, 10, shape)


FRESH = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}

# test_bn_basics
forward_and_backward("test_bn_basics_vector", (2, 3))
forward_and_backward("test_bn_basics_not_affine", (2, 3), affine=False)
forward_and_backward("test_bn_basics_image", (2, 4, 4, 3))

# test_correctness: momentum 0; running statistics start from zeros or ones.
for axis in (-1, 1):
    for shape in ((5, 2, 3), (5, 3, 3, 2)):
        for start in (0.0, 1.0):
            name = f"test_correctness_{'x'.join(map(str, shape))}_axis_{axis}_from_{start:.0f}"
            record(f"{name}/forward", "forward_training", shape, axis=axis, momentum=0.0, values=normal_5_10(shape),
                   given={**FRESH, "running_mean": start, "running_var": start})
        name = f"test_correctness_{'x'.join(map(str, shape))}_axis_{axis}"
        record(f"{name}/backward", "backward", shape, axis=axis, momentum=0.0, values=normal_5_10(shape))
        frozen(name, shape, axis=axis, momentum=0.0, values=normal_5_10(shape))

# test_trainable_behavior: a layer that is not trainable normalises by its moving statistics even in a training step.
for name, given in (("test_trainable_behavior", FRESH), ("test_trainable_behavior_trained", None)):
    options = {"momentum": 0.8, "epsilon": 1e-7, "values": normal_5_10((6, 4, 4, 3)), "given": given}
    frozen(name, (6, 4, 4, 3), **options, trainable=False, note="trainable=False, called with training=True")
forward_and_backward("test_trainable_behavior_again", (6, 4, 4, 3), momentum=0.8, epsilon=1e-7,
                     values=normal_5_10((6, 4, 4, 3)), note="trainable=True again")

# test_large_value_within_autocast_scope: a variance that f16 does not hold.
record("test_large_value/inference", "inference", (2, 4, 4, 3), dtype="f16", given={"running_var": 70000.0},
       values=lambda rng: rng.normal(0, 260, (2, 4, 4, 3)))
record("large_value_in_batch/forward", "forward_training", (2, 4, 4, 3), dtype="f16",
       values=lambda rng: rng.normal(0, 400, (2, 4, 4, 3)), note="the batch's variance is beyond f16")

# Layouts, sizes, options of ours.
forward_and_backward("defaults_nhwc", (2, 5, 7, 5), given=FRESH)
forward_and_backward("defaults_nchw", (2, 5, 7, 7), axis=1)
forward_and_backward("axis_2", (2, 3, 5, 4), axis=2)
forward_and_backward("five_dimensions", (2, 2, 3, 2, 5))
forward_and_backward("f16_nhwc", (3, 3, 5, 3), dtype="f16")
forward_and_backward("bf16_nhwc", (3, 3, 5, 3), dtype="bf16")
frozen("defaults_nhwc", (2, 5, 7, 5))
frozen("defaults_nchw", (2, 5, 7, 7), axis=1)
frozen("f16_nhwc", (3, 3, 5, 3), dtype="f16")

# test_input_fully_masked: zeros in the test; with data, scale and center as well.
FULLY = (
    "fully masked: mean and variance come out as 0, so output is gamma*x/sqrt(eps)+beta, "
    "and the moving statistics are multiplied by momentum"
)
record("test_input_fully_masked/forward", "forward_training", (4, 5), affine=False, mask=np.zeros(4),
       values=lambda rng: np.zeros((4, 5)), note=FULLY, given=FRESH)
forward_and_backward("fully_masked_data", (4, 5), mask=np.zeros(4), note=FULLY)
forward_and_backward("fully_masked_data_not_affine", (4, 5), affine=False, mask=np.zeros(4), note=FULLY)
forward_and_backward("fully_masked_nhwc", (2, 3, 3, 4), mask=np.zeros((2, 3, 3)), note=FULLY)

# test_bachnorm_ignore_masked_values: two of four steps are padding, zeroed by the Masking layer.
padded = np.array([[[1.0, 5.0], [2.0, 5.0], [0.0, 0.0], [0.0, 0.0]]] * 10)
forward_and_backward("test_ignore_masked_values", (10, 4, 2), momentum=0.0, mask=padded.any(axis=-1), given=FRESH,
                     values=lambda rng: padded)

# test_masked_broadcast_normalization: ones everywhere; the mask [1, 2, 1] is stored as it is broadcast.
record("test_masked_broadcast/forward", "forward_training", (1, 2, 3, 4), momentum=0.0, mask=np.ones((1, 2, 3)),
       given=FRESH, values=lambda rng: np.ones((1, 2, 3, 4)), note="that is why output is 5e-7 and not 0")


# Masks of ours: over 2 to 5 dimensions; one position left, all left; padding far from the data.
def some(shape):
    return lambda rng: rng.uniform(0, 1, shape) < 0.6


def padding(lengths, steps):
    return np.arange(steps) < np.array(lengths)[:, None]


forward_and_backward("mask_2d", (12, 5), mask=some(12))
forward_and_backward("mask_sequences", (4, 7, 5), mask=padding([7, 5, 1, 3], 7))
forward_and_backward("mask_sequences_not_affine", (4, 7, 5), mask=padding([7, 5, 1, 3], 7), affine=False)
forward_and_backward("mask_nhwc", (2, 4, 5, 3), mask=some((2, 4, 5)))
forward_and_backward("mask_five_dimensions", (2, 2, 3, 2, 5), mask=some((2, 2, 3, 2)))
forward_and_backward("mask_momentum_0", (4, 7, 4), momentum=0.0, mask=padding([7, 5, 2, 3], 7))
forward_and_backward("mask_all_kept", (4, 7, 4), mask=np.ones((4, 7)))
forward_and_backward("mask_one_kept", (4, 7, 4), mask=padding([0, 1, 0, 0], 7))
forward_and_backward("mask_two_kept", (4, 7, 4), mask=padding([0, 1, 1, 0], 7))
forward_and_backward("mask_wide", (31, 64), mask=some(31))
forward_and_backward("mask_f16", (4, 7, 5), dtype="f16", mask=padding([7, 5, 1, 3], 7))
forward_and_backward("mask_bf16", (3, 7, 3), dtype="bf16", mask=padding([7, 4, 2], 7))
far = np.where(padding([7, 5, 1, 3], 7)[..., None], 1.0, 50.0)
forward_and_backward("mask_far_padding", (4, 7, 5), mask=padding([7, 5, 1, 3], 7),
                     values=lambda rng: far * rng.normal(1, 1, (4, 7, 5)))
frozen("mask_is_ignored", (4, 7, 5), mask=padding([7, 5, 1, 3], 7), note="not in inference: the mask changes nothing")

recording.write()
