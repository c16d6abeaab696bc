#!/usr/bin/env python3
"""Writes the golden files of every network in src/nn for `make parity`: one small file each, eight inputs.

    python deploy/golden/make_parity.py --out tests/golden/nn/parity [NAME ...]

torchvision and timm are the reference where they define the network; the rest is written here from the publications'
descriptions, in PyTorch's own idiom, by the developer who wrote src/nn. Networks are narrow, so that files and tests stay
small; weights and inputs come from the generator of make_golden.py. Every map of regions is computed by automatic
differentiation of the *whole* network, also where Hilum has a closed form.

An output that is longer than MAX_VALUES is sampled evenly; its sum and its sum of squares cover the rest.
"""

import argparse
import functools
import importlib
import json
import math
import pathlib
import platform
import types

import timm
import torch
import torchvision
from make_golden import NARROW, SEED, NarrowResNet, UNet, numbers, scaled, seed_weights, uniform
from torch import nn
from torch.nn import functional as F
from torchvision.models import inception as tv_inception
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import VGG
from torchvision.ops import nms

# timm's package exports a function of the module's name.
timm_irv2 = importlib.import_module("timm.models.inception_resnet_v2")

N_INPUTS = 8
MAX_VALUES = 400
IG_STEPS = 9
IG_BASELINE = -1.0

# ---- inputs: blocks of 16 x 16 whose contrast grows from input to input, under noise (golden image in parity_tests.rs)


def image(network, idx, shape):
    *channels, rows, columns = shape
    n_channels = math.prod(channels)
    block_rows, block_columns = -(-rows // 16), -(-columns // 16)
    contrast = 0.5 + 0.75 * idx
    name = f"{network}/input{idx}"
    coarse = uniform(SEED, f"{name}/coarse", n_channels * block_rows * block_columns, -contrast, contrast)
    coarse = torch.from_numpy(coarse).reshape(n_channels, block_rows, block_columns)
    coarse = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :rows, :columns]
    fine = torch.from_numpy(uniform(SEED, f"{name}/fine", n_channels * rows * columns, -0.5, 0.5))
    return (coarse + fine.reshape(n_channels, rows, columns)).reshape(shape)


def images(network, shape):
    return torch.stack([image(network, idx, shape) for idx in range(N_INPUTS)])


# ---- maps by automatic differentiation of the whole network ----------------------------------------------------------


def with_maps(model, map_layer, last_linear, x, targets, is_pooled, logits_of=lambda output: output):
    kept = {}

    def keep_map(_module, _inputs, output):
        kept["map"] = output
        output.retain_grad()

    def keep_embedding(_module, inputs):
        kept["embedding"] = inputs[0].detach().clone()

    handles = [map_layer.register_forward_hook(keep_map), last_linear.register_forward_pre_hook(keep_embedding)]
    x = x.clone().requires_grad_(True)
    logits = logits_of(model(x))
    logits[torch.arange(len(targets)), targets].sum().backward()
    for handle in handles:
        handle.remove()
    a, g = kept["map"].detach(), kept["map"].grad
    space = tuple(range(2, a.ndim))
    hirescam = (a * g).sum(1)
    weights = g.mean(space, keepdim=True)
    alpha = g**2 / (2 * g**2 + a.sum(space, keepdim=True) * g**3 + 1e-6)
    outputs = {
        "logits": logits.detach(),
        "embedding": kept["embedding"],
        "hirescam": hirescam,
        "gradcam": F.relu((weights * a).sum(1)),
        "gradcam_plus_plus": F.relu(((F.relu(g) * alpha).sum(space, keepdim=True) * a).sum(1)),
    }
    if is_pooled:
        outputs["cam"] = hirescam * math.prod(a.shape[2:])
    return outputs


def path_gradient(scalar_of, x):
    """Integrated Gradients of one image without a batch dimension, one point at a time."""
    baseline = torch.full_like(x, IG_BASELINE)
    total = torch.zeros_like(x)
    for step in range(IG_STEPS):
        point = (baseline + step / (IG_STEPS - 1) * (x - baseline)).requires_grad_(True)
        total += torch.autograd.grad(scalar_of(point[None]), point)[0]
    return total / IG_STEPS * (x - baseline)


def grey(attribution):
    picture = attribution.abs().sum(0)
    low, high = picture.min(), torch.quantile(picture, 0.99)
    return ((picture - low) / (high - low)).clip(0, 1)


