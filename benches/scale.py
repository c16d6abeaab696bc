"""Whether a full index slows anything down: two nodes side by side, one with a thousand studies in its index and one with
a million, take turns at receiving and at showing their pages. `make bench-scale` starts this.

The rows are made by SQL in throw-away databases, through the columns that migrations/ documents; the images that are then
sent and the pages that are then asked for are real. The last line has the ratios of the large node to the small one;
1.5 is the most that is wanted."""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time
import urllib.request

import pydicom

import images
import processes
from bench import DOCUMENT, Options, say, table
from receive import send
from servers import Hilum, wait_until

BEGIN, END = "<!-- scaled: begin -->", "<!-- scaled: end -->"
WANTED = 1.5

# One study in ten was analysed: a run, a report and a heat map, each delivered. Spread over two years; the newest is a
# minute old. Both nodes have the 10,000 refusals that a node keeps at most, of the last week.
ROWS = """
create temporary table made as
select n, '2.25.9' || lpad(n::text, 30, '0') as study, gen_random_uuid() as workup, gen_random_uuid() as association,
       now() - interval '1 minute' - (interval '730 days' * (1 - n / {count}.0)) as at
from generate_series(1, {count}) n;
insert into association (id, node, peer_address, calling_ae_title, called_ae_title, started_at, ended_at, end_kind,
                         end_words, objects_stored, objects_refused, bytes_received)
select association, 'HILUM', '127.0.0.1', 'BENCH', 'HILUM', at, at + interval '1 second', 'released', 'released', 1, 0,
       500000 from made;
insert into refusal (node, kind, reason, peer_address, calling_ae_title, called_ae_title, sop_class_uid, expected,
                     received, remedy, harmless, count, first_at, last_at)
select 'HILUM', 'association', 'calling_ae_title', '127.0.0.1', 'OTHER' || n, 'HILUM', '', 'another title', 'this title',
       'run hilum peer add', false, 1, at, at
from (select n, now() - interval '7 days' * (n / 10000.0) as at from generate_series(1, 10000) n) refused;
insert into study (study_instance_uid, patient_id, patient_name, study_date, first_received_at, last_received_at)
select study, 'BENCH' || n, 'Bench^Synthetic', to_char(at, 'YYYYMMDD'), at, at from made;
insert into series (series_instance_uid, study_instance_uid, modality, series_number)
select study || '.1', study, 'CR', 1 from made;
insert into instance (id, sop_instance_uid, local_ae_title, sha256, version, sop_class_uid, study_instance_uid,
                      series_instance_uid, modality, transfer_syntax_uid, size_bytes, archive_key, association_id,
                      calling_ae_title, peer_address, received_at, own_output)
select gen_random_uuid(), study || '.1.1', 'HILUM', sha256(study::bytea), 1, '1.2.840.10008.5.1.4.1.1.1', study,
       study || '.1', 'CR', '1.2.840.10008.1.2.1', 500000, 'objects/' || to_char(at, 'YYYY/MM/DD/HH24/') || n || '.dcm',
       association, 'BENCH', '127.0.0.1', at, false from made;
insert into workup (id, study_instance_uid, local_ae_title, state, state_words, revision, calling_ae_title,
                    completeness_reason, first_object_at, last_object_at, due_at, updated_at)
select workup, study, 'HILUM', case when n % 10 = 0 then 'answered' else 'not_routed' end, 'done', 1, 'BENCH', 'quiet', at,
       at, at, at from made;
insert into event (at, subject_kind, subject_id, kind, words)
select at, 'workup', workup::text, kind, 'words of an event'
from made, (values ('receiving'), ('complete'), ('answered')) kinds (kind);
create temporary table analysed as select *, gen_random_uuid() as run, gen_random_uuid() as report,
                                          gen_random_uuid() as heat_map from made where n % 10 = 0;
insert into run (id, workup_id, revision, role, bundle, destinations, state, words, attempt, maximum_attempts,
                 next_attempt_at, queued_at, started_at, finished_at, rendered_at)
select run, workup, 1, 'live', 'cxr', '{{pacs}}', 'not_analysed', 'done', 1, 3, at, at, at, at, at from analysed;
insert into event (at, subject_kind, subject_id, kind, words)
select at, 'run', run::text, kind, 'words of an event'
from analysed, (values ('queued'), ('running'), ('not_analysed')) kinds (kind);
insert into result (id, run_id, kind, ordinal, sop_class_uid, sop_instance_uid, series_instance_uid, transfer_syntax_uid,
                    archive_key, sha256, size_bytes, device_uid, created_at)
select id, run, kind, 1, '1.2.840.10008.5.1.4.1.1.88.33', '2.25.' || uuid_hash, '2.25.1.' || uuid_hash,
       '1.2.840.10008.1.2.1', 'results/' || id || '.dcm', sha256(study::bytea), 20000, '2.25.1', at
from (select analysed.*, report as id, 'sr' as kind, '8' || n as uuid_hash from analysed
      union all select analysed.*, heat_map, 'sc', '7' || n from analysed) results;
insert into delivery (id, run_id, result_id, destination, chain, rank, send_order, state, attempts, last_status, created_at,
                      delivered_at)
select gen_random_uuid(), run, id, 'pacs', kind, 0, 1, 'delivered', 1, 0, at, at
from (select report as id, 'sr' as kind, analysed.* from analysed
      union all select heat_map, 'sc', analysed.* from analysed) results;
insert into event (at, subject_kind, subject_id, kind, words)
select created_at, 'delivery', id::text, 'delivered', 'words of an event' from delivery;
drop table analysed;
drop table made;
vacuum (analyze);
checkpoint;
"""


