"""A study of the matrix: what was written, what its run records say, and what every object of it must be."""

import datetime
import functools
import json
import pathlib
import re

import pydicom
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from findings import Findings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
UNTRAINED_NOTICE = "UNTRAINED TEST WEIGHTS - NO CLINICAL MEANING"

COMPREHENSIVE, ENHANCED, COMPREHENSIVE_3D, BASIC_TEXT = (
    f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (33, 22, 34, 11)
)
REPORT_CLASSES = {
    "comprehensive": COMPREHENSIVE, "enhanced": ENHANCED, "comprehensive_3d": COMPREHENSIVE_3D, "basic_text": BASIC_TEXT,
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CLASSES = {
    "heat_map": SECONDARY_CAPTURE, "ct_summary": SECONDARY_CAPTURE, "ct_slice": SECONDARY_CAPTURE,
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4", "presentation_state": "1.2.840.10008.5.1.4.1.1.11.1",
    "key_objects": "1.2.840.10008.5.1.4.1.1.88.59", "text_companion": BASIC_TEXT,
}

# Copied from the newest image, empty when it has none (type 2).
REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)
# Copied when it has them.
OPTIONAL = (
    "IssuerOfPatientID", "OtherPatientNames", "OtherPatientIDsSequence", "StudyDescription", "ProcedureCodeSequence",
    "PhysiciansOfRecord", "Allergies",
)

CODECS = {
    "": "ascii", "ISO_IR 6": "ascii", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8", "GB18030": "gb18030",
    "\\ISO 2022 IR 87": "iso2022_jp",
}


def codec_of(character_set: str) -> str:
    return CODECS[character_set.strip(" \0")]


@functools.cache
def messages(language: str) -> dict[str, str]:
    """The one-line messages of a language's catalogue."""
    texts: dict[str, str] = {}
    for path in sorted((REPOSITORY / "src/report/texts" / language).glob("*.ftl")):
        for line in path.read_text("utf-8").splitlines():
            if match := re.match(r"([a-z][a-z0-9-]*) = (.+)", line):
                texts[match[1]] = match[2]
    return texts


class Object:
    """One DICOM file with the bytes of its elements."""

    def __init__(self, path: pathlib.Path, described: dict | None = None) -> None:
        self.path, self.name = path, path.name
        self.described = described or {}
        self.what = self.described.get("what", "source")
        self.bytes = path.read_bytes()
        self.raw = pydicom.dcmread(path)
        self.data_set = pydicom.dcmread(path)
        self.uid = str(self.data_set.SOPInstanceUID)
        self.sop_class = str(self.data_set.SOPClassUID)
        self.series = str(self.data_set.SeriesInstanceUID)
        declared = self.raw_bytes("SpecificCharacterSet")
        self.character_set = (declared or b"").decode("ascii", "replace").strip(" \0")

    def raw_bytes(self, keyword: str) -> bytes | None:
        """The value of a top-level element as it stands in the file; `None` without the element."""
        tag = tag_for_keyword(keyword)
        if tag not in self.raw:
            return None
        value = self.raw.get_item(tag).value
        if isinstance(value, bytes):
            return value
        # pydicom has decoded what it needs itself.
        joined = "\\".join(value) if isinstance(value, (list, pydicom.multival.MultiValue)) else value
        return str(joined or "").encode("latin-1", "replace")

    def elements(self):
        """(path, element, data set) of every element at every depth."""

        def walk(data_set, path):
            for element in data_set:
                here = f"{path}/{element.keyword or element.tag}"
                yield here, element
                if element.VR == "SQ":
                    for item in element.value:
                        yield from walk(item, here)

        yield from walk(self.data_set, "")

    def references(self) -> list[tuple[str, str, str]]:
        """(path, SOP class, SOP instance) of every reference at every depth."""

        def walk(data_set, path):
            if "ReferencedSOPInstanceUID" in data_set:
                yield path, str(data_set.get("ReferencedSOPClassUID", "")), str(data_set.ReferencedSOPInstanceUID)
            for element in data_set:
                if element.VR == "SQ":
                    for item in element.value:
                        yield from walk(item, f"{path}/{element.keyword}")

        return list(walk(self.data_set, ""))