def image_classifier(make, map_of, linear_of, shape=(3, 96, 112), is_pooled=True, width=0.125, n_classes=3):
    def run(network, architecture):
        model = seed_weights(make(width, n_classes), network, architecture)
        x = images(network, shape)
        targets = torch.arange(N_INPUTS) % n_classes
        outputs = with_maps(model, map_of(model), linear_of(model), x, targets, is_pooled)
        outputs["integrated_gradients"] = path_gradient(lambda point: model(point)[0, 1], x[-1])
        return model, outputs

    return {"run": run, "width": width, "n_classes": n_classes, "shape": shape}


# ---- torchvision and timm at an eighth of their width ----------------------------------------------------------------


def resnet(block, layers):
    return image_classifier(
        lambda width, n: NarrowResNet(block, layers, width, n), lambda model: model.layer4, lambda model: model.fc
    )


def narrow_vgg(groups, width, n_classes):
    layers, channels = [], 3
    for group_idx, repeats in enumerate(groups):
        for _ in range(repeats):
            out = scaled(min(512, 64 * 2**group_idx), width)
            layers.extend([nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)])
            channels = out
        layers.append(nn.MaxPool2d(2, 2))
    model = VGG(nn.Sequential(*layers), num_classes=n_classes, init_weights=False)
    hidden = scaled(4096, width)
    model.classifier[0] = nn.Linear(channels * 49, hidden)
    model.classifier[3] = nn.Linear(hidden, hidden)
    model.classifier[6] = nn.Linear(hidden, n_classes)
    return model


def eighth(channels):
    return channels if channels == 3 else channels // 8


class EighthConv(tv_inception.BasicConv2d):
    def __init__(self, in_channels, out_channels, **rest):
        super().__init__(eighth(in_channels), eighth(out_channels), **rest)


