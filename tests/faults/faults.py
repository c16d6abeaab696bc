"""Randomised faults under load: real senders send to the node without end, everything around it and itself fails again
and again, and at the end check.py asks whether anything acknowledged is lost, doubled or damaged.

    make faults                        the whole run
    make faults ARGS=--short           under 90 seconds, as in `make test`
    make faults ARGS=--self-test       whether builds that acknowledge too early, or send twice, are caught

Ends with one line: faults=N acknowledged=M delivered=D lost=0 duplicated=0 corrupted=0"""

import argparse
import collections
import errno
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "benches"))

from check import Orthanc as PacsView, check  # noqa: E402
from disk import Disk, PostgresDisk  # noqa: E402
from postgres import Postgres  # noqa: E402
from proxy import Proxy  # noqa: E402
from senders import Load, Stock  # noqa: E402
from servers import free_port, wait_until  # noqa: E402
from world import Node, Orthanc  # noqa: E402

QUIET_SECONDS = 4
# With 8,580 objects and 1,328 results 711 MB were used; a disk that is full for good ends a run.
ARCHIVE_MEBIBYTES = 2048
# After so long without a Success something else is wrong than the faults.
STALLED_SECONDS = 180
# By how much of all the faults may be ahead of the load.
AHEAD = 0.05


class World:
    """Everything of one run, in one folder."""

    def __init__(self, folder: pathlib.Path, program: str, late_sync_ms: int = 0, twice: bool = False) -> None:
        self.folder = folder
        self.disk = Disk(folder / "data/archive", folder, ARCHIVE_MEBIBYTES, late_sync_ms)
        self.postgres = Postgres(folder / "postgres", "hilum", durable=True, disk=PostgresDisk(folder / "postgres", folder))
        self.pacs = Orthanc(folder)
        self.twice, pacs_port = None, self.pacs.port
        if twice:
            pacs_port = free_port()
            command = [sys.executable, str(HERE / "twice.py"), str(pacs_port), str(self.pacs.port)]
            self.twice = subprocess.Popen(command)
        self.to_pacs = Proxy(pacs_port)
        self.node = Node(folder, program, self.postgres.url, self.disk.environment())
        self.node.apply(self.to_pacs.port)
        self.node.start()
        self.node.wait_until_ready()
        self.to_node = Proxy(self.node.port)

    def end(self) -> None:
        self.node.kill_everything()
        for program in (self.pacs, self.postgres):
            program.kill()
        if self.twice:
            self.twice.kill()
            self.twice.wait()
        self.to_pacs.close()
        self.to_node.close()
        self.disk.remove()


