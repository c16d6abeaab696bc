"""Judges a run by what anybody can see: the senders' logs, the files of the archive and Orthanc's REST interface.

    check.py MANIFEST ACKNOWLEDGED ARCHIVE ORTHANC_URL

It knows nothing of Hilum's tables, names or code. Prints one JSON object; `told` names what is wrong."""

import collections
import hashlib
import io
import json
import pathlib
import sys
import urllib.request

import pydicom
from pydicom.uid import BasicTextSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage

# What a study gets once, by SOP class.
REPORTS = {str(ComprehensiveSRStorage): "reports", str(BasicTextSRStorage): "reports in sentences"}


def digest_of_data_set(part10: bytes) -> str:
    """SHA-256 of what follows the file meta information (PS3.10 section 7.1)."""
    if part10[128:132] != b"DICM":
        raise ValueError("not a Part 10 file")
    return hashlib.sha256(part10[144 + int.from_bytes(part10[140:144], "little"):]).hexdigest()


def digest_of_content(part10: bytes) -> str:
    """SHA-256 of the attributes and values: a PACS may write lengths and padding anew."""
    data_set = pydicom.dcmread(io.BytesIO(part10))
    return hashlib.sha256(json.dumps(data_set.to_json_dict(), sort_keys=True).encode()).hexdigest()


class Judgement:
    def __init__(self) -> None:
        self.lost, self.duplicated, self.corrupted = 0, 0, 0
        # Files of a result whose rendering was interrupted and repeated, beside the file that counts.
        self.left_over = 0
        self.told: list[str] = []

    def find(self, kind: str, words: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.told) < 100:
            self.told.append(f"{kind}: {words}")


def received(archive: pathlib.Path, sent: dict[str, dict], acknowledged: set[str], judge: Judgement) -> dict[str, bytes]:
    """Every acknowledged object is in one file, bit for bit. Returns the other files by their UID: the results."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    others: dict[str, bytes] = {}
    for path in sorted(archive.rglob("*.dcm")):
        part10 = path.read_bytes()
        try:
            uid = str(pydicom.dcmread(io.BytesIO(part10), specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
            digest = digest_of_data_set(part10)
        except Exception as error:  # whatever pydicom says of a broken file
            judge.find("corrupted", f"{path.name} of {len(part10)} bytes cannot be read: {error}")
            continue
        if uid not in sent:
            if uid in others and part10 == others[uid]:
                judge.find("left_over", f"the result {uid} is in two files, byte for byte the same")
            elif uid in others:
                judge.find("duplicated", f"the result {uid} is in two files that differ")
            others[uid] = part10
            continue
        found[uid].append(digest)
        if digest != sent[uid]["sha256"]:
            judge.find("corrupted", f"{path.name} is not what was sent as {uid}")
    for uid in sorted(acknowledged):
        if uid not in found:
            judge.find("lost", f"the acknowledged object {uid} is in no file")
    for uid, digests in found.items():
        for _ in digests[1:]:
            judge.find("duplicated", f"{uid} is in {len(digests)} files")
    return others


class Orthanc:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def instances(self) -> list[bytes]:
        return [self.get(f"/instances/{one}/file") for one in json.loads(self.get("/instances"))]

    def reported_studies(self) -> set[str]:
        """Studies that have a structured report."""
        query = json.dumps({"Level": "Series", "Query": {"Modality": "SR"}, "Expand": True}).encode()
        request = urllib.request.Request(self.url + "/tools/find", data=query)
        with urllib.request.urlopen(request, timeout=60) as answer:
            series = json.load(answer)
        parents = {one["ParentStudy"] for one in series}
        return {json.loads(self.get(f"/studies/{one}"))["MainDicomTags"]["StudyInstanceUID"] for one in parents}


def sources_of(report: pydicom.Dataset, sent: dict[str, dict]) -> frozenset[str]:
    """The images that a report is about: those that its evidence names and that were sent."""
    named = set()
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in report.get(keyword, []):
            for series in study.ReferencedSeriesSequence:
                named |= {str(one.ReferencedSOPInstanceUID) for one in series.ReferencedSOPSequence}
    return frozenset(named & sent.keys())


def delivered(pacs: Orthanc, kept: dict[str, bytes], sent: dict[str, dict], acknowledged: set[str],
              judge: Judgement) -> int:
    """Every study of radiographs has its answer once: one report for one set of images, one report in sentences beside it, one
    heat map for each image and revision (a revision is a series of its own), each as the node keeps it. Returns how many
    results there are."""
    images: dict[str, set[str]] = collections.defaultdict(set)
    for uid in acknowledged:
        if sent[uid]["modality"] == "CR":
            images[sent[uid]["study_instance_uid"]].add(uid)
    reports: dict[str, list[tuple[str, frozenset[str]]]] = collections.defaultdict(list)
    heat_maps: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    instances = pacs.instances()
    for part10 in instances:
        result = pydicom.dcmread(io.BytesIO(part10))
        uid, study = str(result.SOPInstanceUID), str(result.StudyInstanceUID)
        if uid not in kept:
            judge.find("corrupted", f"the PACS has {uid}, which the node does not keep")
        elif digest_of_content(part10) != digest_of_content(kept[uid]):
            judge.find("corrupted", f"the result {uid} of the PACS is not what the node keeps")
        if result.SOPClassUID == SecondaryCaptureImageStorage:
            source = str(result.SourceImageSequence[0].ReferencedSOPInstanceUID)
            heat_maps[study].append((str(result.SeriesInstanceUID), source))
        else:
            kind = REPORTS.get(str(result.SOPClassUID), "reports of another class")
            reports[study].append((kind, sources_of(result, sent)))
    for study, wanted in images.items():
        for kind in REPORTS.values():
            if (kind, frozenset(wanted)) not in reports[study]:
                judge.find("lost", f"the study {study} of {len(wanted)} images has none of its {kind} on all of them")
        for source in wanted:
            if all(shown != source for _, shown in heat_maps[study]):
                judge.find("lost", f"the image {source} has no heat map")
    for study, of_study in reports.items():
        for (kind, sources), count in collections.Counter(of_study).items():
            for _ in range(count - 1):
                judge.find("duplicated", f"{count} {kind} on the same {len(sources)} images of the study {study}")
    for study, of_study in heat_maps.items():
        # A study of one image has one revision.
        alone = len(images[study]) == 1
        for key, count in collections.Counter(source if alone else (series, source) for series, source in of_study).items():
            for _ in range(count - 1):
                judge.find("duplicated", f"{count} heat maps of the same image {key} of the study {study}")
    return len(instances)


def check(manifest: pathlib.Path, acknowledgements: pathlib.Path, archive: pathlib.Path, url: str) -> dict:
    facts = (json.loads(line) for line in manifest.read_text().splitlines())
    sent = {fact["sop_instance_uid"]: fact for fact in facts}
    acknowledged = set(acknowledgements.read_text().split())
    judge = Judgement()
    kept = received(archive, sent, acknowledged, judge)
    count = delivered(Orthanc(url), kept, sent, acknowledged, judge)
    return {"acknowledged": len(acknowledged), "delivered": count, "lost": judge.lost, "duplicated": judge.duplicated,
            "corrupted": judge.corrupted, "left_over": judge.left_over, "told": judge.told}


if __name__ == "__main__":
    print(json.dumps(check(*map(pathlib.Path, sys.argv[1:4]), sys.argv[4]), indent=1))
