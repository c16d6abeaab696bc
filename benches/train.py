"""Measures training beside PyTorch: images a second of one network after the other on the processor, the same network, batch,
side, optimiser and augmentation. `make bench-train` starts this.

Hilum (`hilum train`, from file to checkpoint) and PyTorch (train_peer.py, a DataLoader with torchvision's transforms) take
turns; ratios are those of neighbouring runs, and the last line has their medians. A turn is the time between the first and
the last epoch's end, so that start, reading and the export count on neither side."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import processes
from bench import DOCUMENT, say, table

BEGIN, END = "<!-- trained: begin -->", "<!-- trained: end -->"
PEER = pathlib.Path(__file__).with_name("train_peer.py")
# Name, width, side, batch.
NETWORKS = [("unet", 0.25, 256, 8), ("resnet34", 0.25, 224, 8), ("resnet50", 0.25, 224, 8), ("vgg16", 0.25, 224, 8)]
FILMS = 48

COMMON = """
[data]
list = "list.csv"
validation = {{ by = "none" }}
[preprocessing]
voi = "window"
percentile_low = 0.5
percentile_high = 99.5
image_side_pixels = {side}
mask_mode = "none"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[optimisation]
epochs = {epochs}
batch_size = {batch}
[compute]
threads = {threads}
[bundle]
name = "bench"
description = "Measured."
licence = "Apache-2.0"
training_data = "Made-up films."
"""
LUNGS = '[task]\nkind = "lungs"\nwidth = {width}\nside_pixels = {side}\n'
CLASSES = """[task]
kind = "classifier"
segmenters = ["models/cxr-untrained"]
[[task.classes]]
label = "One"
of_list = ["one"]
code = {{ value = "1", scheme = "99TEST", meaning = "One" }}
[[task.classes]]
label = "Other"
of_list = ["other"]
code = {{ value = "2", scheme = "99TEST", meaning = "Other" }}
[[task.members]]
name = "{name}"
architecture = "{name}"
width = {width}
"""


def hilum(folder: pathlib.Path, network: tuple, epochs: int, threads: int) -> float:
    name, width, side, batch = network
    task = (LUNGS if name == "unet" else CLASSES).format(name=name, width=width, side=side)
    plan = task + COMMON.format(side=side if name != "unet" else 224, epochs=epochs, batch=batch, threads=threads)
    (folder / "plan.toml").write_text(plan)
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [os.environ["HILUM"], "train", "--config", "plan.toml", "--out", "out"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    ends = [time.monotonic() for line in process.stdout if line.startswith("epoch ") and "training loss" in line]
    if process.wait() != 0:
        raise RuntimeError(f"`hilum train` failed: {process.stderr.read()}")
    return FILMS * (len(ends) - 1) / (ends[-1] - ends[0])


def peer(python: str, folder: pathlib.Path, network: tuple, epochs: int, threads: int) -> float:
    name, width, side, batch = network
    command = [python, PEER, str(folder), name, str(width), str(side), str(batch), str(epochs), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"PyTorch failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_films(python: str, folder: pathlib.Path) -> None:
    """Films of 512 x 512 pixels with masks, of two labels."""
    done = subprocess.run([python, PEER, str(folder), "films", str(FILMS)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"no films: {done.stderr}")
    init = [os.environ["HILUM"], "model", "init", "--models-dir", str(folder / "models")]
    subprocess.run(init, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-train", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a turn, the first of which does not count (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="of libtorch and PyTorch (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one pair: does it work at all?")
    arguments = parser.parse_args()
    pairs, epochs = (1, 2) if arguments.quick else (arguments.pairs, arguments.epochs)
    python = os.environ.get("HILUM_GOLDEN_PYTHON") or os.path.join(os.environ["HILUM_CACHE"], "golden-venv/bin/python")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    try:
        write_films(python, folder)
        rows, ratios = [], []
        for network in NETWORKS:
            ours, theirs = [], []
            for turn in range(pairs):
                steps = [lambda: ours.append(hilum(folder, network, epochs, arguments.threads)),
                         lambda: theirs.append(peer(python, folder, network, epochs, arguments.threads))]
                for step in steps if turn % 2 == 0 else reversed(steps):
                    step()
                say(f"{network[0]}: turn {turn + 1} of {pairs}: Hilum {ours[-1]:.2f}, PyTorch {theirs[-1]:.2f} images/s")
            ratio = statistics.median(mine / other for mine, other in zip(ours, theirs))
            ratios.append(ratio)
            name, width, side, batch = network
            rows.append([name, f"{width}", f"{side}", f"{batch}", f"{statistics.median(ours):.2f}",
                         f"{statistics.median(theirs):.2f}", f"{ratio:.2f}"])
        facts = [*processes.machine_facts(os.environ["HILUM"], folder)[:3],
                 f"{FILMS} films of 512 x 512 pixels, {arguments.threads} threads, {pairs} turns of {epochs} epochs, Adam"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = "".join(f"* {fact}\n" for fact in facts) + "\n"
    text += table(["network", "width", "side", "batch", "Hilum, images/s", "PyTorch, images/s", "ratio"], rows)
    closing = "vs_pytorch=" + ",".join(f"{network[0]}:{ratio:.2f}" for network, ratio in zip(NETWORKS, ratios))
    print(text)
    if arguments.quick:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n`{closing}`\n\n{END}{after}")
    print(closing)


main()
