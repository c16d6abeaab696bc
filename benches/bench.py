"""Measures the node beside Orthanc and dcmtk's storescp: the servers take turns, each run starts a fresh server on an
empty folder, and the tables give medians with minimum and maximum. run.sh starts this."""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import images
import processes
from servers import CALLED, CALLING, Hilum, Orthanc, Server, Storescp, environment, wait_until

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
RADIOGRAPH = "pydicom-data-1.0.0/data_store/data/RG1_UNCR.dcm"


@dataclasses.dataclass
class Options:
    repetitions: int
    count_divisor: int
    maximum_busy_cores: float
    patience_seconds: float
    folder: pathlib.Path


@dataclasses.dataclass
class Load:
    """How busy the machine was before a run: the load average (which counts our own runs too), and the cores that
    others kept busy in the half second before it."""

    average: float
    busy_cores: float

    @classmethod
    def before_run(cls, options: Options) -> "Load":
        busy = processes.wait_for_quiet(options.maximum_busy_cores, options.patience_seconds)
        return cls(os.getloadavg()[0], busy)


def median(values: list[float], digits: int, with_range: bool = True) -> str:
    """`median (minimum–maximum)`."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})" if with_range else middle


def loads(runs: list["Load"]) -> str:
    return f"{median([run.average for run in runs], 1)}; {median([run.busy_cores for run in runs], 1)}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def sender(port: int, folder: pathlib.Path, tcp_nodelay: bool) -> subprocess.Popen:
    """dcmtk's storescu."""
    command = ["storescu", "-aet", CALLING, "-aec", CALLED, "-R", "+sd", "127.0.0.1", str(port), str(folder)]
    return subprocess.Popen(command, env=environment(tcp_nodelay), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def send(server: Server, folders: list[pathlib.Path], tcp_nodelay: bool) -> float:
    """Sends each folder by an association of its own, all at once. Returns the seconds that it took."""
    started = time.monotonic()
    senders = [sender(server.port, folder, tcp_nodelay) for folder in folders]
    outputs = [process.communicate()[0] for process in senders]
    seconds = time.monotonic() - started
    for process, output in zip(senders, outputs):
        if process.returncode != 0:
            raise RuntimeError(f"storescu to {server.name}: {output.decode(errors='replace')[-2000:]}")
    return seconds


@dataclasses.dataclass
class Run:
    seconds: float
    peak_mib: float
    growth_mib: float
    cpu_seconds: float
    load: Load
    indexed_after_seconds: float | None = None
    postgres_cpu_seconds: float | None = None


def one_run(server: Server, folders: list[pathlib.Path], count: int, tcp_nodelay: bool, load: Load) -> Run:
    process_id = server.process.pid
    processes.reset_peak(process_id)
    idle_mib = processes.memory_mib(process_id, "VmRSS")
    cpu_before = server.cpu_seconds()
    postgres_before = server.postgres_cpu_seconds() if isinstance(server, Hilum) else 0.0
    seconds = send(server, folders, tcp_nodelay)
    indexed_after, postgres_cpu = None, None
    if isinstance(server, Hilum):
        ended = time.monotonic()
        wait_until(lambda: server.indexed() == count, f"the index of {count} objects", pause=0.002)
        indexed_after = time.monotonic() - ended
        postgres_cpu = server.postgres_cpu_seconds() - postgres_before
    wait_until(lambda: server.stored() == count, f"{server.name} keeping {count} objects")
    peak_mib = processes.memory_mib(process_id, "VmHWM")
    cpu = server.cpu_seconds() - cpu_before
    return Run(seconds, peak_mib, peak_mib - idle_mib, cpu, load, indexed_after, postgres_cpu)


def receive(options: Options, title: str, modality: str, count: int, associations: int, modes: list[bool]) -> str:
    """How fast objects are received."""
    count = max(2, count // options.count_divisor)
    folders = images.write_set(options.folder / "images", modality, count, associations)
    bytes_each = next(folders[0].iterdir()).stat().st_size
    total = count * associations
    parallel = associations > 1
    kinds = {
        "hilum": Hilum,
        "Orthanc": Orthanc,
        "dcmtk storescp --fork" if parallel else "dcmtk storescp": lambda folder: Storescp(folder, fork=parallel),
    }
    runs: dict[tuple[bool, str], list[Run]] = {(mode, name): [] for mode in modes for name in kinds}
    for repetition in range(options.repetitions):
        for (mode, name), results in runs.items():
            load = Load.before_run(options)
            folder = options.folder / "server"
            server = kinds[name](folder)
            server.tcp_nodelay = mode
            with server:
                results.append(one_run(server, folders, total, mode, load))
            shutil.rmtree(folder)
            last = results[-1]
            say(f"{title}, {'TCP_NODELAY=1' if mode else 'as shipped'}, run {repetition + 1}, {name}: "
                f"{total / last.seconds:.0f} files/s, {last.cpu_seconds:.2f} s CPU, load {load.average:.1f}")
    shutil.rmtree(options.folder / "images")
    text = f"### {title}\n\n{total} objects of {bytes_each / 1e6:.3f} MB"
    text += f", {associations} associations at once; the memory of storescp is its parent's.\n" if parallel else ", one association.\n"
    for mode in modes:
        text += "\n" + ("`TCP_NODELAY=1` for the sender and the servers:" if mode
                        else "Sender and servers as Debian ships them (Nagle's algorithm on):") + "\n\n"
        rows = []
        reference = statistics.median(run.seconds for run in runs[mode, "hilum"])
        for name in kinds:
            of = runs[mode, name]
            seconds = [run.seconds for run in of]
            rows.append([
                name,
                median([total / value for value in seconds], 1),
                median([total * bytes_each / 1e6 / value for value in seconds], 1, with_range=False),
                f"{statistics.median(seconds) / reference:.2f}",
                median([run.peak_mib for run in of], 1, with_range=False),
                median([run.growth_mib for run in of], 1, with_range=False),
                median([run.cpu_seconds for run in of], 2),
                loads([run.load for run in of]),
            ])
        text += table(["server", "files/s", "MB/s", "time ÷ hilum's", "peak RSS MiB", "growth MiB", "server CPU s",
                       "load average; cores busy before"], rows)
        of = runs[mode, "hilum"]
        text += (
            f"\nhilum's index was complete {median([run.indexed_after_seconds * 1e3 for run in of], 0)} ms after the "
            f"sender had ended; its Postgres used {median([run.postgres_cpu_seconds for run in of], 2)} s CPU.\n"
        )
    return text


def memory(options: Options) -> str:
    """Whether objects are held in memory."""
    count = max(2, 50 // options.count_divisor)
    folders = images.write_set(options.folder / "images", "CR", count)
    rows = []
    for kind in (Hilum, Orthanc, Storescp):
        load = Load.before_run(options)
        folder = options.folder / "server"
        with kind(folder) as server:
            process_id = server.process.pid
            processes.reset_peak(process_id)
            idle = processes.memory_mib(process_id, "VmRSS")
            with processes.MemorySamples(process_id) as sampler:
                seconds = send(server, folders, True)
            wait_until(lambda: server.stored() == count, f"{server.name} keeping {count} objects")
            time.sleep(1)
            after = processes.memory_mib(process_id, "VmRSS")
            peak = processes.memory_mib(process_id, "VmHWM")
            during = statistics.median(sampler.samples)
        shutil.rmtree(folder)
        say(f"memory, {server.name}: {idle:.1f} MiB idle, {peak:.1f} MiB at the peak")
        rows.append([server.name, f"{idle:.1f}", f"{during:.1f}", f"{peak:.1f}", f"{after:.1f}", f"{peak - idle:.1f}",
                     f"{seconds:.2f}", loads([load])])
    shutil.rmtree(options.folder / "images")
    return (
        f"### Resident memory while receiving {count} objects of 10 MB\n\n"
        "VmRSS of the server's process in MiB, sampled every 10 ms; the peak is the kernel's (VmHWM). Of hilum's idle "
        "size about 112 MiB are libtorch, which the receiving process maps and never uses.\n\n"
        + table(["server", "idle", "median during", "peak", "1 s after", "growth (peak − idle)", "seconds",
                 "load average; cores busy before"], rows)
    )


def durability(options: Options) -> str:
    """Which servers synchronise what they acknowledge: counted by strace."""
    count = 20
    folders = images.write_set(options.folder / "images", "CT", count)
    rows = []
    for kind in (Hilum, Orthanc, Storescp):
        folder = options.folder / "server"
        with kind(folder) as server:
            trace = server.folder / "trace"
            command = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace),
                       "-p", str(server.process.pid)]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
                tracer.stderr.readline()
                send(server, folders, True)
                tracer.terminate()
            calls = re.findall(r"^\d+ +(fsync|fdatasync)\(\d+<([^>]*)>", trace.read_text(), re.MULTILINE)
            of_folders = sum(1 for _, path in calls if pathlib.Path(path).is_dir())
        shutil.rmtree(folder)
        rows.append([server.name, f"{(len(calls) - of_folders) / count:.2f}", f"{of_folders / count:.2f}",
                     server.durability])
    shutil.rmtree(options.folder / "images")
    return (
        "### What is durable before it is acknowledged\n\n"
        f"fsync and fdatasync of the server's process, counted by strace while {count} CT images came in.\n\n"
        + table(["server", "of files, for each object", "of folders, for each object", "durable before Success"], rows)
    )


TIMES = """
select json_build_object(
    'received', extract(epoch from w.last_object_at), 'queued', extract(epoch from r.queued_at),
    'started', extract(epoch from r.started_at), 'finished', extract(epoch from r.finished_at),
    'rendered', extract(epoch from r.rendered_at), 'stages', r.stage_milliseconds, 'words', r.words,
    'delivered', (select extract(epoch from max(d.delivered_at)) from delivery d join result x on x.id = d.result_id
                  where x.run_id = r.id having count(*) >= 2 and bool_and(d.state in ('delivered', 'unneeded'))))
from run r join workup w on w.id = r.workup_id where w.study_instance_uid = '{study}'
""".replace("\n", " ")


def last_to_result(options: Options) -> str:
    """From the last image acknowledged to the results acknowledged by the PACS."""
    source = pathlib.Path(os.environ.get("HILUM_CACHE", pathlib.Path.home() / ".cache/hilum")) / RADIOGRAPH
    quiet_seconds = 2
    folder = options.folder / "server"
    measured: list[dict] = []
    with Orthanc(options.folder / "pacs") as pacs, Hilum(folder, pacs.port, quiet_seconds) as hilum:
        for repetition in range(options.repetitions + 1):
            load = Load.before_run(options)
            of_run = options.folder / "images"
            of_run.mkdir()
            study = images.fresh_copy(source, of_run / "image.dcm")
            send(hilum, [of_run], True)
            acknowledged = time.time()
            answer = TIMES.format(study=study)

            def times() -> dict | None:
                text = hilum.query(answer)
                found = json.loads(text) if text else {}
                return found if found.get("delivered") else None

            found = wait_until(times, "the results in the PACS", 300, 0.02)
            measured.append({**found, "acknowledged": acknowledged, "load": load})
            shutil.rmtree(of_run)
            say(f"last image to result, study {repetition + 1}: {found['delivered'] - acknowledged:.2f} s")
        # Images stay in hilum: the PACS has the results alone.
        assert pacs.stored() >= 2 * len(measured), f"the PACS has {pacs.stored()} objects"
    shutil.rmtree(folder)
    shutil.rmtree(options.folder / "pacs")
    first, others = measured[0], measured[1:]
    # The quiet time runs from the receipt of the last image.
    steps = [
        ("image received → sender gone", lambda m: m["acknowledged"] - m["received"]),
        ("→ study complete, run queued, less the quiet time",
         lambda m: m["queued"] - m["acknowledged"] - quiet_seconds),
        ("→ run taken by the infer process", lambda m: m["started"] - m["queued"]),
        ("→ analysed", lambda m: m["finished"] - m["started"]),
        ("→ report and heat map rendered and stored", lambda m: m["rendered"] - m["finished"]),
        ("→ all acknowledged by the PACS", lambda m: m["delivered"] - m["rendered"]),
        ("**image acknowledged → results acknowledged, less the quiet time**",
         lambda m: m["delivered"] - m["acknowledged"] - quiet_seconds),
    ]
    rows = [[name, f"{of(first) * 1e3:.0f}", median([of(m) * 1e3 for m in others], 0)] for name, of in steps]
    stages = list(first["stages"])
    stage_rows = [[stage, f"{first['stages'][stage]:.0f}", median([m["stages"][stage] for m in others], 0)]
                  for stage in stages]
    later = f"the {len(others)} after it"
    return (
        "### From the last image to the results in the PACS\n\n"
        f"One real chest radiograph (RG1, 1955 × 1841) at a time, untrained bundle of small width, results to Orthanc, "
        f"route with quiet_seconds = {quiet_seconds}; ms. The first study also loads the networks. "
        f"Load average; cores busy before: {loads([m['load'] for m in measured])}.\n\n"
        + table(["step", "first study", later], rows)
        + "\nInside the analysis (`stage_milliseconds` of the run):\n\n"
        + table(["stage", "first study", later], stage_rows)
    )


def measures() -> dict:
    return {
        "durable": durability,
        "ct": lambda options: receive(options, "CT: 200 slices", "CT", 200, 1, [True, False]),
        "cr": lambda options: receive(options, "CR: 10 radiographs", "CR", 10, 1, [True, False]),
        "parallel": lambda options: receive(options, "Eight associations at once", "CT", 200, 8, [True]),
        "memory": memory,
        "result": last_to_result,
    }


def write_document(text: str) -> None:
    document = DOCUMENT.read_text()
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each server (default: 3)")
    parser.add_argument("--only", action="append", choices=measures(), help="only this measure; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one run and a tenth of the objects: does it work at all?")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS",
                        help="wait so long before each run for others to leave the machine alone (default: 60)")
    parser.add_argument("--busy", type=float, default=0.3, metavar="CORES",
                        help="others may keep so many cores busy when a run starts (default: 0.3)")
    arguments = parser.parse_args()
    # Everybody may enter the folder: as root the private Postgres runs as another user.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    folder.chmod(0o755)
    options = Options(
        repetitions=1 if arguments.quick else arguments.repetitions,
        count_divisor=10 if arguments.quick else 1,
        maximum_busy_cores=arguments.busy,
        patience_seconds=arguments.wait,
        folder=folder,
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    command = "make bench" + (f" ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else "")
    facts = [f"date: {now:%Y-%m-%d %H:%M} UTC; command: `{command}`; load average at the start: "
             f"{os.getloadavg()[0]:.1f}", *processes.machine_facts(os.environ["HILUM"], folder)]
    text = "\n" + "".join(f"* {fact}\n" for fact in facts)
    say(text)
    try:
        for name, measure in measures().items():
            if not arguments.only or name in arguments.only:
                section = "\n" + measure(options)
                text += section
                say(section)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(text)
    if arguments.only or arguments.quick:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        write_document(text + "\n")
        say("written to docs/benchmarks.md")


if __name__ == "__main__":
    main()
