"""Loads a state file into torch.nn.BatchNorm2d, strictly, saves its state_dict again and compares bit by bit.

Usage: python roundtrip.py STATE.safetensors [PREFIX [OUT.safetensors]]

PREFIX as it stands in the names, with its dot: `layer1.bn.`. Tensors without it are left alone; every tensor with it
has to belong to the batch norm. OUT keeps what was saved again.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

if not 2 <= len(sys.argv) <= 4:
    sys.exit(__doc__)
state, prefix, out = (sys.argv[1:] + ["", ""])[:3]
written = {name: tensor for name, tensor in load_file(state).items() if name.startswith(prefix)}
own = {name.removeprefix(prefix): tensor for name, tensor in written.items()}
if "running_mean" not in own:
    sys.exit(f"{state}: no {prefix}running_mean")

layer = torch.nn.BatchNorm2d(len(own["running_mean"]), affine="weight" in own)
layer.load_state_dict(own, strict=True)
with tempfile.TemporaryDirectory() as folder:
    file = out or Path(folder) / "again.safetensors"
    save_file({prefix + name: tensor for name, tensor in layer.state_dict().items()}, file)
    again = load_file(file)


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.numpy().tobytes()


differing = sorted(name for name in written.keys() | again.keys()
                   if name not in written or name not in again or bits(written[name]) != bits(again[name]))
if differing:
    sys.exit(f"{state}: not the same after the round trip: {', '.join(differing)}")
print(f"{state}: {len(written)} tensors, the same bits after the round trip through torch.nn.BatchNorm2d")
