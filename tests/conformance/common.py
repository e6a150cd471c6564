"""What the recording scripts share: the inputs of a case, and the two files that a framework's cases become."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)  # one order of addition, whatever the machine

HERE = Path(__file__).parent
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def seeded(name):
    """Numbers that depend on the case's name alone, so that a new case leaves the others as they are."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def stored(values, dtype="f32"):
    """Values rounded once to the type they are stored in."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(DTYPES[dtype])


def vectors(rng, channels):
    """Weights of either sign, biases, running means and variances."""
    sign = rng.choice([-1.0, 1.0], channels, p=[0.25, 0.75])
    return {
        "weight": stored(sign * rng.uniform(0.5, 1.5, channels)),
        "bias": stored(rng.normal(0, 0.5, channels)),
        "running_mean": stored(rng.normal(0, 1, channels)),
        "running_var": stored(rng.uniform(0.5, 2.5, channels)),
    }


def batch(rng, shape, axis, offset=1.0, scale=2.0):
    """Normal values, every channel with its own mean and width."""
    per_channel = [1] * len(shape)
    per_channel[axis] = shape[axis]
    mean = rng.normal(0, offset, shape[axis]).reshape(per_channel)
    width = scale * rng.uniform(0.5, 1.5, shape[axis]).reshape(per_channel)
    return mean + width * rng.normal(0, 1, shape)


class Recording:
    """The cases of one framework, written as one JSON and one safetensors file."""

    def __init__(self, stem, framework):
        self.stem, self.framework = stem, framework
        self.cases, self.tensors = [], {}

    def add(self, name, op, tensors, *, axis, dtype="f32", eps, new_weight, running_variance,
            activation="none", frozen=False, note=None):
        assert all(case["name"] != name for case in self.cases), name
        case = {
            "name": name, "op": op, "shape": list(tensors["input"].shape), "channel_axis": axis, "dtype": dtype,
            "eps": eps, "new_weight": new_weight, "running_variance": running_variance, "activation": activation,
            "residual": "residual" in tensors, "mask": "mask" in tensors, "frozen": frozen,
        }
        if note:
            case["note"] = note
        self.cases.append(case)
        for tensor, values in tensors.items():
            self.tensors[f"{name}/{tensor}"] = values.detach().contiguous().clone()

    def write(self):
        lines = ",\n".join("    " + json.dumps(case) for case in self.cases)
        head = f'{{\n  "framework": {json.dumps(self.framework)},\n  "script": "record_{self.stem}.py",\n'
        (HERE / f"{self.stem}.json").write_text(f'{head}  "cases": [\n{lines}\n  ]\n}}\n')
        file = HERE / f"{self.stem}.safetensors"
        save_file(self.tensors, file)
        file.chmod(0o644)
        print(f"{self.stem}: {len(self.cases)} cases, {file.stat().st_size} bytes")
