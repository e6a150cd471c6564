#!/usr/bin/env python3
"""Times PyTorch's batch norm, and writes what `wgpu-batchnorm bench --compare` reads. Needs torch alone.

Each result is compared with float64 before it is timed. On CUDA, times are GPU time between events, with all launches
queued before the first of them runs; on a CPU, medians of the clock. README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import itertools
import json
import platform
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F

from shapes import BEYOND_CACHE, DTYPES, HEADLINE, Shape, resnet50, sums_text

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Against float64, of the largest value; beyond this something else was computed.
BOUNDS = {"f32": 1e-4, "f16": 2e-3, "bf16": 1.6e-2}
# How often an operation that keeps nothing on chip goes over a tensor: `bench` counts bytes so, too.
PASSES = {"forward_training": 3, "inference": 2, "backward": 5}
EPS, MOMENTUM = 1e-5, 0.1
# A set of tensors is rotated with others until they exceed four caches, of at least this size.
LEAST_CACHE, MOST_BYTES = 64 << 20, 4 << 30


def training(x, mean, var, weight, bias):
    """A training step's forward pass, running statistics included."""
    return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=MOMENTUM, eps=EPS)


def inference(x, mean, var, weight, bias):
    """By running statistics."""
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=EPS)


@dataclass(frozen=True)
class Variant:
    """How PyTorch computes: eagerly or compiled, on CUDA with cuDNN or without."""

    compiled: bool
    cudnn: bool | None

    def __str__(self) -> str:
        mode = "compiled" if self.compiled else "eager"
        return mode if self.cudnn is None else f"{mode}, {'cuDNN' if self.cudnn else 'no cuDNN'}"


class Tensors:
    """One set of an operation's tensors, and the operation on it."""

    def __init__(self, shape: Shape, dtype: str, op: str, device: torch.device, functions: dict[str, Callable]):
        self.op, self.axis = op, shape.axis
        channels = shape.dims[shape.axis]

        def ramp(low: float, high: float) -> torch.Tensor:
            return torch.linspace(low, high, channels, device=device)

        def stored(mean: float, std: float) -> torch.Tensor:
            return (torch.randn(shape.dims, device=device) * std + mean).to(TYPES[dtype])

        # Memory as the shape has it; PyTorch wants the channels on axis 1, and takes any strides.
        memory = stored(0.5, 2.0)
        self.x = memory.movedim(shape.axis, 1)
        self.weight, self.bias = ramp(0.5, 1.5), ramp(-1.0, 1.0)
        self.mean, self.var = ramp(0.0, 1.0), ramp(2.0, 6.0)
        self.function = functions["inference" if op == "inference" else "training"]
        self.copied, self.target = memory, torch.empty_like(memory)
        if op != "inference":
            for tensor in (self.x, self.weight, self.bias):
                tensor.requires_grad_()
        if op == "backward":
            self.copied = stored(0.1, 1.0)
            self.dy = self.copied.movedim(shape.axis, 1)
            self.y = self.forward()

    def forward(self) -> torch.Tensor:
        return self.function(self.x, self.mean, self.var, self.weight, self.bias)

    def run(self):
        """The operation once. Gives all that it made."""
        if self.op != "backward":
            return self.forward()
        # The graph is kept, so that the backward pass alone can be repeated.
        inputs = (self.x, self.weight, self.bias)
        return torch.autograd.grad(self.y, inputs, self.dy, retain_graph=True)

    def copy(self):
        """A copy of the same bytes."""
        return self.target.copy_(self.copied)

    def error(self) -> float:
        """Against the formulas in float64, in the first and the last channel: the largest deviation, of each scale."""
        ends = [0, -1]
        mean, var = self.mean[ends].double(), self.var[ends].double()
        made = self.run()
        x, weight, bias = self.x.detach()[:, ends].double(), self.weight[ends].double(), self.bias[ends].double()
        others = [d for d in range(x.dim()) if d != 1]
        over = [1, -1] + [1] * (x.dim() - 2)
        if self.op != "inference":
            var, mean = torch.var_mean(x, others, correction=0)
        invstd = (var + EPS).rsqrt().view(over)
        normal = (x - mean.view(over)) * invstd
        if self.op == "backward":
            dy = self.dy[:, ends].double()
            count = x.numel() // len(ends)
            grad_bias, grad_weight = dy.sum(others), (dy * normal).sum(others)
            inner = dy - grad_bias.view(over) / count - normal * grad_weight.view(over) / count
            got = [made[0][:, ends], made[1][ends], made[2][ends]]
            want = [weight.view(over) * invstd * inner, grad_weight, grad_bias]
        else:
            got, want = [made[:, ends]], [weight.view(over) * normal + bias.view(over)]
        pairs = zip(got, want)
        return max(((g.double() - w).abs().max() / w.abs().max().clamp(min=1)).item() for g, w in pairs)


