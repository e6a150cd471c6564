"""Makes the recorded tensor files of this folder: `python make.py` here, with numpy and safetensors installed."""

import numpy as np
from safetensors.numpy import save_file

ramp = np.arange(6, dtype="<f4").reshape(2, 3) - 2.5
tensors = {
    "single": ramp,
    "half": ramp.astype("<f2"),
    "double": ramp.astype("<f8"),
    "big": ramp.astype(">f4"),
    "big_half": ramp.astype(">f2"),
    "columns": np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4)),
    "big_columns": np.asfortranarray(np.arange(24, dtype=">f8").reshape(2, 3, 4)),
    "scalar": np.array(-7, dtype="<i8"),
    "empty": np.zeros((0, 3), dtype="<f4"),
    "text": np.array(["no"]),
}
np.savez("stored.npz", **tensors)
np.savez_compressed("deflated.npz", **tensors)

kept = {name: tensors[name] for name in ["single", "half", "double", "scalar", "empty"]}
save_file(kept | {"bytes": np.arange(3, dtype="u1")}, "numpy.safetensors", metadata={"by": "make.py"})
