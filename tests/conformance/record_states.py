"""Records state files as PyTorch and Keras users have them, after a few real training steps.

`state_pytorch.safetensors` is a small network's state_dict with its batch norm under `layer1.bn.`;
`state_pytorch_plain.safetensors` a batch norm's alone; `state_keras.safetensors` two layers' weights by Keras' names,
one under `block1_bn/`, one without a prefix.
"""

import os
from collections import OrderedDict

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from safetensors.torch import save_file

from common import HERE


def save(stem, tensors):
    assert all(tensor.isfinite().all() for tensor in tensors.values()), stem
    file = HERE / f"{stem}.safetensors"
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, file)
    file.chmod(0o644)
    print(f"{stem}: {len(tensors)} tensors, {file.stat().st_size} bytes")


def train(model, shape, steps, seed):
    """A few steps of gradient descent on noise."""
    generator = torch.Generator().manual_seed(seed)
    descent = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        descent.zero_grad()
        output = model(torch.randn(shape, generator=generator) * 2 + 0.5)
        (output - torch.randn(output.shape, generator=generator)).square().mean().backward()
        descent.step()


torch.manual_seed(1)
network = torch.nn.Sequential(OrderedDict(
    layer1=torch.nn.Sequential(OrderedDict(
        conv=torch.nn.Conv2d(3, 6, 3, padding=1, bias=False), bn=torch.nn.BatchNorm2d(6), act=torch.nn.ReLU())),
    layer2=torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(6, 4, 1), bn=torch.nn.BatchNorm2d(4))),
    head=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 5 * 5, 2)),
))
train(network, (8, 3, 5, 5), 7, 2)
save("state_pytorch", network.state_dict())

plain = torch.nn.BatchNorm2d(5)
train(plain, (8, 5, 4, 4), 3, 3)
save("state_pytorch_plain", plain.state_dict())

states = {}
for prefix, channels, seed in (("block1_bn/", 6, 4), ("", 4, 5)):
    layer = keras.layers.BatchNormalization()
    layer.build((None, 4, 4, channels))
    layer.train()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        output = layer(torch.randn((8, 4, 4, channels), generator=generator) * 2 + 0.5, training=True)
        loss = (output - torch.randn(output.shape, generator=generator)).square().mean()
        gradients = torch.autograd.grad(loss, [weight.value for weight in layer.trainable_weights])
        for weight, gradient in zip(layer.trainable_weights, gradients):
            weight.assign(weight.value.detach() - 0.05 * gradient)
    states |= {prefix + weight.name: weight.value for weight in layer.weights}
save("state_keras", states)
