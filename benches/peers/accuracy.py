#!/usr/bin/env python3
"""Our errors beside PyTorch's, f32, on the same data: a Markdown table. Needs torch alone.

The reference is PyTorch in float64 on the same f32 inputs; PyTorch's own f32 runs on its CPU kernels, ours through
`wgpu-batchnorm forward` and `backward`. Errors are max|out - ref| / max(1, max|ref|). Exits 1 where ours leave their bounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F

EPS, MOMENTUM = 1e-5, 0.1
SHAPES = [(32, 64, 28, 28), (256, 1024)]
# What the project promises: of f32, forward and backward.
FORWARD, BACKWARD, OF_TERMS = 1e-6, 2e-6, 1e-7
TENSORS = ["output", "running_var", "grad_input", "grad_weight"]

Tensors = dict[str, torch.Tensor]


def normal(mean: float, std: float) -> Callable[[tuple[int, ...]], torch.Tensor]:
    return lambda shape: mean + std * torch.randn(shape, dtype=torch.float64)


def bimodal(shape: tuple[int, ...]) -> torch.Tensor:
    sides = torch.randint(2, shape, dtype=torch.float64) * 2 - 1
    return 5e3 * sides + torch.randn(shape, dtype=torch.float64)


def ramp(shape: tuple[int, ...]) -> torch.Tensor:
    """From 0 to 1e4 along every channel."""
    channels, count = shape[1], torch.Size(shape).numel() // shape[1]
    line = torch.linspace(0, 1e4, count, dtype=torch.float64).view(shape[0], 1, *shape[2:])
    return line.expand(shape[0], channels, *shape[2:])


def outlier(shape: tuple[int, ...]) -> torch.Tensor:
    """The first value of every channel is 1e4."""
    x = torch.randn(shape, dtype=torch.float64)
    x[(0, slice(None), *[0] * (len(shape) - 2))] = 1e4
    return x


CASES = {
    "N(0, 1)": normal(0, 1),
    "N(1e4, 1)": normal(1e4, 1),
    "N(1e6, 1)": normal(1e6, 1),
    "two clusters at ±5000": bimodal,
    "a ramp from 0 to 1e4": ramp,
    "one value of 1e4": outlier,
    "N(0, 1e-6)": normal(0, 1e-6),
}


def save(path: Path, tensors: Tensors) -> None:
    """Writes F32 safetensors."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        part = ctypes.string_at(tensor.data_ptr(), 4 * tensor.numel())
        span = [len(data), len(data) + len(part)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": span}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load(path: Path) -> Tensors:
    """Reads the F32 tensors of a safetensors file."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            begin, end = (8 + length + at for at in entry["data_offsets"])
            values = torch.frombuffer(content[begin:end], dtype=torch.float32)
            tensors[name] = values.view(entry["shape"])
    return tensors


def pytorch(inputs: Tensors, dtype: torch.dtype) -> Tensors:
    """Forward and backward."""
    t = {name: tensor.to(dtype, copy=True) for name, tensor in inputs.items()}
    x, weight, bias = (t[name].requires_grad_() for name in ("input", "weight", "bias"))
    y = F.batch_norm(x, t["running_mean"], t["running_var"], weight, bias, True, MOMENTUM, EPS)
    y.backward(t["grad_output"])
    return {"output": y.detach(), "running_var": t["running_var"], "grad_input": x.grad, "grad_weight": weight.grad}


def ours(binary: str, inputs: Tensors, options: list[str]) -> Tensors:
    """The same by the command line."""
    results: Tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "in.safetensors")
        save(given, inputs)
        for direction in ("forward", "backward"):
            path = Path(folder, f"{direction}.safetensors")
            subprocess.run([binary, direction, given, "-o", path, "--device", "gpu", *options], check=True)
            results |= load(path)
    return results


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).abs().max() / want.abs().max().clamp(min=1)).item()


def terms(inputs: Tensors) -> torch.Tensor:
    """Per channel, the sum of |dz * x_hat|: what the terms of grad_weight add up to without their signs."""
    x = inputs["input"].double()
    others = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x, others, correction=0, keepdim=True)
    return (inputs["grad_output"].double() * (x - mean) * (var + EPS).rsqrt()).abs().sum(others)


def within(name: str, got: torch.Tensor, want: torch.Tensor, inputs: Tensors) -> bool:
    """Whether a tensor keeps its bound."""
    bound = FORWARD if name in ("output", "running_var") else BACKWARD
    if name != "grad_weight":
        return error(got, want) <= bound
    most = bound * want.abs().max().clamp(min=1)
    return bool(((got.double() - want).abs() <= torch.maximum(most, OF_TERMS * terms(inputs))).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", default="target/release/wgpu-batchnorm", help="the command line (%(default)s)")
    parser.add_argument("options", nargs="*", help="for it, after --: -- --backend gl")
    args = parser.parse_args()

    print(f"PyTorch {torch.__version__.split('+')[0]}, {len(SHAPES)} shapes a row: {SHAPES}", file=sys.stderr)
    print("| data | " + " | ".join(f"`{name}`, ours | PyTorch" for name in TENSORS) + " |")
    print("|---|" + "---|" * 2 * len(TENSORS))
    passed = True
    for case, make in CASES.items():
        worst = {name: [0.0, 0.0] for name in TENSORS}
        for shape in SHAPES:
            torch.manual_seed(1)
            channels = shape[1]
            inputs = {
                "input": make(shape).float().contiguous(),
                "grad_output": 0.1 + torch.randn(shape),
                "weight": torch.linspace(0.5, 1.5, channels),
                "bias": torch.linspace(-1, 1, channels),
                "running_mean": torch.zeros(channels),
                "running_var": torch.ones(channels),
            }
            want = pytorch(inputs, torch.float64)
            got = ours(args.binary, inputs, args.options)
            theirs = pytorch(inputs, torch.float32)
            for name in TENSORS:
                for place, result in enumerate((got, theirs)):
                    off = error(result[name], want[name])
                    if not off <= worst[name][place]:  # NaN is worst of all
                        worst[name][place] = off
                if not within(name, got[name], want[name], inputs):
                    passed = False
                    print(f"{case}, {shape}: {name} is beyond its bound", file=sys.stderr)
        cells = [f"{value:.1e}" for name in TENSORS for value in worst[name]]
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