class Timer:
    """Milliseconds of one repetition."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        # Cycles that the GPU is kept busy with, so that launches queue up behind.
        self.cycles = 1_000_000

    def take(self, work: Callable[[int], object], times: int, alive: int) -> float:
        """Of repetitions 0 .. `times`; the last `alive` ones' outputs are kept, so that allocations rotate."""
        kept: deque = deque(maxlen=alive)
        if not self.cuda:
            taken = []
            for i in range(times):
                began = time.perf_counter()
                kept.append(work(i))
                taken.append(time.perf_counter() - began)
            return 1e3 * statistics.median(taken)
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(self.cycles)
            start.record()
            for i in range(times):
                kept.append(work(i))
            end.record()
            queued = not start.query()  # the GPU slept until everything was launched
            torch.cuda.synchronize()
            if queued or self.cycles > 1 << 32:
                return start.elapsed_time(end) / times
            self.cycles *= 2

    def median(self, work: Callable[[int], object], times: int, alive: int, rounds: int) -> list[float]:
        """Of every round, sorted."""
        return sorted(self.take(work, times, alive) for _ in range(rounds))


def measure(
    shape: Shape, dtype: str, op: str, cache: str, device: torch.device, functions: dict, args: argparse.Namespace
) -> dict:
    """Checks and times one operation."""
    size = shape.count * torch.empty((), dtype=TYPES[dtype]).element_size()
    one_set = size * (3 if op == "backward" else 2)
    sets = 1
    if device.type == "cuda" and cache == "cold":
        l2 = max(torch.cuda.get_device_properties(device).L2_cache_size, LEAST_CACHE)
        sets = max(1, min(-(-4 * l2 // one_set), MOST_BYTES // one_set, 64))
    # Inference has no use for a graph, and a graph would keep tensors alive.
    with torch.set_grad_enabled(op != "inference"):
        tensors = [Tensors(shape, dtype, op, device, functions) for _ in range(sets)]
        error = tensors[0].error()
        if not error <= BOUNDS[dtype]:
            raise ArithmeticError(f"{op} {shape} {dtype} is off by {error:.1e} of its scale: nothing was timed")
        timer = Timer(device)

        def work(i: int):
            return tensors[i % sets].run()

        def copy(i: int):
            return tensors[i % sets].copy()

        for i in range(sets + 2):
            work(i), copy(i)
        # About 50 ms a round. Launches beyond some hundred would wait for the GPU's queue.
        first = max(timer.take(work, 3, sets), 1e-3)
        times = args.repetitions or int(min(max(50 / first, 5 if device.type == "cpu" else 16), 128))
        taken = timer.median(work, times, sets, args.rounds)
        with torch.no_grad():
            copies = timer.median(copy, times, 1, args.rounds)
    median, copy_ms = statistics.median(taken), statistics.median(copies)
    moved = size * PASSES[op]
    print(f"  {op} {shape} {dtype} {cache}: {median:.4f} ms, copy {copy_ms:.4f} ms, error {error:.1e}", file=sys.stderr)
    return {
        "op": op,
        "shape": list(shape.dims),
        "channel_axis": shape.axis,
        "dtype": dtype,
        "strategy": "",
        "cache": cache,
        "median_ms": median,
        "copy_ms": copy_ms,
        "copy_kernel": "Tensor.copy_",
        "copy_ratio": median / copy_ms if copy_ms > 0 else None,
        "gb_per_s": moved / median / 1e6,
        "bytes": moved,
        "repetitions": times,
        "spread": (taken[-1] - taken[0]) / median,
    }


def keep_memory() -> None:
    """Has the process keep what is freed, where its C library can: page faults of every new output are not in the times."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(variant: Variant, device: torch.device, results: list[dict]) -> dict:
    """A report of one variant, as `bench` writes them."""
    cuda = device.type == "cuda"
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if cuda else f"{processor()}, {threads} thread{'s'[:threads - 1]}"
    version = torch.__version__.split("+")[0]
    cudnn = torch.backends.cudnn.version() if cuda else None
    return {
        "adapter": {
            "name": f"PyTorch {version} {variant} on {where}",
            "backend": f"CUDA {torch.version.cuda}" if cuda else "CPU",
            "type": "DiscreteGpu" if cuda else "Cpu",
            "driver": f"cuDNN {cudnn}" if cudnn else "",
            "driver_info": "",
        },
        "timer": "events" if cuda else "wall clock",
        "results": results,
    }


def chosen(args: argparse.Namespace, device: torch.device) -> list[tuple[Shape, str]]:
    """Shapes and types."""
    if args.shapes:
        shapes = [Shape.parse(text) for text in args.shapes]
    elif args.set == "resnet50":
        shapes = resnet50(args.batch, False) + resnet50(args.batch, True)
    else:
        shapes = [Shape.parse(text) for text in HEADLINE + (BEYOND_CACHE if device.type == "cuda" else [])]
    if args.layout:
        # [N, C] is both.
        shapes = [s for s in shapes if len(s.dims) == 2 or ("channels_last" if s.last else "nchw") in args.layout]
    return [(shape, dtype) for shape in shapes for dtype in args.dtype or [shape.dtype or "f32"]]


def one_of(*allowed: str) -> Callable[[str], list[str]]:
    """For arguments that are lists with commas."""

    def parse(text: str) -> list[str]:
        items = text.split(",")
        wrong = [item for item in items if item not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(allowed)}")
        return items

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--set", choices=("headline", "resnet50"), default="headline", help="which shapes")
    parser.add_argument("--batch", type=int, default=32, help="N of --set resnet50")
    parser.add_argument("--shapes", type=lambda t: t.split(","), help="instead of a set, as `bench --shapes` takes them")
    parser.add_argument("--dtype", type=one_of(*DTYPES), help="types, instead of what the shapes name")
    parser.add_argument("--layout", type=one_of("nchw", "channels_last"), help="of the set, only these layouts")
    parser.add_argument("--op", type=one_of(*PASSES), default=list(PASSES), help="operations; all three without any")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile beside eager")
    parser.add_argument("--cudnn", choices=("on", "off", "both"), default="on", help="on CUDA")
    parser.add_argument("--threads", type=int, help="on a CPU; PyTorch's choice without")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--repetitions", type=int, help="in a round, instead of as many as take about 50 ms")
    parser.add_argument("--json", type=Path, help="where to write the figures, instead of stdout")
    args = parser.parse_args()

    cuda = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here", file=sys.stderr)
        return 1
    device = torch.device("cuda" if cuda else "cpu")
    keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    try:
        subjects = chosen(args, device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    switches = {"on": [True], "off": [False], "both": [True, False]}[args.cudnn] if cuda else [None]
    # What torch.compile makes of batch norm is its own: cuDNN is not in it.
    variants = [Variant(False, cudnn) for cudnn in switches] + [Variant(True, None)] * args.compile
    machines, failed, stopped = [], False, False
    for variant in variants:
        if stopped:
            break
        functions = {"training": training, "inference": inference}
        if variant.compiled:
            # The backward pass is repeated on one graph, which must keep its buffers.
            importlib.import_module("torch._functorch.config").donated_buffer = False
            functions = {name: torch.compile(f, dynamic=False) for name, f in functions.items()}
        results = []
        print(f"PyTorch {torch.__version__} {variant}", file=sys.stderr)
        caches = ("cold", "hot") if cuda else ("cold",)
        last = None
        try:
            for (shape, dtype), op, cache in itertools.product(subjects, args.op, caches):
                if variant.compiled and last != (shape, dtype):
                    torch.compiler.reset()  # every shape is compiled for itself
                    last = (shape, dtype)
                try:
                    with torch.backends.cudnn.flags(enabled=variant.cudnn is not False):
                        results.append(measure(shape, dtype, op, cache, device, functions, args))
                except Exception as error:  # what fails leaves the others
                    failed = True
                    line = str(error).strip().split("\n")[0]
                    print(f"  {op} {shape} {dtype} {cache}: failed: {type(error).__name__}: {line}", file=sys.stderr)
        except KeyboardInterrupt:
            failed = stopped = True
            print("  interrupted: what was measured so far is written", file=sys.stderr)
        if results:
            machines.append(machine(variant, device, results))
        text = sums_text(str(variant), results)
        if text:
            print(text, file=sys.stderr)
    if not machines:
        print("error: nothing could be measured", file=sys.stderr)
        return 1
    text = json.dumps(machines[0] if len(machines) == 1 else {"machines": machines}, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    else:
        print(text, end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