class Faults:
    """Three lanes of faults, each with choices of its own from the seed: what happens to processes, to files and
    sender connections, and to the PACS. Each lane goes on until the wanted number of faults has happened, in step with
    the `progress` of the load from 0 to 1, so that the faults meet all of it."""

    def __init__(self, world: World, seed: int, wanted: int, progress, only: str | None = None) -> None:
        self.world, self.wanted, self.progress = world, wanted, progress
        self.happened: collections.Counter[str] = collections.Counter()
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        # Weights: a few milliseconds each for files and connections, seconds for processes.
        lanes = {
            "process": {self.kill_node: 5, self.kill_infer: 4, self.kill_postgres: 3, self.cut_power: 3},
            "file": {self.fail_file: 6, self.cut_sender: 6, self.fill_disk: 1},
            "pacs": {self.cut_pacs: 4, self.pause_pacs: 2, self.kill_pacs: 1},
        }
        if only:
            lanes = {"process": {getattr(self, only): 1}}
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}-{name}"), kinds), daemon=True)
            for name, kinds in lanes.items()
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        if self.failures:
            raise self.failures[0]
        return any(thread.is_alive() for thread in self._threads)

    def _run(self, choice: random.Random, kinds: dict) -> None:
        try:
            while self.happened.total() < self.wanted:
                if self.happened.total() / self.wanted > self.progress() + AHEAD:
                    time.sleep(0.1)
                    continue
                fault = choice.choices(list(kinds), list(kinds.values()))[0]
                name = fault(choice)
                if name:
                    with self._lock:
                        self.happened[name] += 1
                time.sleep(choice.uniform(0.0, 0.3))
        except BaseException as error:  # told by the main thread
            self.failures.append(error)

    def kill_node(self, choice: random.Random) -> str:
        node = self.world.node
        node.check_alive()
        if choice.random() < 0.5:
            node.kill()
        else:
            node.kill_everything()
        time.sleep(choice.uniform(0.0, 0.5))
        node.start()
        node.wait_until_listening()
        time.sleep(choice.uniform(0.0, 2.0))
        return "node killed"

    def cut_power(self, choice: random.Random) -> str:
        node = self.world.node
        node.check_alive()
        node.kill_everything()
        with_postgres = choice.random() < 0.3
        if with_postgres:
            self.world.postgres.cut_power()
        self.world.disk.cut_power()
        if with_postgres:
            self.world.postgres.start()
        node.start()
        node.wait_until_listening()
        time.sleep(choice.uniform(0.0, 2.0))
        return "power cut with Postgres" if with_postgres else "power cut"

    def kill_infer(self, choice: random.Random) -> str | None:
        time.sleep(choice.uniform(0.0, 2.0))
        return "infer process killed" if self.world.node.kill_infer() else None

    def kill_postgres(self, choice: random.Random) -> str:
        self.world.postgres.kill()
        time.sleep(choice.uniform(0.0, 1.0))
        self.world.postgres.start()
        time.sleep(choice.uniform(0.0, 1.0))
        return "Postgres killed"

    def fail_file(self, choice: random.Random) -> str | None:
        operation = choice.choice(["open", "write", "write", "sync_file", "sync_file", "rename", "rename", "sync_folder",
                                   "sync_folder", "read", "read"])
        number = choice.choice([errno.EIO, errno.EIO, errno.ENOSPC])
        fired = self.world.disk.fail(operation, number, choice.randint(1, 4), 1.0)
        return f"{errno.errorcode[number]} in {operation}" if fired else None

    def without_restart(self) -> None:
        """Each file operation fails once more, and no restart tidies up after it."""
        for operation in ("open", "write", "sync_file", "rename", "sync_folder", "read") if self.wanted else ():
            if self.world.disk.fail(operation, errno.EIO, 2, 5.0):
                self.happened[f"EIO in {operation}"] += 1

    def fill_disk(self, choice: random.Random) -> str:
        self.world.disk.fill(choice.uniform(0.1, 0.8))
        return "disk full"

    def cut_sender(self, choice: random.Random) -> str | None:
        return "sender's connection cut" if self.world.to_node.cut(choice, 1.0) else None

    def cut_pacs(self, choice: random.Random) -> str | None:
        return "PACS connection cut" if self.world.to_pacs.cut(choice, 2.0) else None

    def pause_pacs(self, choice: random.Random) -> str:
        self.world.pacs.pause(choice.uniform(0.2, 3.0))
        return "PACS stood still"

    def kill_pacs(self, choice: random.Random) -> str:
        self.world.pacs.kill()
        time.sleep(choice.uniform(0.0, 2.0))
        self.world.pacs.start()
        return "PACS killed"


def settle(world: World, manifest: pathlib.Path, acknowledged: set[str], patience_seconds: float) -> None:
    """Waits until every study of radiographs has its report, and nothing changes any more. What does not come is left
    to the check."""
    facts = [json.loads(line) for line in manifest.read_text().splitlines()]
    wanted = {fact["study_instance_uid"] for fact in facts
              if fact["modality"] == "CR" and fact["sop_instance_uid"] in acknowledged}
    view = PacsView(world.pacs.url)
    try:
        wait_until(lambda: wanted <= view.reported_studies(), "a report on each study", patience_seconds, 1.0)
    except TimeoutError as error:
        print(f"faults: {error}", file=sys.stderr)
    last, since = None, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        now = (len(json.loads(view.get("/instances"))), sum(1 for _ in world.node.archive.rglob("*.dcm")))
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.5)


