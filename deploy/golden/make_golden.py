#!/usr/bin/env python3
"""Writes the golden files that the networks in src/nn are compared with.

    python deploy/golden/make_golden.py --out tests/golden/nn

Needs PyTorch, torchvision and NumPy (pip install -r deploy/golden/requirements.txt, about 5 GB), which neither
building, testing nor running Hilum needs: run it only when src/nn changes what a network computes. Everything runs
in f32 on the CPU.

Weights and inputs come from a counter-based generator that src/nn/seeded.rs also implements, bit for bit, so the
files hold only outputs. Class-activation maps are computed here in another way than in Hilum: by automatic
differentiation of the whole network, as HiResCAM (the gradient of the target's logit with respect to the last
feature map, times that map, summed over the channels). For the ResNets CAM is HiResCAM times the number of cells
of the map, because each cell's gradient is the class weight divided by that number.
"""

import argparse
import json
import math
import pathlib
import platform

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet34, resnet50, resnet152, vgg16
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG

SEED = 20210913
SIGNIFICANT_DIGITS = 7

# ---- the generator (src/nn/seeded.rs) ------------------------------------------------------------------------


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def mix(state):
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniform(seed, name, n_elements, low, high):
    with np.errstate(over="ignore"):
        stream = mix(np.array([seed ^ fnv1a(name)], dtype=np.uint64))
        counters = np.arange(1, n_elements + 1, dtype=np.uint64)
        bits = mix(stream + counters * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    unit = bits.astype(np.float32) / np.float32(16777216.0)
    low, high = np.float32(low), np.float32(high)
    return unit * (high - low) + low


# ---- the ranges (seeded_values in src/nn/seeded.rs) --------------------------------------------------------------


LAST_LAYERS = {
    "fc.weight",
    "classifier.6.weight",
    "classif.weight",
    "fc2.weight",
    "classifier.weight",
    "classifier1.weight",
    "classifier2.weight",
    "classifier3.weight",
    "classifier.1.weight",
    "last.weight",
}


def seeded_values(network, architecture, name, shape):
    layer, _, leaf = name.rpartition(".")
    if architecture in ("resnet18", "resnet34"):
        end_of_branch = layer.startswith("layer") and layer.endswith(".bn2")
    else:
        end_of_branch = layer.endswith(".bn3")
    if leaf == "running_mean":
        low, high = -0.1, 0.1
    elif leaf == "running_var":
        low, high = 0.75, 1.25
    elif leaf == "bias":
        low, high = -0.05, 0.05
    elif len(shape) == 1:
        low, high = (0.1, 0.3) if end_of_branch else (0.8, 1.2)
    else:
        gain = 0.1 if name in LAST_LAYERS else 1.0
        bound = np.float32(math.sqrt(6.0 / math.prod(shape[1:])) * gain)
        low, high = -bound, bound
    return uniform(SEED, f"{network}/{name}", math.prod(shape), low, high)


def seed_weights(model, network, architecture):
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = tensor
        else:
            shape = tuple(tensor.shape)
            state[name] = torch.from_numpy(seeded_values(network, architecture, name, shape)).reshape(shape)
    model.load_state_dict(state, strict=True)
    return model.eval()


# ---- the networks at reduced width ------------------------------------------------------------------------------


def scaled(channels, width):
    return max(1, math.floor(channels * width + 0.5))


class NarrowResNet(ResNet):
    """torchvision's ResNet with scaled channels: torchvision's own stage builder and forward, other planes."""

    def __init__(self, block, layers, width, num_classes):
        super().__init__(block, layers, num_classes=num_classes)
        self.inplanes = scaled(64, width)
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.layer1 = self._make_layer(block, scaled(64, width), layers[0])
        self.layer2 = self._make_layer(block, scaled(128, width), layers[1], stride=2)
        self.layer3 = self._make_layer(block, scaled(256, width), layers[2], stride=2)
        self.layer4 = self._make_layer(block, scaled(512, width), layers[3], stride=2)
        self.fc = nn.Linear(scaled(512, width) * block.expansion, num_classes)


def narrow_vgg16(width, num_classes):
    plan = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
    layers, channels = [], 3
    for step in plan:
        if step == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers += [nn.Conv2d(channels, scaled(step, width), kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            channels = scaled(step, width)
    model = VGG(nn.Sequential(*layers), num_classes=num_classes, init_weights=False)
    hidden = scaled(4096, width)
    model.classifier = nn.Sequential(
        nn.Linear(channels * 7 * 7, hidden),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(hidden, num_classes),
    )
    return model


NARROW = {
    "resnet34": lambda width, n: NarrowResNet(BasicBlock, [3, 4, 6, 3], width, n),
    "resnet50": lambda width, n: NarrowResNet(Bottleneck, [3, 4, 6, 3], width, n),
    "resnet152": lambda width, n: NarrowResNet(Bottleneck, [3, 8, 36, 3], width, n),
    "vgg16": narrow_vgg16,
}
FULL = {"resnet34": resnet34, "resnet50": resnet50, "resnet152": resnet152, "vgg16": vgg16}


class UNet(nn.Module):
    """The lung segmenter: layer plan of imlab-uiip/lung-segmentation-2d, names as in models/README.md."""

    def __init__(self, width):
        super().__init__()
        channels, skips = 1, []
        for number, base in enumerate([32, 64, 64, 128], start=1):
            out = scaled(base, width)
            conv1, conv2 = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
            block = nn.ModuleDict({"conv1": conv1, "conv2": conv2})
            self.add_module(f"down{number}", block)
            skips.append(out)
            channels = out
        self.add_module("down5", nn.ModuleDict({"conv1": nn.Conv2d(channels, scaled(256, width), 3, padding=1)}))
        channels = scaled(256, width)
        for number, base in zip([4, 3, 2, 1], [256, 256, 128, 64]):
            out = scaled(base, width)
            block = nn.ModuleDict(
                {
                    "conv1": nn.Conv2d(channels, out, 3, padding=1),
                    "conv2": nn.Conv2d(out, out, 3, padding=1),
                    "merge": nn.Conv2d(out + skips[number - 1], out, 3, padding=1),
                }
            )
            self.add_module(f"up{number}", block)
            channels = out
        self.out = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x):
        skips = []
        for number in range(1, 5):
            block = self.get_submodule(f"down{number}")
            x = F.relu(block["conv2"](F.relu(block["conv1"](x))))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.relu(self.get_submodule("down5")["conv1"](x))
        for number in range(4, 0, -1):
            block = self.get_submodule(f"up{number}")
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.relu(block["conv2"](F.relu(block["conv1"](x))))
            x = F.relu(block["merge"](torch.cat([x, skips[number - 1]], dim=1)))
        return torch.sigmoid(self.out(x)).squeeze(1)


# ---- running them -------------------------------------------------------------------------------------------------


def image(network, side, channels):
    values = uniform(SEED, f"{network}/input", channels * side * side, -2.0, 2.0)
    return torch.from_numpy(values).reshape(1, channels, side, side)


def run(model, architecture, x, target):
    """Logits, embedding and class-activation map, the latter by automatic differentiation of the whole network."""
    kept = {}

    def keep_map(_module, _inputs, output):
        output.retain_grad()
        kept["map"] = output

    def keep_embedding(_module, inputs):
        kept["embedding"] = inputs[0].detach().clone()

    is_vgg = architecture == "vgg16"
    hooks = [
        (model.features if is_vgg else model.layer4).register_forward_hook(keep_map),
        (model.classifier[6] if is_vgg else model.fc).register_forward_pre_hook(keep_embedding),
    ]
    logits = model(x)
    logits[0, target].backward()
    for hook in hooks:
        hook.remove()
    feature_map = kept["map"]
    hirescam = (feature_map.grad * feature_map).sum(dim=1)[0].detach()
    rows, columns = hirescam.shape
    cam = hirescam if is_vgg else hirescam * (rows * columns)
    return logits[0].detach(), kept["embedding"][0], cam


def numbers(tensor):
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in tensor.flatten().tolist()]


def classifier_case(model, network, architecture, width, n_classes, side, target, head):
    seed_weights(model, network, architecture)
    logits, embedding, cam = run(model, architecture, image(network, side, 3), target)
    return {
        "network": network,
        "architecture": architecture,
        "width": width,
        "n_classes": n_classes,
        "image_side_pixels": side,
        "target_class_idx": target,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "logits": numbers(logits[:head]),
        "logits_sum": numbers(logits.double().sum())[0],
        "embedding": numbers(embedding[:head]),
        "embedding_sum": numbers(embedding.double().sum())[0],
        "activation_map": {"rows": cam.shape[0], "columns": cam.shape[1], "values": numbers(cam)},
    }


def main():
    parser = argparse.ArgumentParser(description="Write the golden files of the networks.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder, such as tests/golden/nn")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    versions = [f"{package.__name__} {package.__version__.split('+')[0]}" for package in (torch, torchvision)]
    made_with = ", ".join([*versions, "CPU f32", platform.machine()])

    def write(file_name, content):
        content = {"made_with": made_with, "seed": SEED, **content}
        (out / file_name).write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")

    streams = []
    for name, low, high in [("segmenter/out.bias", -0.05, 0.05), ("vgg16/input", -2.0, 2.0), ("a", -0.3, 0.7)]:
        bits = uniform(SEED, name, 16, low, high).view(np.uint32).tolist()
        streams.append({"name": name, "low": low, "high": high, "bits": bits})
    write("seeded.json", {"streams": streams})

    cases = []
    for architecture, make in NARROW.items():
        for side, target in [(224, 0), (320, 1)]:
            network = f"{architecture}-narrow-{side}"
            cases.append(classifier_case(make(0.125, 3), network, architecture, 0.125, 3, side, target, 512))
            print(f"{network}: logits {cases[-1]['logits']}")
    write("narrow.json", {"cases": cases})

    for side, suffix in [(224, ""), (512, "_512")]:
        cases = []
        for architecture, make in FULL.items():
            network = f"{architecture}-full{suffix}"
            cases.append(classifier_case(make(weights=None), network, architecture, 1.0, 1000, side, 7, 64))
            print(f"{network}: logits {cases[-1]['logits'][:4]}")
        write(f"full{suffix}.json", {"cases": cases})

    network, width, side, step = "unet", 0.25, 128, 8
    model = seed_weights(UNet(width), network, "unet")
    with torch.no_grad():
        probabilities = model(image(network, side, 1))[0]
    print(f"{network}: {probabilities.min():.4f} to {probabilities.max():.4f}")
    write(
        "unet.json",
        {
            "network": network,
            "width": width,
            "input_side_pixels": side,
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "every_nth": step,
            "probabilities": numbers(probabilities[::step, ::step]),
            "probabilities_sum": numbers(probabilities.double().sum())[0],
        },
    )


if __name__ == "__main__":
    main()
