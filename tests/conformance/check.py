"""Checks the recorded results against the formulas, written out in NumPy's float64 and nothing else.

Every expected tensor has to agree to 1e-10 of the larger of 1 and its largest value. For Keras' masks the sums are
divided by count + 1e-7, as Keras does; how far that is from dividing by the count is printed, fully masked cases aside.
"""

import json
import math
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "BF16": "<u2"}
STORED = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
erf = np.vectorize(math.erf)


def load(file):
    """Every tensor of a safetensors file with its type's name; values as f64."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, at in json.loads(data[8:start]).items():
        begin, end = at["data_offsets"]
        raw = np.frombuffer(data[start + begin : start + end], TYPES[at["dtype"]]).reshape(at["shape"])
        if at["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = at["dtype"], raw.astype(np.float64)
    return tensors


def activation(name, z):
    """The activation and its derivative."""
    name, _, slope = name.partition(":")
    step = (z > 0).astype(float)
    if name == "none":
        return z, np.ones_like(z)
    if name == "relu":
        return z * step, step
    if name == "leaky-relu":
        gain = step + float(slope) * (1 - step)
        return z * gain, gain
    if name == "tanh":
        return np.tanh(z), 1 / np.cosh(z) ** 2
    if name == "gelu":
        cdf = (1 + erf(z / math.sqrt(2))) / 2
        return z * cdf, cdf + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    s = 1 / (1 + np.exp(-z))
    return (s, s * (1 - s)) if name == "sigmoid" else (z * s, s + z * s * (1 - s))


def batch_norm(case, given, extra):
    """Every tensor a case may expect; `extra` is added to the count that masked sums are divided by."""
    axis, op = case["channel_axis"], case["op"]
    x = given["input"]
    over = tuple(a for a in range(x.ndim) if a != axis)

    def wide(vector):
        return np.expand_dims(vector, over)

    def total(values):
        return values.sum(axis=over)

    channels = x.shape[axis]
    weight, bias = given.get("weight", np.ones(channels)), given.get("bias", np.zeros(channels))
    mask = np.expand_dims(given["mask"], axis) * np.ones_like(x) if case["mask"] else np.ones_like(x)
    count = mask.sum() / channels
    n = count + extra
    training = op in ("forward_training", "backward")
    if training:
        mean = total(x * mask) / n
        var = total(mask * (x - wide(mean)) ** 2) / n
    else:
        mean, var = given["running_mean"], given["running_var"]
    invstd = 1 / np.sqrt(var + case["eps"])
    centred = x - wide(mean)
    normal = centred * wide(invstd)
    z = wide(weight) * normal + wide(bias) + given.get("residual", 0)
    y, slope = activation(case["activation"], z)
    results = {"output": y, "save_mean": mean, "save_invstd": invstd}
    if op == "forward_training" and "running_mean" in given:
        batches = given.get("num_batches_tracked", 0) + 1
        new = case["new_weight"] if case["new_weight"] is not None else 1 / batches
        unbiased = count / (count - 1) if case["running_variance"] == "unbiased" else 1
        results |= {
            "new_running_mean": (1 - new) * given["running_mean"] + new * mean,
            "new_running_var": (1 - new) * given["running_var"] + new * unbiased * var,
            "new_num_batches_tracked": batches,
        }
    if op.startswith("backward"):
        dz = given["grad_output"] * slope
        grad_bias, grad_weight = total(dz), total(dz * normal)
        inner = dz
        if training:
            # The last term is the variance's own dependence on a mean that is not quite the mean: 0 where extra is.
            off = -grad_weight * invstd * total(mask * centred) / n
            inner = dz - mask * wide(grad_bias + off) / n - mask * normal * wide(grad_weight) / n
        results |= {
            "grad_input": wide(weight * invstd) * inner, "grad_residual": dz,
            "grad_weight": grad_weight, "grad_bias": grad_bias,
        }
    return results


def expected(name):
    return name.startswith(("grad_", "new_", "save_", "output")) and name != "grad_output"


def error(got, wanted):
    return np.max(np.abs(got - wanted)) / max(1.0, np.max(np.abs(wanted)))


def check(stem):
    recorded = json.loads((HERE / f"{stem}.json").read_text())
    tensors = load(HERE / f"{stem}.safetensors")
    keras = stem == "keras"
    compared, worst, apart = 0, 0.0, {}
    used = set()
    for case in recorded["cases"]:
        prefix = f"{case['name']}/"
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        used |= {prefix + key for key in own}
        given = {key: values for key, (_, values) in own.items()}
        for key, (dtype, values) in own.items():
            where = f"{stem}: {case['name']}/{key}"
            assert np.isfinite(values).all(), where
            if key in ("input", "residual", "grad_output"):
                assert dtype == STORED[case["dtype"]] and list(values.shape) == case["shape"], where
            elif key.endswith("num_batches_tracked"):
                assert dtype == "I64" and values.shape == (), where
            elif key == "mask":
                assert dtype == "F32" and set(values.flat) <= {0.0, 1.0}, where
            else:
                assert dtype == ("F64" if expected(key) else "F32"), where
        results = batch_norm(case, given, 1e-7 if keras and case["mask"] else 0.0)
        fully_masked = case["mask"] and not given["mask"].any()
        plain = batch_norm(case, given, 0.0) if case["mask"] and not fully_masked else results
        for key in filter(expected, own):
            compared += 1
            off = error(results[key], given[key])
            worst = max(worst, off)
            assert off < 1e-10, f"{stem}: {case['name']}/{key} is off by {off:.1e}"
            if plain is not results:
                apart[f"{case['name']}/{key}"] = error(plain[key], given[key])
    assert used == set(tensors), set(tensors) - used
    print(f"{stem}: {len(recorded['cases'])} cases, {compared} tensors, off by {worst:.1e} at most")
    if apart:
        name = max(apart, key=apart.get)
        print(f"  masked sums over count alone would be off by {apart[name]:.1e} at most ({name})")


for stem in ("pytorch", "keras", "onnx"):
    check(stem)