def damage_a_file(archive: pathlib.Path) -> None:
    """Turns one bit of an object round, as a disk may."""
    with open(sorted(archive.glob("objects/**/*.dcm"))[0], "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def run(options: argparse.Namespace, folder: pathlib.Path, only: str | None = None, damage: bool = False,
        **mutant) -> tuple[int, dict]:
    """One run. Returns the number of faults and the judgement."""
    world = World(folder, options.program, **mutant)
    try:
        manifest = folder / "manifest"
        load = Load(world.node, world.to_node.port, Stock(folder / "sent", manifest), folder / "senders", options.seed,
                    options.senders)
        load.objects_wanted, load.radiographs_wanted = options.objects, options.radiographs
        faults = Faults(world, options.seed, options.faults, load.progress, only)
        started = time.monotonic()
        load.start()
        faults.start()
        told = moved = started
        successes = 0
        while faults.alive():
            load.raise_failures()
            time.sleep(0.2)
            if load.acknowledgements > successes:
                moved, successes = time.monotonic(), load.acknowledgements
            elif time.monotonic() - moved > STALLED_SECONDS:
                print(world.node.log.read_text(errors="replace")[-4000:], file=sys.stderr)
                raise RuntimeError(f"no object was acknowledged for {STALLED_SECONDS} s; the node's log says why")
            if time.monotonic() - told > 20:
                told = time.monotonic()
                print(f"faults: {told - started:.0f} s: {faults.happened.total()} faults, {len(load.acknowledged)} "
                      f"objects acknowledged", file=sys.stderr, flush=True)
        try:
            world.node.wait_until_ready()
            faults.without_restart()
            load.finish(options.patience)
        except (RuntimeError, TimeoutError):
            print(world.node.log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        load.raise_failures()
        settle(world, manifest, load.acknowledged, options.patience)
        if damage:
            damage_a_file(world.node.archive)
        judgement = check(manifest, load.folder / "acknowledged", world.node.archive, world.pacs.url)
        kinds = ", ".join(f"{count} × {kind}" for kind, count in faults.happened.most_common())
        print(f"faults: {kinds or 'none'}\nfaults: {load.acknowledgements} Successes to senders; "
              f"{time.monotonic() - started:.0f} s; seed {options.seed}", file=sys.stderr)
        for words in judgement["told"][:5 if mutant or damage else None]:
            print(f"faults: {words}", file=sys.stderr)
        return faults.happened.total(), judgement
    finally:
        if options.keep:
            shutil.copytree(world.node.archive, folder / "archive-kept", dirs_exist_ok=True)
        world.end()


def line(faults: int, judgement: dict) -> str:
    counts = " ".join(f"{name}={judgement[name]}" for name in
                      ("acknowledged", "delivered", "lost", "duplicated", "corrupted"))
    return f"faults={faults} {counts}"


def self_test(options: argparse.Namespace, folder: pathlib.Path) -> bool:
    """Whether the run catches what it is for: two mutants, and damage to the files of a clean run."""
    options.senders, options.patience = 2, 60
    options.faults, options.objects, options.radiographs = 5, 200, 0
    _, judgement = run(options, folder / "late", only="cut_power", late_sync_ms=300)
    caught = {"acknowledges before it synchronises": judgement["lost"] > 0}
    print("self-test, acknowledges before it synchronises:", line(5, judgement))
    options.faults, options.objects, options.radiographs = 0, 20, 5
    _, judgement = run(options, folder / "twice", twice=True)
    caught["sends twice"] = judgement["duplicated"] > 0
    print("self-test, sends twice:", line(0, judgement))
    _, judgement = run(options, folder / "damaged", damage=True)
    caught["damages a file"] = judgement["corrupted"] > 0
    print("self-test, damages a file:", line(0, judgement))
    for name, was in caught.items():
        print(f"self-test: a build that {name} is {'caught' if was else 'NOT CAUGHT'}")
    return all(caught.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=os.environ.get("HILUM"), help="the hilum binary (default: $HILUM)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the choices of an earlier run")
    parser.add_argument("--short", action="store_true", help="under 90 seconds")
    parser.add_argument("--self-test", action="store_true", help="shows that bad builds are caught")
    parser.add_argument("--faults", type=int, default=1000, help="how many faults (default: 1000)")
    parser.add_argument("--objects", type=int, default=10000, help="how many objects at least (default: 10000)")
    parser.add_argument("--radiographs", type=int, default=300, help="how many of them get results (default: 300)")
    parser.add_argument("--senders", type=int, default=3, help="senders at the same time (default: 3)")
    parser.add_argument("--patience", type=float, default=600, help="seconds until everything is done at the end")
    parser.add_argument("--keep", metavar="FOLDER", help="work in this new folder and keep it")
    options = parser.parse_args()
    if not options.program or not os.access(options.program, os.X_OK):
        parser.error("name the binary with --program or HILUM=; `make faults` builds it")
    if options.short:
        options.faults, options.objects, options.radiographs, options.patience = 40, 400, 16, 90
    folder = pathlib.Path(options.keep or tempfile.mkdtemp(prefix="hilum-faults."))
    # Everybody may enter: as root Postgres runs as another user.
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    try:
        if options.self_test:
            for name in ("late", "twice", "damaged"):
                (folder / name).mkdir()
            return 0 if self_test(options, folder) else 1
        faults, judgement = run(options, folder)
        print(line(faults, judgement))
        return 1 if judgement["lost"] + judgement["duplicated"] + judgement["corrupted"] else 0
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
