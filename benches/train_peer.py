"""PyTorch's side of `make bench-train`: the same networks, trained on the same films with the same kinds of augmentation, by
a plain loop with a DataLoader. Runs in the environment of `make golden`; prints images a second as JSON.

    train_peer.py FOLDER films N                                     writes N films, masks and a list
    train_peer.py FOLDER NETWORK WIDTH SIDE BATCH EPOCHS THREADS     trains
"""

import json
import os
import pathlib
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms import functional as TF  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "deploy/golden"))
from make_golden import NARROW  # noqa: E402
from make_training import LogitUNet, lung_loss  # noqa: E402


def write_films(folder, n):
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[0:512, 0:512]
    lines = ["file,label,patient,mask"]
    for film in range(n):
        mask = np.zeros((512, 512), bool)
        for middle in (150, 362):
            mask |= ((columns - middle) / 80) ** 2 + ((rows - 256) / 160) ** 2 < 1
        grey = np.where(mask, 60, 140) + random.integers(0, 40, (512, 512)) + (20 if film % 2 else 0)
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{film}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{film}-mask.png")
        lines.append(f"{film}.png,{'one' if film % 2 else 'other'},{film},{film}-mask.png")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


class Films(Dataset):
    """In memory at half again the side, changed anew each time."""

    def __init__(self, folder, side, is_segmenter):
        self.side, self.is_segmenter = side, is_segmenter
        working = side if is_segmenter else side * 3 // 2
        self.films, self.masks, self.labels = [], [], []
        for line in (folder / "list.csv").read_text().splitlines()[1:]:
            file, label, _, mask = line.split(",")
            self.films.append(self.read(folder / file, working))
            self.masks.append(self.read(folder / mask, working))
            self.labels.append(int(label == "one"))

    @staticmethod
    def read(path, side):
        picture = Image.open(path).resize((side, side), Image.BILINEAR)
        return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]

    def __len__(self):
        return len(self.films)

    def __getitem__(self, idx):
        draw = lambda most: float(torch.rand(()) * 2 - 1) * most  # noqa: E731
        film = self.films[idx].clamp(0, 1).pow(1.2 ** draw(1))
        film = ((film - 0.5) * (1 + draw(0.2)) + 0.5 + draw(0.1) + torch.randn_like(film) * 0.01).clamp(0, 1)
        side = film.shape[-1]
        way = {"angle": draw(10), "translate": [int(draw(0.05) * side), int(draw(0.05) * side)], "scale": 1 + draw(0.1),
               "shear": [0.0]}
        film = TF.affine(film, interpolation=InterpolationMode.BILINEAR, **way)
        flip = bool(torch.rand(()) < 0.5)
        film = film.flip(-1) if flip else film
        if self.is_segmenter:
            mask = TF.affine(self.masks[idx], interpolation=InterpolationMode.BILINEAR, **way)
            mask = ((mask.flip(-1) if flip else mask) > 0.5).float()
            return (film - film.mean()) / film.std(), mask[0]
        film = TF.resize(film, [self.side, self.side], antialias=True)
        return ((film - 0.5) / 0.25).expand(3, -1, -1), self.labels[idx]


def train(folder, name, width, side, batch, epochs, threads):
    torch.set_num_threads(threads)
    is_segmenter = name == "unet"
    model = (LogitUNet(width) if is_segmenter else NARROW[name](width, 2)).train()
    loss_of = (lambda logits, target: lung_loss(logits, target)) if is_segmenter else F.cross_entropy
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    films = Films(folder, side, is_segmenter)
    loader = DataLoader(films, batch_size=batch, shuffle=True, num_workers=1, persistent_workers=True)
    ends = []
    for _ in range(epochs):
        for images, target in loader:
            optimiser.zero_grad()
            loss = loss_of(model(images), target)
            loss.backward()
            optimiser.step()
        ends.append(time.monotonic())
    print(json.dumps(len(films) * (epochs - 1) / (ends[-1] - ends[0])))


def main():
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2] == "films":
        write_films(folder, int(sys.argv[3]))
        return
    name, width, side, batch, epochs, threads = sys.argv[2:]
    train(folder, name, float(width), int(side), int(batch), int(epochs), int(threads))


main()
