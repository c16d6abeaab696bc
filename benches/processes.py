"""What the kernel says of processes and of the machine (man 5 proc)."""

import os
import pathlib
import platform
import subprocess
import threading
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def memory_mib(process_id: int, key: str) -> float:
    """VmRSS or VmHWM."""
    for line in pathlib.Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {process_id} has no {key}")


def reset_peak(process_id: int) -> None:
    """Sets VmHWM to VmRSS."""
    pathlib.Path(f"/proc/{process_id}/clear_refs").write_text("5")


def _stat(process_id: str) -> list[str]:
    return pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(process_id: int, with_children: bool = False) -> float:
    """User and system time; `with_children` adds its living children and those that it has waited for."""
    fields = _stat(str(process_id))
    ticks = int(fields[11]) + int(fields[12])
    if with_children:
        ticks += int(fields[13]) + int(fields[14])
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                child = _stat(entry)
            except OSError:
                continue
            if int(child[1]) == process_id:
                ticks += int(child[11]) + int(child[12])
    return ticks / TICKS_PER_SECOND


def _machine_ticks() -> tuple[int, int]:
    numbers = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(numbers) - numbers[3] - numbers[4], sum(numbers)


def busy_cores(seconds: float) -> float:
    """Cores that were busy during the next `seconds`."""
    busy, total = _machine_ticks()
    time.sleep(seconds)
    busy_then, total_then = _machine_ticks()
    return (busy_then - busy) / max(1, total_then - total) * (os.cpu_count() or 1)


def wait_for_quiet(maximum_busy_cores: float, patience_seconds: float) -> float:
    """Waits until others leave the machine alone, or patience ends. Returns how many cores they kept busy."""
    deadline = time.monotonic() + patience_seconds
    while True:
        busy = busy_cores(0.5)
        if busy <= maximum_busy_cores or time.monotonic() > deadline:
            return busy


class MemorySamples:
    """VmRSS of a process, sampled every 10 ms in the background while the block runs."""

    def __init__(self, process_id: int) -> None:
        self.process_id = process_id
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.01):
            self.samples.append(memory_mib(self.process_id, "VmRSS"))

    def __enter__(self) -> "MemorySamples":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _first_line(*command: str) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.splitlines()[0].strip() if output else "?"


def machine_facts(hilum: str, folder: pathlib.Path) -> list[str]:
    """The machine and the programs, one line each. Names no host and no path."""
    cpu = next(
        (line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        "?",
    )
    memory_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
    disk = _first_line("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder))
    system = next(
        (line.partition("=")[2].strip('"') for line in pathlib.Path("/etc/os-release").read_text().splitlines()
         if line.startswith("PRETTY_NAME=")),
        "Linux",
    )
    return [
        f"CPU: {cpu}, {os.cpu_count()} cores; memory: {memory_kib / 1024**2:.0f} GiB; disk: {disk}",
        f"system: {system}, kernel {platform.release()}",
        f"hilum: {_first_line(hilum, '--version')}, {profile(hilum)} profile",
        f"Orthanc: {_first_line('Orthanc', '--version')}",
        _first_line("storescp", "--version").strip("$ "),
        f"Postgres: {_first_line('psql', '--version')}",
    ]


def profile(hilum: str) -> str:
    """Cargo's profile, by the name of the folder that cargo built into."""
    return {"debug": "dev", "release": "release"}.get(pathlib.Path(hilum).resolve().parent.name, "unknown")