class Study:
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.case = json.loads((folder / "case.json").read_text("utf-8"))
        self.name = self.case["name"]
        self.runs = self.case["runs"]
        self.sources = [Object(folder / file) for file in self.case["sources"]]
        self.newest = self.sources[-1]
        # No name of the matrix has several values: such a byte is a part of a character.
        self.has_backslash = b"\\" in (self.newest.raw_bytes("PatientName") or b"")
        self.objects = [Object(folder / described["file"], described) for described in self.case["objects"]]
        self.by_uid = {each.uid: each for each in [*self.sources, *self.objects]}

    def run_of(self, result: Object) -> dict:
        return self.runs[result.described["run"]]

    def uids(self) -> set[str]:
        """What belongs to this study and no other: the study, its images and their series."""
        own = {str(self.newest.data_set.StudyInstanceUID)}
        for source in self.sources:
            own |= {source.uid, source.series}
            own |= {str(source.data_set.FrameOfReferenceUID)} if "FrameOfReferenceUID" in source.data_set else set()
        return own

    def timezone(self) -> tuple[str | None, datetime.timezone | None]:
        """(0008,0201) as every object must have it, and the offset of generated times (PS3.3 section C.12.1.1.8)."""
        written = str(self.newest.data_set.get("TimezoneOffsetFromUTC", "") or "")
        minutes = self.case["site_utc_offset_minutes"]
        if re.fullmatch(r"[+-]\d{4}", written):
            minutes = int(written[0] + "1") * (int(written[1:3]) * 60 + int(written[3:]))
        if minutes is None:
            return None, None
        sign = "-" if minutes < 0 else "+"
        zone = datetime.timezone(datetime.timedelta(minutes=minutes))
        return f"{sign}{abs(minutes) // 60:02}{abs(minutes) % 60:02}", zone

    def started(self, run: dict) -> datetime.datetime:
        started = datetime.datetime.fromisoformat(run["started_at"].replace("Z", "+00:00"))
        _, zone = self.timezone()
        return started.astimezone(zone) if zone else started

    def analysed_images(self, run: dict) -> list[dict]:
        return run["outcome"].get("images", [])


def outcome(run: dict) -> tuple[str, dict]:
    """Its kind and its content: ("analysed" | "ct_measured" | "not_analysed", …)."""
    return run["outcome"]["kind"], run["outcome"]


# --- what holds for every object ----------------------------------------------------------------------------------


def check_identity(study: Study, result: Object, findings: Findings) -> None:
    """SOP class, study, file meta information."""
    data_set, described, name = result.data_set, result.described, f"{study.name}/{result.name}"
    expected = REPORT_CLASSES[described["class"]] if result.what == "report" else CLASSES[result.what]
    findings.equal("SOP class", name, expected, result.sop_class)
    findings.equal("study", name, study.run_of(result)["study_instance_uid"], str(data_set.StudyInstanceUID))
    meta = data_set.file_meta
    findings.equal("media storage instance", name, result.uid, str(meta.MediaStorageSOPInstanceUID))
    findings.equal("media storage class", name, result.sop_class, str(meta.MediaStorageSOPClassUID))
    findings.require(len(str(meta.ImplementationVersionName)) <= 16, f"{name}: Implementation Version Name is too long")
    findings.require(result.series not in {source.series for source in study.sources}, f"{name}: is in a series of the source")
    findings.equal("device", name, study.run_of(result)["installation"]["device_uid"], str(data_set.DeviceUID))
    findings.equal("content qualification", name, "RESEARCH", str(data_set.get("ContentQualification", "")))
    findings.equal("manufacturer", name, study.case["manufacturer"], str(data_set.Manufacturer))
    findings.equal("software", name, study.case["software_version"], str(data_set.SoftwareVersions))


def check_patient(study: Study, result: Object, findings: Findings) -> None:
    """Patient and study are those of the newest image: byte for byte where the character set is the same."""
    name, source = f"{study.name}/{result.name}", study.newest
    same_set = result.character_set == source.character_set
    for keyword in REQUIRED:
        found = result.raw_bytes(keyword)
        findings.require(found is not None, f"{name}: {keyword} is missing")
        compare_text(study, result, keyword, source.raw_bytes(keyword) or b"", found or b"", same_set, findings)
    for keyword in OPTIONAL:
        expected, found = source.data_set.get(keyword), result.data_set.get(keyword)
        if expected is None:
            findings.require(found is None, f"{name}: {keyword} is not in the source")
        elif keyword.endswith("Sequence"):
            findings.equal(keyword, name, json.dumps(expected_json(expected)), json.dumps(expected_json(found or [])))
        else:
            compare_text(
                study, result, keyword, source.raw_bytes(keyword), result.raw_bytes(keyword) or b"", same_set, findings
            )


