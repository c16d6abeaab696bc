#!/usr/bin/env python3
"""Writes small checkpoints with PyTorch itself, in every container that `hilum model import` reads.

    python deploy/golden/make_checkpoints.py tests/golden/checkpoints
"""

import collections
import pathlib
import sys
import zipfile

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


def save_script(module: torch.nn.Module, path: pathlib.Path) -> None:
    """Without the records for debugging, which name folders of the machine that wrote them."""
    torch.jit.script(module).save(str(path))
    with zipfile.ZipFile(path) as archive:
        records = [(entry, archive.read(entry)) for entry in archive.namelist() if not entry.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content)


save_script(linear, folder / "script.pt")


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


class CornerOfHalves(Corner):
    """The same with a buffer of whole numbers, which indexes, and one of half precision."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.tensor([1, 0]))
        self.register_buffer("scale", torch.tensor([2.0], dtype=torch.float16))

    def forward(self, image):
        corner = image.flatten(1)[:, :1]
        return torch.cat([corner, -corner], 1)[:, self.order] * self.scale


class CornerAsOneLogit(torch.nn.Module):
    """The corner sample as the only logit, the mean of each channel as embedding, and one map of one cell."""

    def forward(self, image):
        corner = image.flatten(1)[:, :1]
        return corner, image.mean((2, 3)), corner.view(-1, 1, 1, 1)


class VolumeMeans(torch.nn.Module):
    """The mean of each channel of a volume as logits, and twice that as embedding."""

    def forward(self, volume):
        means = volume.mean((2, 3, 4))
        return means, means * 2


class VolumeWithMaps(torch.nn.Module):
    def forward(self, volume):
        means = volume.mean((2, 3, 4))
        return means, means, volume


save_script(CornerAsOneLogit(), folder / "corner_as_one_logit.pt")
save_script(VolumeMeans(), folder / "volume_means.pt")
save_script(VolumeWithMaps(), folder / "volume_with_maps.pt")
save_script(Corner(), folder / "corner.pt")
save_script(CornerOfHalves(), folder / "corner_of_halves.pt")
save_script(CornerWithAll(), folder / "corner_with_all.pt")
for file in sorted(folder.iterdir()):
    print(file.name, file.stat().st_size)
