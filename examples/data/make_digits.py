#!/usr/bin/env python3
"""Makes digits.csv, the handwritten digits that the example `digits` trains on.

    python3 make_digits.py [FILE]

FILE is scikit-learn's `digits.csv.gz`, or one of its wheels; without it pip fetches a wheel into a
temporary folder. Nothing beyond the standard library and pip is needed, nothing is installed.
"""

import csv
import gzip
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MEMBER = "sklearn/datasets/data/digits.csv.gz"
TARGET = Path(__file__).with_name("digits.csv")
ROWS, PIXELS = 1797, 64


def fetch(folder):
    """A scikit-learn wheel in `folder`, from the package index."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
         "--only-binary", ":all:", "--dest", folder, "scikit-learn"],
        check=True,
    )
    return next(Path(folder).glob("*.whl"))


def read(path):
    """The rows of the data set in `path`, a wheel or the compressed table itself."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read(MEMBER)
    else:
        packed = path.read_bytes()
    text = gzip.decompress(packed).decode("ascii")
    return [[int(cell) for cell in row] for row in csv.reader(text.splitlines())]


def verify(rows):
    """Stops unless the rows are what README.md says they are."""
    assert len(rows) == ROWS, f"{len(rows)} rows, expected {ROWS}"
    for number, row in enumerate(rows, 1):
        *pixels, label = row
        assert len(pixels) == PIXELS, f"row {number}: {len(pixels)} pixels, expected {PIXELS}"
        assert all(0 <= pixel <= 16 for pixel in pixels), f"row {number}: a pixel outside 0..16"
        assert 0 <= label <= 9, f"row {number}: label {label}"


def main():
    with tempfile.TemporaryDirectory() as folder:
        rows = read(Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(folder))
    verify(rows)
    lines = (",".join(map(str, row)) for row in rows)
    TARGET.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
    print(f"{TARGET.name}: {len(rows)} rows, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