def expected_json(items) -> list:
    return [item.to_json_dict() for item in items]


def compare_text(study, result, keyword, expected: bytes, found: bytes, same_set: bool, findings: Findings) -> None:
    name = f"{study.name}/{result.name}"
    if same_set:
        findings.equal(keyword, name, expected, found)
        return
    # Names are decoded here: pydicom splits values before it decodes them.
    of_source = study.newest.character_set or study.case["assumed_character_set"]
    try:
        texts = [expected.decode(codec_of(of_source)).rstrip(" "), found.decode(codec_of(result.character_set)).rstrip(" ")]
    except (UnicodeDecodeError, KeyError) as error:
        findings.error(f"{name}: {keyword} cannot be read in {result.character_set!r}: {error}")
        return
    findings.equal(keyword, name, *texts)


def check_character_set(study: Study, result: Object, findings: Findings) -> None:
    """That of the source, or UTF-8 where a text needs it; every text can be read in what is declared."""
    name, of_source = f"{study.name}/{result.name}", study.newest.character_set
    allowed = {of_source, "ISO_IR 192"} | ({study.case["assumed_character_set"]} if not of_source else set())
    findings.require(result.character_set in allowed, f"{name}: character set is {result.character_set!r}, one of {sorted(allowed)} expected")
    if result.character_set not in CODECS:
        return
    codec = codec_of(result.character_set)
    for keyword in (*REQUIRED, "InstitutionName", "SeriesDescription", "StationName"):
        try:
            (result.raw_bytes(keyword) or b"").decode(codec)
        except UnicodeDecodeError as error:
            findings.error(f"{name}: {keyword} cannot be read in {result.character_set!r}: {error}")
    # A text in another language needs a set that has its letters.
    if result.described.get("language") == "zh" and result.what in ("report", "text_companion"):
        findings.require(codec in ("utf-8", "gb18030"), f"{name}: Chinese is written in {result.character_set!r}")


TIMES = {
    "ContentDate": "ContentTime", "SeriesDate": "SeriesTime", "InstanceCreationDate": "InstanceCreationTime",
    "DateOfSecondaryCapture": "TimeOfSecondaryCapture", "PresentationCreationDate": "PresentationCreationTime",
}


def check_times(study: Study, result: Object, findings: Findings) -> None:
    name, data_set = f"{study.name}/{result.name}", result.data_set
    offset, zone = study.timezone()
    findings.equal("time zone", name, offset, data_set.get("TimezoneOffsetFromUTC"))
    started = study.started(study.run_of(result))
    n_times = 0
    for date, time in TIMES.items():
        if date in data_set:
            n_times += 1
            findings.equal(date, name, started.strftime("%Y%m%d"), str(data_set[date].value))
            findings.equal(time, name, started.strftime("%H%M%S.%f"), str(data_set[time].value).ljust(13, "0"))
    findings.require(n_times >= 2, f"{name}: does not say when it was made")
    for item in data_set.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            found = str(item.ContributionDateTime)
            findings.equal("contribution", name, started.strftime("%Y%m%d%H%M%S.%f%z"), found)


def check_equipment(study: Study, result: Object, findings: Findings) -> None:
    """The scanner and every network are named, networks with version and digest of their weights."""
    name, run = f"{study.name}/{result.name}", study.run_of(result)
    items = list(result.data_set.get("ContributingEquipmentSequence", []))
    purposes = [str(item.PurposeOfReferenceCodeSequence[0].CodeValue) for item in items]
    bundle = run["bundle"]
    networks = ([bundle["segmenter"]] if bundle["segmenter"] else []) + bundle["members"]
    findings.equal("equipment", name, ["109101"] + ["109102"] * len(networks), purposes)
    for network, item in zip(networks, items[1:]):
        findings.equal("network", name, network["name"], str(item.ManufacturerModelName))
        findings.equal("network version", name, network["version"], str(item.SoftwareVersions))
        findings.require(network["weights_sha256"] in str(item.ContributionDescription), f"{name}: no digest of {network['name']}")