def narrow_inception_v3(_width, n_classes):
    blocks = [tv_inception.InceptionA, tv_inception.InceptionB, tv_inception.InceptionC, tv_inception.InceptionD]
    blocks += [tv_inception.InceptionE, tv_inception.InceptionAux]
    blocks = [EighthConv, *(functools.partial(block, conv_block=EighthConv) for block in blocks)]
    model = tv_inception.Inception3(n_classes, aux_logits=False, inception_blocks=blocks, init_weights=False)
    model.fc = nn.Linear(2048 // 8, n_classes)
    return model


def narrow_inception_resnet_v2(_width, n_classes):
    original_conv, original_nn = timm_irv2.ConvNormAct, timm_irv2.nn

    def conv_norm(in_channels, out_channels, **rest):
        return original_conv(eighth(in_channels), eighth(out_channels), **rest)

    def plain_conv(in_channels, out_channels, **rest):
        return nn.Conv2d(in_channels // 8, out_channels // 8, **rest)

    try:
        timm_irv2.ConvNormAct = conv_norm
        timm_irv2.nn = types.SimpleNamespace(**{**vars(nn), "Conv2d": plain_conv})
        model = timm_irv2.InceptionResnetV2(num_classes=n_classes)
    finally:
        timm_irv2.ConvNormAct, timm_irv2.nn = original_conv, original_nn
    model.classif = nn.Linear(1536 // 8, n_classes)
    return model


class Detrac(NarrowResNet):
    """torchvision's ResNet-50; Flatten, Dense(1024, relu), Dense(classes)."""

    def __init__(self, width, n_classes):
        super().__init__(Bottleneck, [3, 4, 6, 3], width, n_classes)
        hidden = scaled(1024, width)
        self.fc1 = nn.Linear(self.fc.in_features * 49, hidden)
        self.fc2 = nn.Linear(hidden, n_classes)
        self.avgpool = nn.Identity()
        self.fc = nn.Identity()

    def _forward_impl(self, x):
        return self.fc2(torch.relu(self.fc1(super()._forward_impl(x))))


# ---- attention VGG-16 -------------------------------------------------------------------------------------------------


class AttentionVgg(nn.Module):
    def __init__(self, width, n_classes, norm, fusion, tap):
        super().__init__()
        self.features = narrow_vgg([2, 2, 3, 3, 3], width, 2).features
        self.norm, self.fusion, self.tap = norm, fusion, tap
        self.deep, shallow = scaled(512, width), scaled(256, width)
        self.projector = nn.Conv2d(shallow, self.deep, 1, bias=False)
        for level in (1, 2, 3):
            self.add_module(f"attention{level}", nn.Conv2d(self.deep, 1, 1, bias=False))
        if fusion == "concat":
            self.classifier = nn.Linear(3 * self.deep, n_classes)
        else:
            for level in (1, 2, 3):
                self.add_module(f"classifier{level}", nn.Linear(self.deep, n_classes))

    def forward(self, x, everything=False):
        tapped = []
        for layer_idx, layer in enumerate(self.features):
            x = layer(x)
            # Layers 15, 22 and 29 are the last ReLUs of groups 3 to 5; 16, 23 and 30 their pools.
            if layer_idx in ((15, 22, 29) if self.tap == "before_pool" else (16, 23, 30)):
                tapped.append(x.clone())
        g = F.adaptive_avg_pool2d(x, 1)
        levels = [self.projector(tapped[0]), tapped[1], tapped[2]]
        attention, descriptors = [], []
        for level, l in enumerate(levels, start=1):
            c = self.get_submodule(f"attention{level}")(l + g)
            a = c.flatten(1).softmax(1).view_as(c) if self.norm == "softmax" else torch.sigmoid(c)
            weighted = a * l
            descriptors.append(weighted.sum((2, 3)) if self.norm == "softmax" else weighted.mean((2, 3)))
            attention.append(a[:, 0])
        if self.fusion == "concat":
            logits = self.classifier(torch.cat(descriptors, 1))
        else:
            logits = sum(self.get_submodule(f"classifier{i}")(d) for i, d in enumerate(descriptors, start=1)) / 3
        return (logits, torch.cat(descriptors, 1), attention) if everything else logits


def attention_vgg(norm, fusion, tap, width=0.125, n_classes=3, shape=(3, 96, 112)):
    def run(network, architecture):
        model = seed_weights(AttentionVgg(width, n_classes, norm, fusion, tap), network, architecture)
        x = images(network, shape)
        with torch.no_grad():
            logits, embedding, attention = model(x, everything=True)
        even = [a * (a.shape[1] * a.shape[2] if norm == "softmax" else 1) for a in attention]
        enlarged = [F.interpolate(a[:, None], attention[0].shape[1:], mode="bilinear")[:, 0] for a in even]
        outputs = {"logits": logits, "embedding": embedding, "attention": sum(enlarged) / 3}
        outputs |= {f"attention{level}": a for level, a in enumerate(attention, start=1)}
        outputs["integrated_gradients"] = path_gradient(lambda point: model(point)[0, 1], x[-1])
        return model, outputs

    options = {"attn_norm": norm, "fusion": fusion, "tap": tap}
    return {"run": run, "width": width, "n_classes": n_classes, "shape": shape, "attention": options}


# ---- Hu et al. --------------------------------------------------------------------------------------------------------


class MultiScale(nn.Module):
    def __init__(self, width, n_classes):
        super().__init__()
        channels = 1
        for group, (out, repeats) in enumerate([(32, 2), (64, 2), (128, 3), (256, 3), (256, 3)], start=1):
            out = scaled(out, width)
            for number in range(1, repeats + 1):
                self.add_module(f"conv{group}_{number}", nn.Conv2d(channels, out, 3, padding="same"))
                self.add_module(f"bn_conv{group}_{number}", nn.BatchNorm2d(out, eps=1e-3))
                channels = out
            if group >= 3:
                head = nn.Sequential()
                head.add_module("conv", nn.Conv2d(channels, n_classes, 1))
                head.add_module("bn", nn.BatchNorm2d(n_classes, eps=1e-3))
                self.add_module(f"classifier{group}", head)

    def forward(self, x):
        maps = []
        for group, repeats in enumerate([2, 2, 3, 3, 3], start=1):
            for number in range(1, repeats + 1):
                x = F.relu(getattr(self, f"bn_conv{group}_{number}")(getattr(self, f"conv{group}_{number}")(x)))
            # TensorFlow's SAME: an odd side is padded at its end with what never wins.
            x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-math.inf), 2)
            if group >= 3:
                maps.append(F.relu(getattr(self, f"classifier{group}")(x)))
        logits = [m.flatten(2).max(2).values for m in maps]
        return logits, maps, x


def multi_scale(network, architecture, width=0.25, n_classes=3, shape=(1, 92, 124)):
    model = seed_weights(MultiScale(width, n_classes), network, architecture)
    x = images(network, shape)
    with torch.no_grad():
        logits, maps, last = model(x)
    outputs = {"logits": sum(logits) / 3, "embedding": last.mean((2, 3))}
    for level, (z, m) in enumerate(zip(logits, maps), start=3):
        outputs |= {f"logits{level}": z, f"class_maps{level}": m}
    of_target = [m[torch.arange(N_INPUTS), torch.arange(N_INPUTS) % n_classes] for m in maps]
    enlarged = [F.interpolate(m[:, None], maps[0].shape[2:], mode="bilinear")[:, 0] for m in of_target]
    outputs["class_map"] = sum(enlarged) / 3
    greys = [grey(path_gradient(lambda point, i=i: model(point)[0][i][0, 2], x[-1])) for i in range(3)]
    product = math.prod(g + 2 for g in greys)
    outputs["joint_saliency"] = (product - product.min()) / (product.max() - product.min())
    return model, outputs


# ---- COVNet -----------------------------------------------------------------------------------------------------------


class Covnet(nn.Module):
    def __init__(self, width, n_classes):
        super().__init__()
        children = list(NarrowResNet(Bottleneck, [3, 4, 6, 3], width, 2).children())
        self.pretrained_model = nn.Sequential(*children[:-2])
        self.classifer = nn.Linear(children[-1].in_features, n_classes)

    def forward(self, slices):
        maps = self.pretrained_model(slices)
        features = maps.mean((2, 3))
        return self.classifer(features.amax(0, keepdim=True)), features, maps


def covnet(mode, width=0.0625, n_classes=3, shape=(5, 3, 64, 80)):
    def run(network, architecture):
        model = seed_weights(Covnet(width, n_classes), network, architecture)
        if mode == "batch":
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train()
        kept = {name: [] for name in ("logits", "embedding", "slice_contributions", "cam")}
        for idx, scan in enumerate(images(network, shape)):
            target = idx % n_classes
            logits, features, maps = model(scan)
            maps.retain_grad()
            features.retain_grad()
            logits[0, target].backward()
            kept["logits"].append(logits[0].detach())
            kept["embedding"].append(features.amax(0).detach())
            kept["slice_contributions"].append((features.grad * features).sum(1).detach())
            cam = (maps.grad * maps).sum(1) * math.prod(maps.shape[2:])
            kept["cam"].append(cam.detach())
        return model, {name: torch.stack(values) for name, values in kept.items()}

    return {"run": run, "width": width, "n_classes": n_classes, "shape": shape, "bn_mode": mode}


# ---- DeCoVNet ---------------------------------------------------------------------------------------------------------


def modules(**children):
    return nn.ModuleDict(children)


class Decovnet(nn.Module):
    def __init__(self, width, n_classes):
        super().__init__()
        c16, c32, c64, c128 = (scaled(channels, width) for channels in (16, 32, 64, 128))

        def stage(channels, inner, out, stride):
            branch2 = modules(
                a=nn.Conv3d(channels, inner, (3, 1, 1), padding=(1, 0, 0), bias=False),
                a_bn=nn.BatchNorm3d(inner),
                b=nn.Conv3d(inner, inner, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False),
                b_bn=nn.BatchNorm3d(inner),
                c=nn.Conv3d(inner, out, 1, bias=False),
                c_bn=nn.BatchNorm3d(out),
            )
            branch1 = nn.Conv3d(channels, out, 1, stride=(1, stride, stride), bias=False)
            block = modules(branch1=branch1, branch1_bn=nn.BatchNorm3d(out), branch2=branch2)
            return modules(pathway0_res0=block)

        stem = nn.Conv3d(2, c16, (5, 7, 7), stride=(1, 2, 2), padding=(2, 3, 3), bias=False)
        self.s1 = modules(pathway0_stem=modules(conv=stem, bn=nn.BatchNorm3d(c16)))
        self.s2 = stage(c16, c16, c64, 1)
        self.s3 = stage(c64, c32, c128, 2)
        self.tap = nn.Identity()
        self.head = nn.Sequential(
            nn.AdaptiveMaxPool3d((16, 24, 36)),
            nn.Conv3d(c128, c64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool3d((4, 12, 18)),
            nn.Conv3d(c64, c32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool3d((1, 6, 9)),
            nn.Dropout3d(0),
            nn.Conv3d(c32, c32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool3d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(c32, c32), nn.Linear(c32, n_classes))

    @staticmethod
    def residual(stage, x):
        block = stage["pathway0_res0"]
        b = block["branch2"]
        y = F.relu(b["a_bn"](b["a"](x)))
        y = F.relu(b["b_bn"](b["b"](y)))
        return F.relu(block["branch1_bn"](block["branch1"](x)) + b["c_bn"](b["c"](y)))

    def forward(self, x):
        stem = self.s1["pathway0_stem"]
        x = F.max_pool3d(F.relu(stem["bn"](stem["conv"](x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = F.max_pool3d(self.residual(self.s2, x), (2, 1, 1))
        return self.classifier(self.head(self.tap(self.residual(self.s3, x))))


def decovnet(network, architecture, width=0.25, n_classes=2, shape=(2, 7, 96, 112)):
    model = seed_weights(Decovnet(width, n_classes), network, architecture)
    targets = torch.arange(N_INPUTS) % n_classes
    return model, with_maps(model, model.tap, model.classifier[0], images(network, shape), targets, False)


# ---- UNet++ -----------------------------------------------------------------------------------------------------------


class UNetPlusPlus(nn.Module):
    def __init__(self, width, n_classes):
        super().__init__()
        self.encoder = NarrowResNet(Bottleneck, [3, 4, 6, 3], width, 2)
        del self.encoder.fc
        self.wide = [scaled(64, width), *(4 * scaled(64 * 2**stage, width) for stage in range(4))]
        self.narrow = [scaled(channels, width) for channels in (32, 64, 128, 256)]
        for level in range(4):
            for number in range(1, 5 - level):
                below = self.wide[level + 1] if number == 1 else self.narrow[level + 1]
                channels = self.wide[level] + (number - 1) * self.narrow[level] + below
                self.add_module(f"x{level}_{number}", self.node(channels, self.narrow[level]))
        self.last = self.node(self.narrow[0], scaled(16, width))
        self.out = nn.Conv2d(scaled(16, width), n_classes, 1)

    @staticmethod
    def node(channels, out):
        return modules(
            conv1=nn.Conv2d(channels, out, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(out),
            conv2=nn.Conv2d(out, out, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(out),
        )

    @staticmethod
    def through(node, x):
        x = F.relu(node["bn1"](node["conv1"](x)))
        return F.relu(node["bn2"](node["conv2"](x)))

    def forward(self, x):
        e = self.encoder
        known = {(0, 0): e.relu(e.bn1(e.conv1(x)))}
        known[1, 0] = e.layer1(e.maxpool(known[0, 0]))
        known[2, 0] = e.layer2(known[1, 0])
        known[3, 0] = e.layer3(known[2, 0])
        known[4, 0] = e.layer4(known[3, 0])

        def value(level, number):
            if (level, number) not in known:
                row = [value(level, earlier) for earlier in range(number)]
                below = F.interpolate(value(level + 1, number - 1), scale_factor=2, mode="bilinear")
                known[level, number] = self.through(getattr(self, f"x{level}_{number}"), torch.cat([*row, below], 1))
            return known[level, number]

        return self.out(self.through(self.last, F.interpolate(value(0, 4), scale_factor=2, mode="bilinear")))


def unet_plus_plus(network, architecture, width=0.25, n_classes=2, shape=(3, 64, 96)):
    model = seed_weights(UNetPlusPlus(width, n_classes), network, architecture)
    with torch.no_grad():
        return model, {"logits": model(images(network, shape))}


# ---- lungmask R231 ----------------------------------------------------------------------------------------------------


class R231(nn.Module):
    def __init__(self, width):
        super().__init__()

        def block(channels, out):
            layers = []
            for inputs in (channels, out):
                layers += [nn.Conv2d(inputs, out, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(out)]
            return modules(block=nn.Sequential(*layers))

        c = [1, *(scaled(2**power, width) for power in range(6, 11))]
        self.down_path = nn.ModuleList(block(c[i], c[i + 1]) for i in range(5))
        self.up_path = nn.ModuleList(
            modules(
                up=nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(c[i + 1], c[i], 1)),
                conv_block=block(2 * c[i], c[i]),
            )
            for i in range(4, 0, -1)
        )
        self.last = nn.Conv2d(c[1], 3, 1)

    def forward(self, x):
        bridges = []
        for level in self.down_path[:-1]:
            bridges.append(level["block"](x))
            x = F.avg_pool2d(bridges[-1], 2)
        x = self.down_path[-1]["block"](x)
        for step in self.up_path:
            x = step["conv_block"]["block"](torch.cat((step["up"](x), bridges.pop()), 1))
        return F.log_softmax(self.last(x), 1)


def r231(network, architecture, width=0.0625, n_classes=3, shape=(1, 64, 96)):
    model = seed_weights(R231(width), network, architecture)
    with torch.no_grad():
        return model, {"logits": model(images(network, shape))}


def unet(network, architecture, width=0.25, n_classes=1, shape=(1, 64, 96)):
    model = seed_weights(UNet(width), network, architecture)
    with torch.no_grad():
        return model, {"probabilities": model(images(network, shape))}


# ---- DRE-Net ----------------------------------------------------------------------------------------------------------


class DreNet(nn.Module):
    def __init__(self, width, n_classes):
        super().__init__()
        self.pretrained_model = NarrowResNet(Bottleneck, [3, 4, 6, 3], width, n_classes)
        features, inner = self.pretrained_model.fc.in_features, scaled(128, width)
        self.proposal_net = modules(
            down1=nn.Conv2d(features, inner, 3, 1, 1),
            down2=nn.Conv2d(inner, inner, 3, 2, 1),
            down3=nn.Conv2d(inner, inner, 3, 2, 1),
            tidy1=nn.Conv2d(inner, 1, 1),
            tidy2=nn.Conv2d(inner, 1, 1),
            tidy3=nn.Conv2d(inner, 1, 1),
        )
        self.concat_net = nn.Linear(8 * features, n_classes)

    def look(self, x):
        t = self.pretrained_model
        x = t.maxpool(t.relu(t.bn1(t.conv1(x))))
        return t.layer4(t.layer3(t.layer2(t.layer1(x))))

    @staticmethod
    def boxes(stride, side):
        centres = torch.arange(stride / 2, 448 + stride / 2, stride)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        y, x = y.flatten(), x.flatten()
        return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], 1)

    def forward(self, x, fine):
        last = self.look(x)
        p = self.proposal_net
        d1 = F.relu(p["down1"](last))
        d2 = F.relu(p["down2"](d1))
        d3 = F.relu(p["down3"](d2))
        small = torch.cat([self.boxes(32, 48), self.boxes(64, 96)])
        small_scores = torch.cat([p["tidy1"](d1).flatten(), p["tidy2"](d2).flatten()])
        large, large_scores = self.boxes(128, 192), p["tidy3"](d3).flatten()
        chosen = [small[nms(small, small_scores, 0.1)[:3]], large[nms(large, large_scores, 0.1)[:3]]]
        boxes = torch.cat(chosen)
        padded = F.pad(x, (224, 224, 224, 224))
        crops = []
        for x0, y0, x1, y1 in (boxes + 224).long().tolist():
            part = padded[:, :, y0:y1, x0:x1]
            crops.append(F.interpolate(part, size=(224, 224), mode="bilinear", align_corners=True))
        crop_features = self.look(torch.cat(crops)).mean((2, 3))
        x0, y0, x1, y1 = (boxes[3].clip(0, 448) / 448 * 600).floor().long().tolist()
        zoomed = F.interpolate(fine[:, :, y0:y1, x0:x1], size=(448, 448), mode="bilinear", align_corners=True)
        embedding = [crop_features.flatten(), last.mean((2, 3))[0], self.look(zoomed).mean((2, 3))[0]]
        embedding = torch.cat(embedding)[None]
        squares = torch.stack([boxes[:, 1], boxes[:, 0], boxes[:, 2] - boxes[:, 0]], 1)
        return self.concat_net(embedding), embedding, squares, self.pretrained_model.fc(crop_features)


def dre_net(network, architecture, width=0.0625, n_classes=2, shape=(3, 448, 448)):
    model = seed_weights(DreNet(width, n_classes), network, architecture)
    kept = [[] for _ in range(4)]
    with torch.no_grad():
        for idx in range(N_INPUTS):
            fine = image(f"{network}/fine", idx, (3, 600, 600))
            for values, output in zip(kept, model(image(network, idx, shape)[None], fine[None])):
                values.append(output)
    logits, embedding, squares, square_logits = kept
    return model, {
        "logits": torch.cat(logits),
        "embedding": torch.cat(embedding),
        "squares": torch.stack(squares),
        "square_logits": torch.stack(square_logits),
    }


# ---- all of them ------------------------------------------------------------------------------------------------------


def plain(run, width, n_classes, shape):
    return {"run": run, "width": width, "n_classes": n_classes, "shape": shape}


INCEPTION_SHAPE = (3, 107, 139)
CASES = {
    "resnet18": resnet(BasicBlock, [2, 2, 2, 2]),
    "resnet34": resnet(BasicBlock, [3, 4, 6, 3]),
    "resnet50": resnet(Bottleneck, [3, 4, 6, 3]),
    "resnet101": resnet(Bottleneck, [3, 4, 23, 3]),
    "resnet152": resnet(Bottleneck, [3, 8, 36, 3]),
    "vgg16": image_classifier(NARROW["vgg16"], lambda m: m.features, lambda m: m.classifier[6], is_pooled=False),
    "vgg19": image_classifier(
        functools.partial(narrow_vgg, [2, 2, 4, 4, 4]), lambda m: m.features, lambda m: m.classifier[6], is_pooled=False
    ),
    "inception_v3": image_classifier(
        narrow_inception_v3, lambda m: m.Mixed_7c, lambda m: m.fc, shape=INCEPTION_SHAPE
    ),
    "inception_resnet_v2": image_classifier(
        narrow_inception_resnet_v2, lambda m: m.conv2d_7b, lambda m: m.classif, shape=INCEPTION_SHAPE
    ),
    "detrac_resnet50": image_classifier(
        Detrac, lambda m: m.layer4, lambda m: m.fc2, shape=(3, 224, 224), is_pooled=False, width=0.0625, n_classes=6
    ),
    "attention_vgg16": attention_vgg("softmax", "concat", "before_pool"),
    "attention_vgg16_sigmoid": attention_vgg("sigmoid", "mean_logit", "after_pool"),
    "multi_scale": plain(multi_scale, 0.25, 3, (1, 92, 124)),
    "covnet": covnet("running"),
    "covnet_batch": covnet("batch"),
    "decovnet": plain(decovnet, 0.25, 2, (2, 7, 96, 112)),
    "unet_plus_plus": plain(unet_plus_plus, 0.25, 2, (3, 64, 96)),
    "unet": plain(unet, 0.25, 1, (1, 64, 96)),
    "r231": plain(r231, 0.0625, 3, (1, 64, 96)),
    "dre_net": plain(dre_net, 0.0625, 2, (3, 448, 448)),
}


def entry(name, tensor):
    flat = tensor.detach().float().flatten()
    every_nth = max(1, -(-flat.numel() // MAX_VALUES))
    # An odd step does not hit the same column or channel again and again.
    every_nth += 1 - every_nth % 2
    return {
        "name": name,
        "shape": list(tensor.shape),
        "every_nth": every_nth,
        "values": numbers(flat[::every_nth]),
        "sum": numbers(flat.double().sum())[0],
        "sum_of_squares": numbers(flat.double().square().sum())[0],
    }


def main():
    parser = argparse.ArgumentParser(description="Write the golden files of make parity.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder, such as tests/golden/nn/parity")
    parser.add_argument("names", nargs="*", help="only these networks")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    versions = [f"{package.__name__} {package.__version__.split('+')[0]}" for package in (torch, torchvision, timm)]
    for network, case in CASES.items():
        if arguments.names and network not in arguments.names:
            continue
        model, outputs = case["run"](network, network)
        content = {
            "made_with": ", ".join([*versions, "CPU f32", platform.machine()]),
            "seed": SEED,
            "network": network,
            "width": case["width"],
            "n_classes": case["n_classes"],
            "input": [N_INPUTS, *case["shape"]],
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            **{key: case[key] for key in ("attention", "bn_mode") if key in case},
            "outputs": [entry(name, tensor) for name, tensor in outputs.items()],
        }
        text = json.dumps(content, indent=None, separators=(",", ":")) + "\n"
        (arguments.out / f"{network}.json").write_text(text)
        name, answers = next(iter(outputs.items()))
        print(
            f"{network}: {len(text) // 1024} kB, {name} {answers.min():.3f} to {answers.max():.3f}, "
            f"standard deviation over inputs {answers.std(0).mean():.3f}"
        )


if __name__ == "__main__":
    main()
