"""From the last image acknowledged to the results accepted by the PACS, at 1, 10 and 60 studies a minute: p50 and p95, split by
stage. Real chest radiographs (one of pydicom-data, with fresh UIDs) to a node with the full-width ensemble, results to
Orthanc. `make bench-e2e` starts this."""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import images
import processes
from bench import DOCUMENT, RADIOGRAPH, TIMES, Options, say, send, table
from servers import Hilum, Orthanc, wait_until

BEGIN, END = "<!-- end to end: begin -->", "<!-- end to end: end -->"
QUIET_SECONDS = 1
# Studies a minute, and how many of them.
RATES = {1: 3, 10: 20, 60: 60}


class FullWidth(Hilum):
    init = ("model", "init", "--full-width")


def percentiles(values: list[float]) -> str:
    ordered = sorted(values)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[18] if len(ordered) > 1 else ordered[0]
    return f"{statistics.median(ordered):.0f} / {p95:.0f}"


def one_study(hilum: Hilum, source: pathlib.Path, folder: pathlib.Path) -> tuple[str, float]:
    of_run = folder / "images"
    of_run.mkdir()
    study = images.fresh_copy(source, of_run / "image.dcm")
    send(hilum, [of_run], True)
    acknowledged = time.time()
    shutil.rmtree(of_run)
    return study, acknowledged


def delivered(hilum: Hilum, study: str) -> dict | None:
    text = hilum.query(TIMES.format(study=study))
    found = json.loads(text) if text else {}
    return found if found.get("delivered") else None


def at_rate(hilum: Hilum, source: pathlib.Path, folder: pathlib.Path, rate: int, count: int) -> list[dict]:
    started, sent = time.monotonic(), []
    for idx in range(count):
        time.sleep(max(0.0, started + idx * 60 / rate - time.monotonic()))
        sent.append(one_study(hilum, source, folder))
    return [{**wait_until(lambda: delivered(hilum, study), "the results in the PACS", 900, 0.2), "acknowledged": acknowledged}
            for study, acknowledged in sent]


def measure(options: Options, rates: dict[int, int], wide: bool) -> tuple[str, str]:
    source = pathlib.Path(os.environ["HILUM_CACHE"]) / RADIOGRAPH
    kind = FullWidth if wide else Hilum
    of_rates: dict[int, list[dict]] = {}
    most_busy = 0.0
    with Orthanc(options.folder / "pacs") as pacs, kind(options.folder / "server", pacs.port, QUIET_SECONDS) as hilum:
        study, _ = one_study(hilum, source, options.folder)
        wait_until(lambda: delivered(hilum, study), "the first results, which also load the networks", 300, 0.2)
        for rate, count in rates.items():
            busy = processes.wait_for_quiet(options.maximum_busy_cores, options.patience_seconds)
            of_rates[rate] = at_rate(hilum, source, options.folder, rate, count)
            say(f"{rate} studies a minute: {count} studies; others kept {busy:.2f} cores busy before")
            most_busy = max(most_busy, busy)
    steps = [
        ("→ study complete, run queued, less the quiet time", lambda m: m["queued"] - m["acknowledged"] - QUIET_SECONDS),
        ("→ run taken by the infer process", lambda m: m["started"] - m["queued"]),
        ("→ analysed", lambda m: m["finished"] - m["started"]),
        *[(f"— of it {stage}", lambda m, stage=stage: m["stages"][stage] / 1e3)
          for stage in next(iter(of_rates.values()))[0]["stages"]],
        ("→ report and heat map rendered and stored", lambda m: m["rendered"] - m["finished"]),
        ("→ all accepted by the PACS", lambda m: m["delivered"] - m["rendered"]),
        ("**last image acknowledged → results accepted, less the quiet time**",
         lambda m: m["delivered"] - m["acknowledged"] - QUIET_SECONDS),
    ]
    rows = [[name, *(percentiles([of(m) * 1e3 for m in runs]) for runs in of_rates.values())] for name, of in steps]
    text = (f"{'Full-width' if wide else 'Narrow'} ensemble with untrained weights, route with quiet_seconds = {QUIET_SECONDS}; "
            f"others kept {most_busy:.2f} cores busy at most before a rate; ms, p50 / p95.\n\n")
    text += table(["step", *(f"{rate} a minute (n = {len(runs)})" for rate, runs in of_rates.items())], rows)
    total = steps[-1][1]
    closing = " ".join(f"p50_p95_ms_at_{rate}={percentiles([total(m) * 1e3 for m in runs]).replace(' / ', '/')}"
                       for rate, runs in of_rates.items())
    return text, closing


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-e2e", description=__doc__)
    parser.add_argument("--narrow", action="store_true", help="the narrow networks of `make run`")
    parser.add_argument("--quick", action="store_true", help="few studies: does it work at all?")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS",
                        help="wait so long before each rate for others to leave the machine alone (default: 60)")
    parser.add_argument("--busy", type=float, default=0.3, metavar="CORES",
                        help="others may keep so many cores busy then (default: 0.3)")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    folder.chmod(0o755)
    options = Options(repetitions=1, count_divisor=1, maximum_busy_cores=arguments.busy,
                      patience_seconds=arguments.wait, folder=folder)
    facts = "".join(f"* {fact}\n" for fact in processes.machine_facts(os.environ["HILUM"], folder)[:4])
    try:
        text, closing = measure(options, {10: 2, 60: 4} if arguments.quick else RATES, not arguments.narrow)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{facts}\n{text}")
    if arguments.quick:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{facts}\n{text}\n`{closing}`\n\n{END}{after}")
    print(closing)


main()
