#!/usr/bin/env python3
"""The shapes that peers are measured on, written as `wgpu-batchnorm bench --shapes` takes them.

    shapes.py resnet50 [--batch N] [--last] [--dtype f16]    ResNet-50's, as one argument for `bench --shapes`
    shapes.py sum FILE...                                    what reports say of ResNet-50 as a whole
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

DTYPES = ("f32", "f16", "bf16")

# The headline set of `wgpu-batchnorm bench`; the second part beyond a GPU's cache, and not on a CPU.
HEADLINE = (
    "32x64x56x56:f32 32x256x28x28:f32 32x512x7x7:f32 256x1024:f32 32x56x56x64:last:f32 32x28x28x256:last:f32 "
    "32x2048x7x7:f16 8x40x40x320:last:bf16"
).split()
BEYOND_CACHE = (
    "256x64x56x56:f32 256x256x56x56:f32 256x56x56x64:last:f32 256x512x28x28:f16 256x2048x7x7:f16 256x64x112x112:bf16"
).split()

# ResNet-50's batch norms: channels, side, how often.
RESNET50 = [
    (64, 112, 1),
    (64, 56, 6),
    (256, 56, 4),
    (128, 28, 8),
    (512, 28, 5),
    (256, 14, 12),
    (1024, 14, 7),
    (512, 7, 6),
    (2048, 7, 4),
]


@dataclass(frozen=True)
class Shape:
    """A shape in memory order, its channel axis and its type (None where it names none)."""

    dims: tuple[int, ...]
    axis: int
    dtype: str | None

    @staticmethod
    def parse(text: str) -> "Shape":
        """From 32x64x56x56, 32x28x28x256:last, 32x2048x7x7:f16."""
        size, *rest = text.split(":")
        dims = tuple(int(d) if d.isdecimal() else 0 for d in size.split("x"))
        unknown = set(rest) - {"last", *DTYPES}
        if len(dims) < 2 or 0 in dims or unknown:
            raise ValueError(f"{text}: give a shape like 32x64x56x56, 32x28x28x256:last or 32x2048x7x7:f16")
        dtypes = [part for part in rest if part in DTYPES]
        return Shape(dims, len(dims) - 1 if "last" in rest else 1, dtypes[0] if dtypes else None)

    def __str__(self) -> str:
        last = ":last" if self.last else ""
        return "x".join(map(str, self.dims)) + last

    @property
    def last(self) -> bool:
        """Whether its channels are last, as in NHWC; [N, C] is both."""
        return len(self.dims) > 2 and self.axis == len(self.dims) - 1

    @property
    def count(self) -> int:
        """Elements."""
        product = 1
        for d in self.dims:
            product *= d
        return product


def resnet50(batch: int, last: bool) -> list[Shape]:
    """ResNet-50's nine shapes."""
    if last:
        return [Shape((batch, side, side, c), 3, None) for c, side, _ in RESNET50]
    return [Shape((batch, c, side, side), 1, None) for c, side, _ in RESNET50]


def network_sums(results: list[dict]) -> dict[tuple, dict[str, float]]:
    """Milliseconds of every batch norm of ResNet-50 together: by batch, layout, type and cache, then by operation.

    Only where all nine shapes are among the results.
    """
    times = {}
    for r in results:
        key = (tuple(r["shape"]), r["channel_axis"], r["dtype"], r["cache"], r["op"])
        times[key] = r["median_ms"]
    sums: dict[tuple, dict[str, float]] = {}
    for (dims, axis, dtype, cache, op) in times:
        batch, last = dims[0], axis == 3
        group = (batch, "last" if last else "planar", dtype, cache)
        if len(dims) != 4 or op in sums.get(group, {}):
            continue
        parts = [times.get((s.dims, s.axis, dtype, cache, op)) for s in resnet50(batch, last)]
        if None not in parts:
            often = [n for _, _, n in RESNET50]
            sums.setdefault(group, {})[op] = sum(ms * n for ms, n in zip(parts, often))
    return sums


def sums_text(name: str, results: list[dict]) -> str:
    """One line per batch, layout, type and cache."""
    lines = []
    for group, ops in network_sums(results).items():
        times = ", ".join(f"{op} {ms:.2f} ms" for op, ms in ops.items())
        if {"forward_training", "backward"} <= ops.keys():
            times += f", both {ops['forward_training'] + ops['backward']:.2f} ms"
        lines.append(f"ResNet-50 N={' '.join(map(str, group)).strip()}, {name}: {times}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("resnet50")
    listed.add_argument("--batch", type=int, default=32)
    listed.add_argument("--last", action="store_true")
    listed.add_argument("--dtype", choices=DTYPES, default="f32")
    summed = commands.add_parser("sum")
    summed.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    if args.command == "resnet50":
        print(",".join(f"{shape}:{args.dtype}" for shape in resnet50(args.batch, args.last)))
        return 0
    found = False
    for path in args.files:
        report = json.loads(path.read_text())
        for machine in report.get("machines", [report]):
            text = sums_text(machine["adapter"]["name"], machine["results"])
            if text:
                print(text)
                found = True
    if not found:
        print("no report has all of ResNet-50's shapes", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
