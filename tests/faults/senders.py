"""The load: objects that are made as they are needed, and real senders that send them until they are acknowledged.

What counts as acknowledged is what a sender's own log says: dcmtk's storescu, pynetdicom, `hilum send`."""

import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import random
import subprocess
import sys
import threading
import time

import numpy
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

import images
from world import CALLED, CALLING, Node

PYNETDICOM_SENDER = pathlib.Path(__file__).resolve().parent.parent / "it/support/send.py"
# A sender that has not ended by then is ended; what it has not logged is sent again.
SENDER_PATIENCE_SECONDS = 60


@dataclasses.dataclass
class Batch:
    """Files for one association."""

    files: dict[str, pathlib.Path]
    tries: int = 0


class Stock:
    """Makes objects: CT slices, which are kept and need no analysis, and radiographs, which get results."""

    def __init__(self, folder: pathlib.Path, manifest: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._manifest = open(manifest, "w")
        self.made = 0
        self.radiographs = 0
        # The long ones are more than a buffer of the node: most of them goes to the disk while they still arrive.
        self._patterns = {"CT": self._pattern("CT", CTImageStorage, 64, 64),
                          "long CT": self._pattern("CT", CTImageStorage, 400, 400),
                          "CR": self._pattern("CR", ComputedRadiographyImageStorage, 160, 144)}

    def _pattern(self, modality: str, sop_class: str, rows: int, columns: int):
        image = images.template(modality, sop_class, rows, columns)
        if modality == "CR":
            image.BodyPartExamined, image.ViewPosition, image.PatientAge = "CHEST", "PA", "045Y"
            image.PixelData = _chest(rows, columns).tobytes()
        path = self.folder / "pattern"
        image.save_as(path, enforce_file_format=True)
        pattern = path.read_bytes()
        path.unlink()
        return image, pattern

    def batch(self, kind: str, count: int, images_per_study: int) -> Batch:
        """`count` objects in studies of so many images."""
        image, pattern = self._patterns[kind]
        files = {}
        study = series = ""
        for index in range(count):
            if index % images_per_study == 0:
                study, series = images.fresh_uid(), images.fresh_uid()
            instance = images.fresh_uid()
            whole = pattern
            for old, new in [(image.SOPInstanceUID, instance), (image.StudyInstanceUID, study),
                             (image.SeriesInstanceUID, series)]:
                whole = whole.replace(old.encode(), new.encode())
            # Every object has pixels of its own, so that mixed-up bytes are seen.
            numbers = [self.made & 0xFFF, self.made >> 12 & 0xFFF]
            whole = whole[:-4] + b"".join(number.to_bytes(2, "little") for number in numbers)
            path = self.folder / f"{instance}.dcm"
            path.write_bytes(whole)
            data_set = whole[144 + int.from_bytes(whole[140:144], "little"):]
            fact = {"sop_instance_uid": instance, "study_instance_uid": study, "modality": image.Modality,
                    "sha256": hashlib.sha256(data_set).hexdigest()}
            self._manifest.write(json.dumps(fact) + "\n")
            files[instance] = path
            self.made += 1
            self.radiographs += image.Modality == "CR"
        self._manifest.flush()
        return Batch(files)


def _chest(rows: int, columns: int) -> numpy.ndarray:
    """Noise around two dark lungs."""
    y, x = numpy.mgrid[0:rows, 0:columns]
    y, x = y / rows, x / columns
    lungs = sum((((x - centre) / 0.16) ** 2 + ((y - 0.5) / 0.32) ** 2 < 1) for centre in (0.3, 0.7)) > 0
    noise = numpy.random.default_rng(2).uniform(-0.05, 0.05, (rows, columns))
    return (numpy.where(lungs, 0.25, 0.7) * 4095 + noise * 4095).astype("<u2")


class Load:
    """Several workers, each sending one batch after another by a sender chosen at random, until told to finish; then
    until everything is acknowledged."""

    def __init__(self, node: Node, port: int, stock: Stock, folder: pathlib.Path, seed: int, workers: int) -> None:
        self.node, self.port, self.stock, self.folder = node, port, stock, folder
        folder.mkdir()
        self.acknowledged: set[str] = set()
        self.acknowledgements = 0
        self.paused = threading.Event()
        self._finishing = threading.Event()
        self._lock = threading.Lock()
        self._again: queue.Queue[Batch] = queue.Queue()
        self._log = open(folder / "acknowledged", "w")
        self.radiographs_wanted = 0
        self.objects_wanted = 0
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed}-sender-{index}"), index), daemon=True)
            for index in range(workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, patience_seconds: float) -> None:
        """Nothing new is made; waits until all that was made is acknowledged."""
        self._finishing.set()
        deadline = time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        missing = self.stock.made - len(self.acknowledged)
        if missing or any(thread.is_alive() for thread in self._threads):
            raise RuntimeError(f"{missing} objects are not acknowledged {patience_seconds:.0f} s after the last fault")

    def progress(self) -> float:
        """The share of the wanted objects that is acknowledged."""
        return len(self.acknowledged) / max(1, self.objects_wanted)

    def raise_failures(self) -> None:
        """What ended a worker."""
        if self.failures:
            raise self.failures[0]

    def _next(self, choice: random.Random) -> Batch | None:
        try:
            return self._again.get_nowait()
        except queue.Empty:
            pass
        if self._finishing.is_set() and len(self.acknowledged) >= self.objects_wanted:
            return None
        with self._lock:
            # Radiographs in step with the rest, so that there is work for the infer process all the time.
            share = self.radiographs_wanted / max(1, self.objects_wanted)
            if self.stock.radiographs < share * self.stock.made and self.stock.radiographs < self.radiographs_wanted:
                per_study = choice.choice([1, 1, 1, 2])
                return self.stock.batch("CR", per_study * choice.randint(1, 3), per_study)
            if choice.random() < 0.2:
                count = choice.randint(2, 8)
                return self.stock.batch("long CT", count, count)
            count = choice.randint(5, 40)
            return self.stock.batch("CT", count, count)

    def _work(self, choice: random.Random, index: int) -> None:
        try:
            while True:
                batch = self._next(choice)
                if batch is None:
                    # Another worker may still put something back.
                    with self._lock:
                        if len(self.acknowledged) >= self.stock.made:
                            return
                    time.sleep(0.05)
                    continue
                self._send(choice, batch, index)
        except BaseException as error:  # told by the main thread
            self.failures.append(error)

    def _send(self, choice: random.Random, batch: Batch, index: int) -> None:
        sender = choice.choice([_storescu, _storescu, _pynetdicom, _hilum_send])
        log = self.folder / f"sender-{index}.log"
        log.write_bytes(b"")
        command, parse, environment = sender(self, batch, log)
        with open(self.folder / f"sender-{index}.out", "wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       env=environment, cwd=self.folder)
            try:
                process.wait(SENDER_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        told = parse(log, self.folder / f"sender-{index}.out", batch)
        unknown = told - batch.files.keys()
        if unknown:
            raise RuntimeError(f"{sender.__name__} tells of objects that it was not given: {unknown}")
        with self._lock:
            self.acknowledgements += len(told)
            for uid in told - self.acknowledged:
                self._log.write(uid + "\n")
            self._log.flush()
            self.acknowledged |= told
        rest = {uid: path for uid, path in batch.files.items() if uid not in told}
        if rest:
            # Scanners send the whole study again as often as the rest.
            self._again.put(Batch(batch.files if choice.random() < 0.3 else rest, batch.tries + 1))
            time.sleep(choice.uniform(0, 0.3))
        elif choice.random() < 0.05:
            # What is acknowledged already comes a second time.
            self._again.put(Batch(batch.files, 1))


def _list(batch: Batch) -> list[str]:
    return [str(path) for path in batch.files.values()]


def _storescu(load: Load, batch: Batch, _log: pathlib.Path):
    command = ["storescu", "-v", "-nh", "-ta", "10", "-td", "20", "-to", "5", "-aet", CALLING, "-aec", CALLED,
               "127.0.0.1", str(load.port), *_list(batch)]

    def parse(_: pathlib.Path, output: pathlib.Path, batch: Batch) -> set[str]:
        told, sending = set(), None
        for line in output.read_text(errors="replace").splitlines():
            if "Sending file: " in line:
                sending = pathlib.Path(line.partition("Sending file: ")[2].strip()).stem
            elif "Received Store Response (Success)" in line and sending:
                told.add(sending)
                sending = None
        return told

    return command, parse, {**os.environ, "TCP_NODELAY": "1"}


def _logged(log: pathlib.Path, _: pathlib.Path, __: Batch) -> set[str]:
    text = log.read_text()
    return set(text[:text.rfind("\n") + 1].split())


def _pynetdicom(load: Load, batch: Batch, log: pathlib.Path):
    command = [sys.executable, str(PYNETDICOM_SENDER), str(load.port), CALLED, CALLING, str(log), *_list(batch)]
    return command, _logged, dict(os.environ)


def _hilum_send(load: Load, batch: Batch, log: pathlib.Path):
    command = [load.node.program, "--config", str(load.node.folder / "hilum.toml"), "send",
               "--to", f"127.0.0.1:{load.port}", "--called", CALLED, "--calling", CALLING, "--timeout", "20",
               "--log-acknowledged", str(log), *_list(batch)]
    return command, _logged, load.node.plain_environment
