#!/usr/bin/env python3
"""What `make matrix` runs: everything that can be checked on one machine, then one table of what came of it.

Every part is gone through even when one of them fails. Arguments: the backends for `check --full`, and the further make
targets. Output of the parts goes to the terminal as it comes; the reports of `check` are kept in the target folder.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or "target")
REPORTS = TARGET / "matrix"
CARGO = os.environ.get("CARGO", "cargo")
MAKE = os.environ.get("MAKE", "make")


def run(title, command, environment=None, output=None):
    """Runs a command and gives its exit status and how long it took."""
    print(f"== {title}", flush=True)
    began = time.monotonic()
    try:
        status = subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=output).returncode
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        status = 127
    return status, time.monotonic() - began


def check(title, arguments, environment=None):
    """Runs the command line's `check`: its exit status, its time and its report (None where there is none)."""
    command = [CARGO, "run", "--release", "--locked", "--package", "wgpu-batchnorm-cli", "--"]
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{title}.json"
    with open(path, "wb") as output:
        status, seconds = run(title, [*command, "check", "--json", *arguments], environment, output)
    try:
        report = json.loads(path.read_text())
    except ValueError:
        report = None
        status = status or 1
    for case in (report or {}).get("cases", []):
        if not case["passed"] and not case["refused"]:
            print("FAILED", json.dumps({k: v for k, v in case.items() if k != "tensors"}), file=sys.stderr)
    return status, seconds, report


def swiftshader():
    """The description of SwiftShader's driver, a Vulkan of another make: Chromium brings it along."""
    named = os.environ.get("SWIFTSHADER_ICD")
    if named:
        return named
    packaged = "/usr/lib/chromium/vk_swiftshader_icd.json"
    found = subprocess.run(["bash", "scripts/apt-install.sh", packaged, "chromium"]).returncode == 0
    return packaged if found else None


def rows_of(report):
    """Operation x type x strategy: how many cases, failures and refusals, and the worst error of its bound."""
    rows = {}
    for case in report["cases"]:
        key = (case["op"], case["dtype"], case["strategy"])
        row = rows.setdefault(key, [0, 0, 0, 0.0])
        if case["refused"]:
            row[2] += 1
            continue
        row[0] += 1
        row[1] += not case["passed"]
        row[3] = max([row[3], *(tensor["of_bound"] or 0.0 for tensor in case["tensors"] or [])])
    return rows


def table(header, rows):
    """Prints columns as wide as what is in them."""
    rows = [header, *rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(header))]
    for number, row in enumerate(rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def main():
    backends, parts = (argument.split() for argument in sys.argv[1:3])
    results = []  # part, result, seconds
    details = []  # adapter, operation, type, strategy, cases, failed, refused, worst

    def note(part, status, seconds):
        results.append((part, "passed" if status == 0 else "FAILED", f"{seconds:.0f} s"))

    def note_check(part, status, seconds, report):
        note(part, status, seconds)
        if report is None:
            return
        adapter = f"{report['adapter']['name']} ({part})"
        for key, (cases, failed, refused, worst) in rows_of(report).items():
            details.append((adapter, *key, cases, failed, refused, f"{100 * worst:.0f}%"))

    note("check", *run("check", [MAKE, "check"]))
    for backend in backends:
        note_check(backend, *check(backend, ["--full", "--backend", backend]))
    if "vulkan" in backends and sys.platform == "linux":
        driver = swiftshader()
        if driver is None:
            results.append(("swiftshader", "FAILED", "not here"))
        else:
            # Some twenty times slower than Mesa's driver: the pairwise selection.
            only = {"VK_DRIVER_FILES": driver, "VK_ICD_FILENAMES": driver}
            note_check("swiftshader", *check("swiftshader", ["--backend", "vulkan"], only))
    for part in parts:
        note(part, *run(part, [MAKE, part]))

    print()
    table(("adapter", "operation", "type", "strategy", "cases", "failed", "refused", "of bound"), details)
    print()
    table(("part", "result", "time"), results)
    failed = [part for part, result, _ in results if result != "passed"]
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    main()