def check_references(study: Study, result: Object, findings: Findings) -> None:
    """Every reference leads to an image of the study, to a result, or to what the run says of the same patient."""
    name, run = f"{study.name}/{result.name}", study.run_of(result)
    others = {}
    for image in study.analysed_images(run):
        for prior in (image.get("similar_cases") or {}).get("priors", []):
            others[prior["sop_instance_uid"]] = prior["study_instance_uid"]
    for path, sop_class, instance in result.references():
        known = study.by_uid.get(instance)
        if known is not None:
            findings.equal("class of a reference", f"{name}{path}", known.sop_class, sop_class)
        else:
            findings.require(instance in others, f"{name}{path}: refers to {instance}, which is nowhere")
    # In lists of studies and series every instance stands below its own.
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence", "PredecessorDocumentsSequence"):
        for of_study in result.data_set.get(keyword, []):
            for series in of_study.ReferencedSeriesSequence:
                for reference in series.ReferencedSOPSequence:
                    instance = str(reference.ReferencedSOPInstanceUID)
                    known = study.by_uid.get(instance)
                    expected_study = others.get(instance, run["study_instance_uid"])
                    findings.equal("study of a reference", f"{name}/{keyword}", expected_study, str(of_study.StudyInstanceUID))
                    if known is not None:
                        findings.equal("series of a reference", f"{name}/{keyword}", known.series, str(series.SeriesInstanceUID))
    for series in result.data_set.get("ReferencedSeriesSequence", []):
        images = series.get("ReferencedInstanceSequence") or series.get("ReferencedImageSequence") or []
        for reference in images:
            known = study.by_uid.get(str(reference.ReferencedSOPInstanceUID))
            if known is not None:
                findings.equal("series of a reference", name, known.series, str(series.SeriesInstanceUID))


UID_TEXT = re.compile(rb"\d+(?:\.\d+){4,}")
PATIENT_TEXT = re.compile(rb"SYN-\d+")


def check_foreign(study: Study, result: Object, foreign: set[str], findings: Findings) -> None:
    """Nothing of another study of the matrix stands anywhere in the bytes: each is of another patient."""
    name = f"{study.name}/{result.name}"
    uids = {match.decode() for match in UID_TEXT.findall(result.bytes)}
    findings.require(not uids & foreign, f"{name}: has UIDs of another patient: {sorted(uids & foreign)}")
    own = (study.newest.raw_bytes("PatientID") or b"").strip()
    patients = set(PATIENT_TEXT.findall(result.bytes)) - {own}
    findings.require(not patients, f"{name}: names another patient: {sorted(patients)}")
    findings.runs["UIDs looked up among other patients'"] += len(uids)


FORBIDDEN = re.compile(r"\b(positive|detected|diagnosis|probability of)\b", re.IGNORECASE)


def check_words(study: Study, result: Object, findings: Findings) -> None:
    """What must stand on everything, and what may stand on nothing."""
    name, data_set = f"{study.name}/{result.name}", result.data_set
    series = str(data_set.get("SeriesDescription", ""))
    status = study.run_of(result)["bundle"]["status"]
    language = result.described.get("language", "en")
    notices = {messages(each).get("not-for-diagnostic-use", "NOT FOR DIAGNOSTIC USE") for each in (language, "en")}
    if status == "untrained":
        notices = {UNTRAINED_NOTICE, messages(language).get("untrained-notice", UNTRAINED_NOTICE)}
    findings.require(any(notice in series for notice in notices), f"{name}: Series Description {series!r} lacks the notice")
    for path, element in result.elements():
        if element.VR in ("LO", "ST", "LT", "UT", "SH", "UC") and keyword_for_tag(element.tag) not in REQUIRED:
            for word in FORBIDDEN.findall(str(element.value)):
                findings.error(f"{name}{path}: says {word!r}")


def check_destinations(study: Study, findings: Findings) -> None:
    """What a destination gets refers to nothing that it does not get."""
    sources = {source.uid for source in study.sources}
    by_file = {result.name: result for result in study.objects}
    findings.equal("distinct results", study.name, len(study.objects), len({result.uid for result in study.objects}))
    series: dict[str, set] = {}
    for result in study.objects:
        series.setdefault(result.series, set()).add(str(result.data_set.Modality))
    findings.require(all(len(modalities) == 1 for modalities in series.values()), f"{study.name}: a series has two modalities")
    for destination in study.case["destinations"]:
        has = sources | {by_file[file].uid for file in destination["files"]}
        for file in destination["files"]:
            for path, _, instance in by_file[file].references():
                known = instance in has or instance not in study.by_uid
                findings.require(known, f"{study.name}/{file}{path}: {destination['name']} does not get {instance}")
