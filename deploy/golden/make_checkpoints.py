#!/usr/bin/env python3
"""Writes small checkpoints with PyTorch itself, in every container that `hilum model import` reads.

    python deploy/golden/make_checkpoints.py tests/golden/checkpoints
"""

import collections
import pathlib
import sys

import torch
from safetensors.torch import save_file

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
state = collections.OrderedDict(
    [
        ("weight", torch.arange(6, dtype=torch.float32).reshape(2, 3) / 2),
        ("transposed", torch.arange(6, dtype=torch.float32).reshape(2, 3).t()[1:]),
        ("half", torch.tensor([1.0, -2.0], dtype=torch.float16)),
        ("bn.running_mean", torch.tensor([0.25])),
        ("bn.num_batches_tracked", torch.tensor(7)),
    ]
)
torch.save(state, folder / "zip.pth")
torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(
    {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best": 0.5},
    folder / "wrapped.pth",
)
torch.save(
    {
        name: torch.nn.Parameter(tensor, requires_grad=False) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    },
    folder / "parameters.pth",
)
save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "plain.safetensors")
torch.manual_seed(1)
linear = torch.nn.Linear(2, 2)
torch.save(linear, folder / "module.pth")
torch.jit.script(linear).save(str(folder / "script.pt"))


class Corner(torch.nn.Module):
    """The corner sample of each image and its negative as logits."""

    def forward(self, image):
        corner = image.flatten(1)[:, :1]
        return torch.cat([corner, -corner], 1)


class CornerWithAll(Corner):
    def forward(self, image):
        corner = image.flatten(1)[:, :1]
        logits = torch.cat([corner, -corner], 1)
        return logits, image.mean((2, 3)), logits.view(-1, 2, 1, 1) * torch.ones(1, 2, 2, 3)


torch.jit.script(Corner()).save(str(folder / "corner.pt"))
torch.jit.script(CornerWithAll()).save(str(folder / "corner_with_all.pt"))
for file in sorted(folder.iterdir()):
    print(file.name, file.stat().st_size)