class Node:
    """A node with so many studies in its index."""

    def __init__(self, name: str, count: int, folder: pathlib.Path) -> None:
        self.name, self.count = name, count
        self.hilum = Hilum(folder)
        self.objects: list[float] = []
        self.indexed_ms: list[float] = []
        self.pages: dict[str, list[float]] = {}

    def fill(self) -> None:
        started = time.monotonic()
        self.hilum.query(ROWS.format(count=self.count).replace("\n", " ").strip().rstrip(";"))
        found = int(self.hilum.query("select count(*) from study"))
        if found != self.count:
            raise RuntimeError(f"the index of the {self.name} node has {found} studies instead of {self.count}: "
                               f"are the columns of migrations/ others than those of this script?")
        size = self.hilum.query("select pg_size_pretty(pg_database_size(current_database()))")
        say(f"{self.name}: {self.count} studies, {size}, made in {time.monotonic() - started:.0f} s")

    def receive(self, folders: list[pathlib.Path], work: pathlib.Path) -> None:
        times, failures = send(self.hilum, folders, work, True)
        if failures:
            raise RuntimeError(f"the {self.name} node refused images")
        ended = time.monotonic()
        self.objects += [end - start for pairs in times for start, end in pairs]
        uid = newest_uid(folders[0])
        wait_until(lambda: self.hilum.query(f"select 1 from instance where sop_instance_uid = '{uid}'"), "the index",
                   pause=0.002)
        self.indexed_ms.append((time.monotonic() - ended) * 1e3)

    def show(self, paths: dict[str, str]) -> None:
        for name, path in paths.items():
            started = time.monotonic()
            with urllib.request.urlopen(self.hilum.http_url + path, timeout=120) as answer:
                answer.read()
            self.pages.setdefault(name, []).append(time.monotonic() - started)


def newest_uid(folder: pathlib.Path) -> str:
    """SOP Instance UID of the last file in the order in which storescu sends."""
    return str(pydicom.dcmread(sorted(folder.iterdir())[-1], stop_before_pixels=True).SOPInstanceUID)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[18]


