"""Records ONNX's published tests of BatchNormalization: their inputs and outputs, and the operator in float64.

The node tests come from the generator in the package (its seeds make them the published ones), the tests converted
from PyTorch from the files in the package. `output` and the running statistics are what ONNX's reference operator
gives in float64 for these inputs; `published_*` is what the tests themselves expect, in F32.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference.ops.op_batch_normalization import _batchnorm_test_mode, _batchnorm_training_mode

from common import Recording

warnings.simplefilter("ignore")  # the package generates the tests of every operator, some with overflows on purpose
recording = Recording("onnx", f"ONNX {onnx.__version__}")


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def decimal(value):
    """The number somebody wrote before it became an attribute, which is an f32."""
    return float(str(np.float32(value)))


def add(name, node, inputs, published, training, note):
    x, weight, bias, mean, var = inputs
    eps = decimal(attributes(node).get("epsilon", 1e-5))
    old_weight = decimal(attributes(node).get("momentum", 0.9))
    wide = [a.astype(np.float64) for a in inputs]
    if training:
        y, _, _, new_mean, new_var = _batchnorm_training_mode(*wide, momentum=old_weight, epsilon=eps)
        expected = {"output": y, "new_running_mean": new_mean, "new_running_var": new_var}
    else:
        expected = {"output": _batchnorm_test_mode(*wide, epsilon=eps)}
    tensors = {"input": x, "weight": weight, "bias": bias, "running_mean": mean, "running_var": var, **expected}
    for wanted, array in zip(expected, published, strict=True):
        assert np.allclose(array, expected[wanted], rtol=1e-5, atol=1e-5), (name, wanted)
        tensors[f"published_{wanted.removeprefix('new_')}"] = array
    recording.add(
        name, "forward_training" if training else "inference",
        {tensor: torch.from_numpy(np.array(a)) for tensor, a in tensors.items()},
        axis=1, eps=eps, new_weight=round(1 - old_weight, 12), running_variance="biased", note=note,
    )


for case in collect_testcases("BatchNormalization"):
    node = case.model.graph.node[0]
    if node.op_type != "BatchNormalization" or len(case.model.graph.node) != 1:
        continue
    training = bool(attributes(node).get("training_mode", 0))
    note = "node test; momentum there weighs the old value" if training else "node test"
    add(case.name, node, *case.data_sets[0], training, note)

converted = Path(onnx.__file__).parent / "backend/test/data/pytorch-converted"
for folder in sorted(converted.glob("test_BatchNorm*")):
    graph = onnx.load(folder / "model.onnx").graph
    [node] = graph.node
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    x, y = (
        numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / file))
        for file in ("input_0.pb", "output_0.pb")
    )
    inputs = [x, *(weights[name] for name in node.input[1:])]
    add(folder.name, node, inputs, [y], False, "backend/test/data/pytorch-converted")

recording.write()
