"""How fast objects are received: Hilum, which synchronises before it says Success, beside Orthanc and programs that do
not, all with the same senders, taking turns in one run. `make bench-receive` starts this; a complete run writes its
tables into docs/benchmarks.md. The last line holds the medians of the paired runs."""

import argparse
import dataclasses
import datetime
import fcntl
import itertools
import mmap
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import images
import processes
from bench import DOCUMENT, Load, Options, loads, median, say, table
from peers import DicomRs, OrthancOnPostgres, Pynetdicom
from servers import CALLED, CALLING, Discarding, Hilum, Orthanc, Server, Storescp, environment, wait_until

BEGIN, END = "<!-- received: begin -->", "<!-- received: end -->"
# dcmtk's log with the time of day in seconds, milliseconds and microseconds, one line for the start and one for the end of each object.
LOG_CONFIGURATION = """\
log4cplus.rootLogger = INFO, console
log4cplus.appender.console = log4cplus::ConsoleAppender
log4cplus.appender.console.logToStdErr = true
log4cplus.appender.console.ImmediateFlush = true
log4cplus.appender.console.layout = log4cplus::PatternLayout
log4cplus.appender.console.layout.ConversionPattern = %D{%s.%Q} %m%n
"""
TIMED = re.compile(r"^(\d+)\.(\d+)\.(\d+) (Sending file|Received Store Response \(Success\))", re.MULTILINE)


@dataclasses.dataclass
class Workload:
    """What is sent: `count` objects on each of so many associations."""

    name: str
    title: str
    modality: str
    count: int
    associations: int = 1
    tcp_nodelay: bool = True


# Of an object.
MEGABYTES_EACH = {"CT": 0.525, "CR": 10.0, "LARGE": 128.0}

WORKLOADS = [
    Workload("ct1", "CT, 0.5 MB, one association", "CT", 200),
    Workload("ct1-default", "CT, 0.5 MB, one association, senders and servers as Debian ships them", "CT", 100, 1, False),
    Workload("ct8", "CT, 0.5 MB, 8 associations", "CT", 100, 8),
    Workload("ct32", "CT, 0.5 MB, 32 associations", "CT", 60, 32),
    Workload("cr1", "CR, 10 MB, one association", "CR", 12),
    Workload("cr8", "CR, 10 MB, 8 associations", "CR", 4, 8),
    Workload("large", "Objects of 128 MB, one association", "LARGE", 2),
]


def servers(workload: Workload) -> dict:
    """Who receives. Plain storescp and pynetdicom's default take one association after the other or are threads."""
    parallel = workload.associations > 1
    dcmtk = "dcmtk storescp --fork" if parallel else "dcmtk storescp"
    return {
        "hilum": Hilum, "Orthanc": Orthanc, "Orthanc, PostgreSQL": OrthancOnPostgres,
        dcmtk: lambda folder: Storescp(folder, fork=parallel), "dicom-rs storescp": DicomRs, "pynetdicom": Pynetdicom,
        f"{dcmtk} --ignore": lambda folder: Discarding(folder, fork=parallel), DISK_ALONE: None,
    }


# Not a server: what the disk needs for what must be on it before Success, with nobody sending and nothing computed.
DISK_ALONE = "the disk alone"


@dataclasses.dataclass
class Run:
    seconds: float
    # Seconds of each object, from "Sending file" to Success, as the senders logged them.
    objects: list[float]
    # Objects a second of each association while all were sending; empty when never all were.
    shares: list[float]
    failures: int
    # Whether the server was still there at the end.
    survived: bool
    growth_mib: float
    cpu_seconds: float
    load: Load


# Servers' folders stay until the end while so many bytes are free: a file system that has just deleted thousands of
# files may search long for free inodes (ext4 without a journal does for minutes), which would slow whoever comes next.
KEEP_WHILE_FREE_BYTES = 10 << 30


