"""PyTorch's side of `make bench-infer`: the same ensemble, eager and after `optimize_for_inference`, and the speed of a
matrix product. Runs in the environment of `make golden`; prints JSON."""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch import nn  # noqa: E402


class LungUNet(nn.Module):
    """The layer plan of imlab-uiip/lung-segmentation-2d (models/README.md)."""

    def __init__(self):
        super().__init__()
        plan = {
            "down1": (1, 32, 32), "down2": (32, 64, 64), "down3": (64, 64, 64), "down4": (64, 128, 128),
            "up4a": (256, 256, 256), "up4b": (384, 256), "up3a": (256, 256, 256), "up3b": (320, 256),
            "up2a": (256, 128, 128), "up2b": (192, 128), "up1a": (128, 64, 64), "up1b": (96, 64),
        }
        self.bottom = nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU())
        self.blocks = nn.ModuleDict({
            name: nn.Sequential(*[
                layer for pair in zip(sides, sides[1:]) for layer in (nn.Conv2d(*pair, 3, padding=1), nn.ReLU())
            ])
            for name, sides in plan.items()
        })
        self.out = nn.Conv2d(64, 1, 3, padding=1)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, image):
        kept = []
        for level in range(1, 5):
            image = self.blocks[f"down{level}"](image)
            kept.append(image)
            image = self.pool(image)
        image = self.bottom(image)
        for level in range(4, 0, -1):
            image = self.blocks[f"up{level}a"](self.grow(image))
            image = self.blocks[f"up{level}b"](torch.cat([image, kept[level - 1]], 1))
        return torch.sigmoid(self.out(image))


def networks():
    names = ["resnet34", "resnet50", "resnet152", "vgg16"]
    made = {name: getattr(torchvision.models, name)(weights=None, num_classes=2).eval() for name in names}
    return {"lung segmenter": LungUNet().eval(), **made}


def inputs(name, batch):
    return torch.randn(batch, 1, 256, 256) if name == "lung segmenter" else torch.randn(batch, 3, 224, 224)


def median_ms(work, repetitions):
    work(), work()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ways", nargs="+", default=["eager", "optimised"])
    arguments = parser.parse_args()
    torch.manual_seed(1)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "networks": {}}
    with torch.inference_mode():
        a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
        best = min(median_ms(lambda: a @ b, 5) for _ in range(3))
        result["sgemm_gflops"] = 2 * 2048**3 / best / 1e6
        for name, network in networks().items():
            for batch in arguments.batch:
                image = inputs(name, batch)
                entry = result["networks"].setdefault(name, {}).setdefault(str(batch), {})
                if "eager" in arguments.ways:
                    entry["eager"] = median_ms(lambda: network(image), arguments.repetitions) / batch
                if "optimised" in arguments.ways:
                    fast = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(network, image)))
                    entry["optimised"] = median_ms(lambda: fast(image), arguments.repetitions) / batch
    print(json.dumps(result))


main()
