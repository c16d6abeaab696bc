#!/usr/bin/env python3
"""Writes what training in src/train is compared with: five steps of PyTorch's optimisers, and the losses of twenty steps of
narrow networks.

    python deploy/golden/make_training.py --out tests/golden/nn

Weights and images come from the generator of make_golden.py. Batch normalisation trains (batch statistics), dropout is off
(p = 0): its random numbers are not PyTorch's elsewhere. The full-width ensemble is compared by train_parity.py instead, by
the real binary and not from a file.
"""

import argparse
import json
import pathlib
import platform

import torch
import torchvision
from make_golden import NARROW, SEED, UNet, numbers, seed_weights, uniform
from torch import nn
from torch.nn import functional as F

N_STEPS = 20
N_IMAGES = 8
WIDTH = 0.0625
SIDE = 64


def optimiser_cases():
    """Five steps on 0.5 * sum(a * (x - b)^2), as src/train/optimiser.rs does them."""
    makers = {
        "sgd": lambda x, momentum, decay: torch.optim.SGD(x, lr=0.1, momentum=momentum, weight_decay=decay),
        "adam": lambda x, _, decay: torch.optim.Adam(x, lr=0.1, weight_decay=decay),
        "adam_w": lambda x, _, decay: torch.optim.AdamW(x, lr=0.1, weight_decay=decay),
    }
    a, b = torch.tensor([1.0, 2.0, 0.25]), torch.tensor([0.0, 1.0, -1.0])
    cases = []
    for method, momentum, decay in [("sgd", 0.0, 0.0), ("sgd", 0.9, 0.01), ("adam", 0.9, 0.0), ("adam", 0.9, 0.01),
                                    ("adam_w", 0.9, 0.0), ("adam_w", 0.9, 0.1)]:
        x = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
        optimiser = makers[method]([x], momentum, decay)
        for _ in range(5):
            optimiser.zero_grad()
            (0.5 * (a * (x - b) ** 2).sum()).backward()
            optimiser.step()
        cases.append({"method": method, "momentum": momentum, "weight_decay": decay, "values": x.detach().double().tolist()})
    return cases


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def lung_loss(logits, masks):
    """Binary cross-entropy, and 1 minus the soft Dice of each image with 1 above and below."""
    found = torch.sigmoid(logits)
    both, either = (found * masks).flatten(1).sum(1), found.flatten(1).sum(1) + masks.flatten(1).sum(1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - ((2 * both + 1) / (either + 1)).mean()


class LogitUNet(UNet):
    def forward(self, x):
        kept = []
        hook = self.out.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        super().forward(x)
        hook.remove()
        return kept[0].squeeze(1)


def images(network, channels):
    values = uniform(SEED, f"{network}/images", N_IMAGES * channels * SIDE * SIDE, -2.0, 2.0)
    return torch.from_numpy(values).reshape(N_IMAGES, channels, SIDE, SIDE)


def losses(model, x, loss_of, optimiser):
    model.train()
    found = []
    for _ in range(N_STEPS):
        optimiser.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def training_cases():
    cases = []
    # At 0.01 PyTorch's own losses of ResNet-152 with and without oneDNN are 1.4e-2 apart after twenty steps, at 5e-4 3e-4:
    # only there they say something of another program.
    for architecture, method, rate in [("resnet34", "sgd", 0.01), ("resnet50", "adam", 1e-3), ("resnet152", "sgd", 5e-4),
                                       ("vgg16", "adam_w", 1e-3), ("unet", "adam", 1e-3)]:
        network = f"{architecture}-training"
        is_unet = architecture == "unet"
        model = LogitUNet(WIDTH) if is_unet else without_dropout(NARROW[architecture](WIDTH, 2))
        seed_weights(model, network, architecture)
        parameters = model.parameters()
        optimiser = {
            "sgd": lambda: torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=1e-4),
            "adam": lambda: torch.optim.Adam(parameters, lr=rate, weight_decay=1e-4),
            "adam_w": lambda: torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4),
        }[method]()
        if is_unet:
            masks = torch.from_numpy(uniform(SEED, f"{network}/masks", N_IMAGES * SIDE * SIDE, -1.0, 1.0))
            masks = (masks > 0).float().reshape(N_IMAGES, SIDE, SIDE)
            found = losses(model, images(network, 1), lambda logits: lung_loss(logits, masks), optimiser)
        else:
            targets, weights = torch.arange(N_IMAGES) % 2, torch.tensor([0.5, 2.0])
            loss_of = lambda logits: F.cross_entropy(logits, targets, weight=weights, label_smoothing=0.1)  # noqa: E731
            found = losses(model, images(network, 3), loss_of, optimiser)
        print(f"{network}: {found[0]:.4f} to {found[-1]:.4f}")
        cases.append({"network": network, "architecture": architecture, "width": WIDTH, "side_pixels": SIDE,
                      "n_images": N_IMAGES, "method": method, "learning_rate": rate, "losses": numbers(torch.tensor(found))})
    return cases


def main():
    parser = argparse.ArgumentParser(description="Write the golden files of training.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder, such as tests/golden/nn")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    versions = [f"{package.__name__} {package.__version__.split('+')[0]}" for package in (torch, torchvision)]
    made_with = ", ".join([*versions, "CPU f32", platform.machine()])
    compact = {"indent": None, "separators": (",", ":")}
    (out / "optimisers.json").write_text(json.dumps(optimiser_cases(), **compact) + "\n")
    training = {"made_with": made_with, "seed": SEED, "cases": training_cases()}
    (out / "training.json").write_text(json.dumps(training, **compact) + "\n")


if __name__ == "__main__":
    main()