def send(server: Server, folders: list[pathlib.Path], work: pathlib.Path, tcp_nodelay: bool) -> tuple[list, int]:
    """Each folder on an association of its own, all at once. Returns each one's times of start and Success."""
    configuration = work / "storescu.cfg"
    configuration.write_text(LOG_CONFIGURATION)
    logs = [work / f"sender-{index}.log" for index in range(len(folders))]
    senders = []
    for folder, log in zip(folders, logs):
        with open(log, "wb") as output:
            senders.append(subprocess.Popen(
                ["storescu", "-lc", str(configuration), "-aet", CALLING, "-aec", CALLED, "-R", "+sd", "127.0.0.1",
                 str(server.port), str(folder)], env=environment(tcp_nodelay), stdout=output, stderr=output))
    failures = sum(sender.wait() != 0 for sender in senders)
    times = []
    for log in logs:
        moments = [(int(seconds) + float(f"0.{milliseconds}{microseconds}"), kind.startswith("Sending"))
                   for seconds, milliseconds, microseconds, kind in TIMED.findall(log.read_text(errors="replace"))]
        pairs = [(start, end) for (start, begins), (end, begins_too) in zip(moments, moments[1:])
                 if begins and not begins_too]
        times.append(pairs)
    return times, failures


def shares(times: list[list[tuple[float, float]]]) -> list[float]:
    """Senders do not start at the same moment: what counts is the time in which all are at it."""
    begun = max(min((start for start, _ in pairs), default=float("inf")) for pairs in times)
    done = min(max((end for _, end in pairs), default=0.0) for pairs in times)
    return [sum(begun <= end <= done for _, end in pairs) / (done - begun) for pairs in times] if begun < done else []


def one_run(server: Server, workload: Workload, folders: list[pathlib.Path], work: pathlib.Path, load: Load) -> Run:
    process_id = server.process.pid
    processes.reset_peak(process_id)
    idle_mib = processes.memory_mib(process_id, "VmRSS")
    cpu_before = server.cpu_seconds()
    times, failures = send(server, folders, work, workload.tcp_nodelay)
    total = workload.count * workload.associations
    kept = sum(len(pairs) for pairs in times)
    survived = server.process.poll() is None
    if failures == 0 and kept != total:
        raise RuntimeError(f"{server.name}: the senders logged {kept} of {total} objects as stored")
    if failures == 0 and survived:
        wait_until(lambda: server.stored() >= total, f"{server.name} keeping {total} objects")
    peak_mib = processes.memory_mib(process_id, "VmHWM") if survived else float("nan")
    cpu = server.cpu_seconds() - cpu_before if survived else float("nan")
    every = [pair for pairs in times for pair in pairs]
    if not every:
        raise RuntimeError(f"{server.name}: no object was stored")
    return Run(
        seconds=max(end for _, end in every) - min(start for start, _ in every),
        objects=[end - start for start, end in every],
        shares=shares(times),
        failures=failures, survived=survived, growth_mib=peak_mib - idle_mib, cpu_seconds=cpu, load=load,
    )