def measure(options: Options, small_count: int, large_count: int, rounds: int) -> tuple[str, str]:
    small = Node("small", small_count, options.folder / "small")
    large = Node("large", large_count, options.folder / "large")
    study = "2.25.9" + f"{small_count // 20 * 10:030d}"
    paths = {"status page": "/", "a study's page": f"/studies/{study}", "GET /api/studies": "/api/studies",
             "GET /api/studies/…": f"/api/studies/{study}", "GET /api/runs": "/api/runs",
             "GET /api/backlog": "/api/backlog", "GET /api/doctor": "/api/doctor", "GET /readyz": "/readyz", "GET /metrics": "/metrics"}
    with small.hilum, large.hilum:
        for node in (small, large):
            node.fill()
            node.show(paths)  # a first time, cold
            node.pages.clear()
        for turn in range(rounds):
            processes.wait_for_quiet(options.maximum_busy_cores, options.patience_seconds)
            for node in (small, large) if turn % 2 == 0 else (large, small):
                folders = images.write_set(options.folder / "images", "CT", 50 // options.count_divisor)
                node.receive(folders, options.folder)
                shutil.rmtree(options.folder / "images")
                for _ in range(5):
                    node.show(paths)
            say(f"round {turn + 1} of {rounds}")
    stored = p95(large.objects) / p95(small.objects)
    rows = [["C-STORE, CT of 0.5 MB, p95", f"{p95(small.objects) * 1e3:.1f}", f"{p95(large.objects) * 1e3:.1f}", f"{stored:.2f}"],
            ["last Success → index complete, median", f"{statistics.median(small.indexed_ms):.0f}",
             f"{statistics.median(large.indexed_ms):.0f}",
             f"{statistics.median(large.indexed_ms) / statistics.median(small.indexed_ms):.2f}"]]
    ratios = {}
    for name in paths:
        of_small, of_large = statistics.median(small.pages[name]), statistics.median(large.pages[name])
        ratios[name] = of_large / of_small
        rows.append([f"{name}, median", f"{of_small * 1e3:.1f}", f"{of_large * 1e3:.1f}", f"{ratios[name]:.2f}"])
    slowest = max(ratios, key=ratios.get)
    text = table(["ms", f"{small_count} studies", f"{large_count} studies", "ratio"], rows)
    held = "held" if max(stored, ratios[slowest]) <= WANTED else "missed"
    closing = (f"studies={large_count} c_store_p95_ratio={stored:.2f} slowest_page_ratio={ratios[slowest]:.2f} "
               f"slowest_page={slowest.replace(' ', '_')} limit={WANTED} {held}")
    return text, closing


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--small", type=int, default=1000, help="studies of the small node (default: 1000)")
    parser.add_argument("--large", type=int, default=1_000_000, help="studies of the large node (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each node (default: 10)")
    parser.add_argument("--quick", action="store_true", help="few images and rounds: does it work at all?")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS",
                        help="wait so long before each turn for others to leave the machine alone (default: 60)")
    parser.add_argument("--busy", type=float, default=0.5, metavar="CORES",
                        help="others, the two idle nodes included, may keep so many cores busy then (default: 0.5)")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-bench."))
    folder.chmod(0o755)
    options = Options(repetitions=1, count_divisor=10 if arguments.quick else 1, maximum_busy_cores=arguments.busy,
                      patience_seconds=arguments.wait, folder=folder)
    facts = "".join(f"* {fact}\n" for fact in processes.machine_facts(os.environ["HILUM"], folder))
    try:
        text, closing = measure(options, arguments.small, arguments.large, 2 if arguments.quick else arguments.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{facts}\n{text}")
    if arguments.quick or arguments.large != 1_000_000:
        say("a part only: docs/benchmarks.md stays as it is")
    else:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{facts}\n{text}\n`{closing}`\n\n{END}{after}")
    print(closing)


if __name__ == "__main__":
    main()
