"""Has other people's tools read every result that `src/report/matrix.rs` wrote, and compares what they read with the run.

    check.py FOLDER [--short] [--jobs N]

FOLDER/matrix holds studies that must be right, FOLDER/mutations ones of which each has a mistake that must be found, and
FOLDER/unchanged one that was written anew without a mistake. `--short` leaves out the tools that only `make
validate-results` installs: the newer dciodvfy, dcmqi and PixelMed.

Ends with one line of totals, and with status 1 unless everything is right and every mistake was found."""

import argparse
import concurrent.futures
import gc
import logging
import os
import pathlib
import shutil
import sys
import time
import warnings

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import pictures
import reports
import study as studies
import tools
from findings import Findings
from study import Object, Study

# What must at least have been looked at, so that an empty folder does not pass.
LEAST_OBJECTS, LEAST_VALUES = 150, 2000
TOLD = 60


def installed(name: str) -> str:
    """A program of this environment, or of the machine."""
    of_environment = pathlib.Path(sys.executable).parent / name
    found = str(of_environment) if of_environment.exists() else shutil.which(name)
    if not found:
        sys.exit(f"check.py: {name} is missing; `deploy/setup.sh results` installs it")
    return found


def of_machine(name: str) -> str:
    if not (found := shutil.which(name)):
        sys.exit(f"check.py: {name} is missing; `deploy/setup.sh results` installs it")
    return found


def judge(folder: pathlib.Path, foreign: set[str], is_short: bool) -> Findings:
    """Everything about one study."""
    # pydicom warns of names that it cannot decode; they are compared by their bytes.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    findings = Findings()
    study = Study(folder)
    findings.objects = len(study.objects)
    programs = [(of_machine("dciodvfy"), True)] + ([] if is_short else [(installed("dciodvfy"), False)])
    is_bare = not study.newest.raw_bytes("PatientID")
    of_source = {program: tools.said_of_name(program, study.newest.path) for program, _ in programs}
    for result in study.objects:
        for program, is_of_2022 in programs:
            tools.dciodvfy(program, result.path, is_of_2022, is_bare, of_source[program], findings)
        try:
            check_object(study, result, foreign, is_short, findings)
        except Exception as error:  # whatever a reader says of a broken object
            findings.error(f"{study.name}/{result.name}: cannot be read: {type(error).__name__}: {error}")
    studies.check_destinations(study, findings)
    everything = [*study.sources, *study.objects]
    has_two_sets = len({each.character_set for each in everything}) > 1
    tools.dcentvfy(of_machine("dcentvfy"), [each.path for each in everything], is_bare, has_two_sets, findings)
    return findings


def check_object(study: Study, result: Object, foreign: set[str], is_short: bool, findings: Findings) -> None:
    for check in (
        studies.check_identity, studies.check_patient, studies.check_character_set, studies.check_times,
        studies.check_equipment, studies.check_references, studies.check_words,
    ):
        check(study, result, findings)
    studies.check_foreign(study, result, foreign, findings)
    if result.what in ("report", "text_companion"):
        tools.dsrdump(result.path, study.has_backslash, findings)
        numbers = reports.check_report(study, result, findings)
        if numbers is not None and not is_short:
            read = tools.tid1500(installed("tid1500reader"), result.path, findings)
            # It reads Numeric Value, a decimal string of 16 characters; highdicom the float beside it.
            in_order = [dict(enumerate(sorted(map(float, of)))) for of in (numbers, read)]
            findings.equal_sets("numbers read by dcmqi", f"{study.name}/{result.name}", *in_order)
    elif result.what == "segmentation":
        dcmqi = None if is_short else installed("segimage2itkimage")
        pictures.check_segmentation(study, result, dcmqi, findings)
    elif result.what == "presentation_state":
        pictures.check_presentation_state(study, result, findings)
    elif result.what == "key_objects":
        tools.dsrdump(result.path, study.has_backslash, findings)
        pictures.check_key_objects(study, result, findings)
    else:
        pictures.check_picture(study, result, findings)


def pixelmed(folders: list[pathlib.Path], jobs: int, findings: Findings) -> None:
    """PixelMed reads every report."""
    read = ("report", "text_companion", "key_objects")
    paths = [result.path for folder in folders for result in Study(folder).objects if result.what in read]
    # A Java process for each: none is inherited, as it would not work in a child.
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for of_process in pool.map(template_checks, [paths[n::jobs] for n in range(jobs)]):
            findings.add(of_process)


def template_checks(paths: list[pathlib.Path]) -> Findings:
    gc.freeze()  # Java's collector starts Python's, which would go through all that the parent has read, every second
    validator, findings = tools.PixelMed(), Findings()
    for path in paths:
        validator.validate(path, findings)
    return findings


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--short", action="store_true")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count())
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()

    def folders(name: str) -> list[pathlib.Path]:
        return sorted(path.parent for path in (options.folder / name).glob("*/case.json"))

    matrix, mutations, unchanged = folders("matrix"), folders("mutations"), folders("unchanged")
    own = {study.name: study.uids() for study in map(Study, matrix)}
    total, caught = Findings(), 0
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:

        def judged(of: list[pathlib.Path]):
            jobs = []
            for folder in of:
                name = Study(folder).name
                foreign = set().union(*(uids for other, uids in own.items() if other != name))
                jobs.append(pool.submit(judge, folder, foreign, options.short))
            return zip(of, (job.result() for job in jobs))

        for _, findings in judged(matrix):
            total.add(findings)
        for folder, findings in judged(unchanged):
            total.errors += [f"written anew without a mistake: {words}" for words in findings.all()]
        for folder, findings in judged(mutations):
            found = findings.all()
            caught += bool(found)
            print(f"mutation {folder.name}: {found[0] if found else 'NOT FOUND'}")
    if not options.short:
        pixelmed(matrix, options.jobs, total)

    for words in total.all()[:TOLD]:
        print(words)
    if len(total.all()) > TOLD:
        print(f"… and {len(total.all()) - TOLD} more")
    for title, counter in (("compared", total.compared), ("tools", total.runs)):
        print(f"{title}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(counter.items())))
    print(f"{len(matrix)} studies in {time.monotonic() - started:.0f} s")
    n_values = sum(total.compared.values())
    print(
        f"objects={total.objects} errors={len(total.errors)} unexpected_warnings={len(total.warnings)} "
        f"values_compared={n_values} mismatches={len(total.mismatches)} mutations_caught={caught}/{len(mutations)}"
    )
    is_enough = options.short or (total.objects >= LEAST_OBJECTS and n_values >= LEAST_VALUES)
    return 0 if is_enough and matrix and mutations and not total.all() and caught == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main())