def disk_alone(folder: pathlib.Path, workload: Workload, load: Load) -> Run:
    """As many files of the same size by as many threads, each durable with its name before the next: written in large
    blocks past the page cache, fdatasync, rename, fsync of the folder."""
    block = mmap.mmap(-1, 256 << 10)
    block.write(os.urandom(len(block)))
    (folder / "incoming").mkdir(parents=True)
    (folder / "objects").mkdir()
    times: list[list[tuple[float, float]]] = [[] for _ in range(workload.associations)]

    def write(own: list[tuple[float, float]], thread: int) -> None:
        names = os.open(folder / "objects", os.O_RDONLY | os.O_DIRECTORY)
        for index in range(workload.count):
            start = time.monotonic()
            name = f"{thread}-{index}"
            file = os.open(folder / "incoming" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
            blocks, rest = divmod(int(MEGABYTES_EACH[workload.modality] * 1e6), len(block))
            for _ in range(blocks):
                os.write(file, block)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
            os.write(file, memoryview(block)[:rest])
            os.fdatasync(file)
            os.rename(folder / "incoming" / name, folder / "objects" / name)
            os.fsync(names)
            os.close(file)
            own.append((start, time.monotonic()))
        os.close(names)

    cpu_before = time.process_time()
    threads = [threading.Thread(target=write, args=(own, index)) for index, own in enumerate(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [pair for pairs in times for pair in pairs]
    return Run(
        seconds=max(end for _, end in every) - min(start for start, _ in every),
        objects=[end - start for start, end in every], shares=shares(times),
        failures=workload.count * workload.associations - len(every), survived=True, growth_mib=0.0,
        cpu_seconds=time.process_time() - cpu_before, load=load,
    )


def make_room(folders: pathlib.Path) -> None:
    """Removes the oldest folders until enough is free."""
    for oldest in sorted(folders.iterdir()):
        if shutil.disk_usage(folders).free >= KEEP_WHILE_FREE_BYTES:
            return
        shutil.rmtree(oldest)


def measure(options: Options, run_number: Iterator[int], workload: Workload) -> dict[str, list[Run]]:
    """The runs of each server, taking turns."""
    count = max(2, workload.count // options.count_divisor)
    workload = dataclasses.replace(workload, count=count)
    folders = images.write_set(options.folder / "images", workload.modality, count, workload.associations)
    runs: dict[str, list[Run]] = {}
    for repetition in range(options.repetitions):
        for name, kind in servers(workload).items():
            load = Load.before_run(options)
            folder = options.folder / "servers" / f"{next(run_number):04d}"
            if name == DISK_ALONE:
                run = disk_alone(folder, workload, load)
            else:
                server = kind(folder)
                server.tcp_nodelay = workload.tcp_nodelay
                with server:
                    run = one_run(server, workload, folders, options.folder, load)
            runs.setdefault(name, []).append(run)
            make_room(options.folder / "servers")
            say(f"{workload.name}, {name}, run {repetition + 1}: {len(run.objects) / run.seconds:.1f} objects/s, "
                f"{run.failures} failed senders")
    shutil.rmtree(options.folder / "images")
    return runs


def rate(run: Run) -> float:
    return len(run.objects) / run.seconds


def tell(workload: Workload, runs: dict[str, list[Run]]) -> str:
    bytes_each = MEGABYTES_EACH[workload.modality]
    rows = []
    for name, of in runs.items():
        p95 = [statistics.quantiles(run.objects, n=20)[18] * 1e3 for run in of]
        share = [max(run.shares) / min(run.shares) if run.shares and min(run.shares) else float("nan") for run in of]
        rows.append([
            name, median([rate(run) for run in of], 1), f"{statistics.median(map(rate, of)) * bytes_each:.1f}",
            median([rate(own) / rate(run) for own, run in zip(runs["hilum"], of)], 2), median(p95, 1, with_range=False),
            median([run.growth_mib for run in of], 1, with_range=False), median([run.cpu_seconds for run in of], 2, False),
            str(sum(run.failures for run in of)) + "".join(", server ended" for run in of if not run.survived)[:14],
            median(share, 2, with_range=False) if workload.associations > 1 else "",
            loads([run.load for run in of]),
        ])
    return f"### {workload.title}\n\n" + table(
        ["server", "objects/s", "MB/s", "hilum ÷ it", "p95 ms", "growth MiB", "CPU s", "failed senders",
         "largest ÷ smallest share", "load average; cores busy before"], rows)


def synchronised_before_success(options: Options) -> str:
    """By strace: before each C-STORE response leaves, as many files are synchronised, renamed, and their folder
    synchronised after that. Ends the run otherwise."""
    count = 20
    folders = images.write_set(options.folder / "images", "CT", count)
    with Hilum(options.folder / "server") as server:
        trace = options.folder / "trace"
        calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,writev,sendto,sendmsg"
        with subprocess.Popen(["strace", "-f", "-yy", "-e", calls, "-o", str(trace), "-p", str(server.process.pid)],
                              stderr=subprocess.PIPE, text=True) as tracer:
            tracer.stderr.readline()
            send(server, folders, options.folder, True)
            tracer.terminate()
    responses = follow(trace.read_text(errors="replace"))
    shutil.rmtree(options.folder / "server")
    shutil.rmtree(options.folder / "images")
    if responses != count:
        raise RuntimeError(f"strace saw {responses} C-STORE responses, expected {count}")
    return (f"strace: each of {count} C-STORE responses left after fdatasync of its file, rename, and fsync of its "
            "folder.\n")


def follow(trace: str) -> int:
    """The number of responses in a trace of one association; each must come after its synchronisations."""
    synced = renamed = durable = responses = 0
    unfinished: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if re.match(r'(write|writev|sendto|sendmsg)\(\d+<TCP:.*?"\\4', call):
            responses += 1
            if not responses <= durable:
                raise RuntimeError(f"response {responses} left when {durable} objects were durable: {line}")
        if call.endswith("<unfinished ...>"):
            unfinished[process] = call
            continue
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", call):
            call = unfinished.pop(process, resumed.group(1))
        if call.startswith("fdatasync") and ".part>" in call:
            synced += 1
        elif call.startswith("rename") and ".part" in call:
            renamed += 1
        elif call.startswith("fsync") and "/objects/" in call:
            # An fsync of the folder makes every rename before it durable.
            durable = min(synced, renamed)
    return responses


def closing_line(measured: dict[str, dict[str, list[Run]]]) -> str:
    def paired(workload: str, other: str) -> str:
        runs = measured.get(workload)
        if not runs:
            return "not-measured"
        ratios = [rate(own) / rate(run) for own, run in zip(runs["hilum"], runs[other])]
        return f"{statistics.median(ratios):.2f}"

    growth = max((run.growth_mib for runs in measured.values() for run in runs["hilum"]), default=0.0) * 1.048576
    return (f"durable_vs_orthanc_1={paired('ct1', 'Orthanc')} durable_vs_orthanc_8={paired('ct8', 'Orthanc')} "
            f"vs_dcmtk_1={paired('ct1', 'dcmtk storescp')} vs_dcmtk_8={paired('ct8', 'dcmtk storescp --fork')} "
            f"default_sender_vs_dcmtk={paired('ct1-default', 'dcmtk storescp')} rss_growth_mb={growth:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-receive", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each server (default: 5)")
    parser.add_argument("--only", action="append", choices=[workload.name for workload in WORKLOADS],
                        help="only this workload; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one run and a tenth of the objects: does it work at all?")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS",
                        help="wait so long before each run for others to leave the machine alone (default: 60)")
    parser.add_argument("--busy", type=float, default=0.3, metavar="CORES",
                        help="others may keep so many cores busy when a run starts (default: 0.3)")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    folder.chmod(0o755)
    options = Options(
        repetitions=1 if arguments.quick else arguments.repetitions, count_divisor=10 if arguments.quick else 1,
        maximum_busy_cores=arguments.busy, patience_seconds=arguments.wait, folder=folder,
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    command = "make bench-receive" + (f" ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "")
    facts = [f"date: {now:%Y-%m-%d %H:%M} UTC; command: `{command}`; load average at the start: "
             f"{os.getloadavg()[0]:.1f}", *processes.machine_facts(os.environ["HILUM"], folder)]
    text = "\n" + "".join(f"* {fact}\n" for fact in facts)
    measured, run_number = {}, itertools.count()
    try:
        text += "\n" + synchronised_before_success(options)
        for workload in WORKLOADS:
            if not arguments.only or workload.name in arguments.only:
                measured[workload.name] = measure(options, run_number, workload)
                text += "\n" + tell(workload, measured[workload.name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    closing = closing_line(measured)
    print(text)
    if arguments.only or arguments.quick:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\nMedians of the paired runs: `{closing}`\n\n{END}{after}")
    print(closing)


if __name__ == "__main__":
    main()
