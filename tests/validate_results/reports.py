"""Reports: every number and code of the measurement groups, as highdicom reads them, is that of the run; the tree, its
evidence and its sentences are whole."""

import collections
import re

import highdicom as hd

from findings import Findings
from study import BASIC_TEXT, UNTRAINED_NOTICE, Object, Study, messages, outcome

# Numbers by their concept: the name used here and the unit that they must have.
NUMBERS = {
    ("111012", "DCM"): ("output", "%"),
    ("111071", "DCM"): ("threshold", "%"),
    ("MEMBER-SPREAD", "99HILUM"): ("spread", "%"),
    ("HM-LUNG-FRAC", "99HILUM"): ("heat", "%"),
    ("HM-THRESHOLD", "99HILUM"): ("heat threshold", "1"),
    ("KNN-COSINE", "99HILUM"): ("cosine", "1"),
    ("118565006", "SCT"): ("volume", "ml"),
    ("112031", "DCM"): ("mean", "[hnsf'U]"),
    ("LUNG-PERC15", "99HILUM"): ("percentile 15", "[hnsf'U]"),
    ("BAND-1", "99HILUM"): ("band 1", "%"),
    ("BAND-2", "99HILUM"): ("band 2", "%"),
    ("BAND-3", "99HILUM"): ("band 3", "%"),
    ("BAND-4", "99HILUM"): ("band 4", "%"),
    ("BAND-5", "99HILUM"): ("band 5", "%"),
    ("BAND-3-TO-5", "99HILUM"): ("opacity", "%"),
    ("HEAT-IN-LUNGS", "99HILUM"): ("heat in lungs", "%"),
    ("LESION-SHARE", "99HILUM"): ("lesion share", "%"),
    ("LESION-SLICES", "99HILUM"): ("slices with lesion", "{slices}"),
    ("LESION-LONGEST", "99HILUM"): ("longest run", "{slices}"),
}
PRESENCE = {"present": ("52101004", "SCT"), "absent": ("272519000", "SCT"), "undetermined": ("373068000", "SCT")}
SIDES = {"24028007": "right", "7771000": "left"}
THIRDS = {"264217000": 0, "C25569": 1, "261089000": 2}


def code(item) -> tuple[str, str]:
    return str(item.get("CodeValue") or item.get("LongCodeValue")), str(item.CodingSchemeDesignator)


def concept(item) -> tuple[str, str] | None:
    names = item.get("ConceptNameCodeSequence")
    return code(names[0]) if names else None


def items(data_set):
    """(item, parent) of every content item, the root first."""
    stack = [(data_set, None)]
    while stack:
        item, parent = stack.pop()
        yield item, parent
        stack.extend((child, item) for child in reversed(item.get("ContentSequence", [])))


# --- what the run says --------------------------------------------------------------------------------------------


def of_scores(subject: str, run: dict, scores: dict, may_decide: bool = True) -> dict:
    """Values of ensemble and members by where they must stand."""
    bundle, expected = run["bundle"], {}
    for index, each in enumerate(bundle["classes"]):
        label = each["code"]["value"]
        expected[subject, "ensemble", label, "output"] = scores["fused"][index] * 100.0
        if index == bundle["target_class_idx"]:
            expected[subject, "ensemble", label, "threshold"] = bundle["threshold"] * 100.0
            expected[subject, "ensemble", label, "spread"] = scores["member_spread"] * 100.0
            decision = scores["decision"] if bundle["status"] == "validated" else "undetermined"
            expected[subject, "ensemble", label, "presence"] = PRESENCE[decision]
    versions = {member["name"]: member["version"] for member in bundle["members"]}
    for number, member in enumerate(scores["members"]):
        for index, each in enumerate(bundle["classes"]):
            key = subject, f"member {number + 1} {member['name']} {versions[member['name']]}", each["code"]["value"]
            if member["failure"] is None:
                expected[*key, "output"] = member["probabilities"][index] * 100.0
            else:
                expected[*key, "status"] = ("111224", "DCM")
    return expected


def of_radiographs(run: dict, analysis: dict) -> dict:
    expected = {}
    for image in analysis["images"]:
        subject = image["source"]["sop_instance_uid"]
        expected |= of_scores(subject, run, image)
        for side in ("right", "left"):
            heat = image[f"{side}_lung_heat_fraction"]
            if heat is not None:
                expected[subject, "lung", side, "heat"] = heat * 100.0
                expected[subject, "lung", side, "heat threshold"] = 0.5
        if image["lung_heat_fraction"] is not None:
            expected[subject, "heat in lungs"] = image["lung_heat_fraction"] * 100.0
        similar = image.get("similar_cases") or {"cases": [], "priors": []}
        for rank, case in enumerate(similar["cases"], 1):
            expected[subject, "similar case", case["case_id"], "cosine"] = 1.0 - case["distance"] ** 2 / 2.0
            expected[subject, "similar case", case["case_id"], "rank"] = float(rank)
        for prior in similar["priors"]:
            expected[subject, "prior", prior["study_instance_uid"], "cosine"] = 1.0 - prior["distance"] ** 2 / 2.0
    return expected


def of_ct(run: dict, analysis: dict) -> dict:
    expected = {}
    subject = analysis["series"]["series_instance_uid"]
    for lung in analysis["lungs"]:
        for part, densities in [("whole", lung["whole"])] + list(enumerate(lung["thirds"])):
            key = subject, "lung", lung["side"], part
            bands = densities["band_fractions"]
            expected[*key, "volume"] = densities["volume_ml"]
            expected[*key, "opacity"] = (bands[2] + bands[3] + bands[4]) * 100.0
            expected |= {(*key, f"band {number}"): share * 100.0 for number, share in enumerate(bands, 1)}
            for name, value in (("mean", densities["mean_hu"]), ("percentile 15", densities["percentile_15_hu"])):
                if value is not None:
                    expected[*key, name] = value
    if scan := analysis.get("classification"):
        expected |= of_scores(subject, run, scan)
        for key_slice in scan["key_slices"]:
            key = subject, "key slice", analysis["series"]["images"][key_slice["slice"]]["sop_instance_uid"]
            if key_slice["output"] is not None:
                expected[*key, "output"] = key_slice["output"] * 100.0
            if key_slice["lung_heat_fraction"] is not None:
                expected[*key, "heat in lungs"] = key_slice["lung_heat_fraction"] * 100.0
    if lesions := analysis.get("lesions"):
        expected[subject, "lesions", "all", "volume"] = lesions["volume_ml"]
        expected[subject, "lesions", "all", "slices with lesion"] = float(lesions["slices_with_lesion"])
        expected[subject, "lesions", "all", "longest run"] = float(lesions["longest_run"])
        decision = lesions["decision"] if run["bundle"]["status"] == "validated" else "undetermined"
        expected[subject, "lesions", "all", "presence"] = PRESENCE[decision]
        for number, member in enumerate(lesions["members"], 1):
            state = "111224" if member["failure"] else "111222"
            expected[subject, "lesions", f"member {number} {member['name']}", "status"] = (state, "DCM")
        for lung in lesions["lungs"]:
            expected[subject, "lesions", lung["side"], "volume"] = lung["volume_ml"]
            if lung["fraction"] is not None:
                expected[subject, "lesions", lung["side"], "lesion share"] = lung["fraction"] * 100.0
    return expected


# --- what highdicom reads -----------------------------------------------------------------------------------------


class Group:
    """A measurement group, without what its names say in the language of the report."""

    def __init__(self, group, name: str, findings: Findings) -> None:
        self.content = group[0]
        self.children = list(self.content.ContentSequence)
        self.finding = code(group.finding_type)[0] if group.finding_type is not None else None
        site = group.finding_sites[0] if group.finding_sites else None
        self.side = SIDES.get(code(site.laterality)[0]) if site is not None and site.laterality is not None else None
        modifier = site.topographical_modifier if site is not None else None
        self.third = THIRDS.get(code(modifier)[0]) if modifier is not None else None
        findings.require(site is not None and code(site.value) == ("39607008", "SCT"), f"{name}: a group is not of the lung")
        self.numbers, self.ranks = {}, []
        for measurement in group.get_measurements():
            of, unit = NUMBERS.get(code(measurement.name), (f"unknown {code(measurement.name)}", None))
            findings.equal("unit", f"{name}: {of}", (unit, "UCUM"), code(measurement.unit))
            findings.require(of not in self.numbers, f"{name}: {of} is twice in a group")
            self.numbers[of] = float(measurement.value)
            # The Decimal String and the double beside it are the same number.
            measured = measurement[0].MeasuredValueSequence[0]
            if "FloatingPointValue" in measured:
                findings.equal("floating point value", f"{name}: {of}", float(measured.FloatingPointValue), self.numbers[of])
            for child in measurement[0].get("ContentSequence", []):
                if concept(child) == ("KNN-RANK", "99HILUM"):
                    self.ranks.append(float(child.MeasuredValueSequence[0].NumericValue))
        self.codes = [
            (concept(child), code(child.ConceptCodeSequence[0]), child)
            for child in self.children
            if child.ValueType == "CODE" and concept(child) not in (("121071", "DCM"), ("363698007", "SCT"))
        ]
        self.texts = {}
        for child in self.children:
            if child.ValueType == "TEXT":
                self.texts.setdefault(concept(child), []).append(str(child.TextValue))
        self.tracking = str(group.tracking_identifier), str(group.tracking_uid)
        self.images = [
            str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            for item, _ in items(self.content)
            if item.ValueType == "IMAGE"
        ]

    def text(self, value: str, scheme: str = "DCM") -> str:
        return " ".join(self.texts.get((value, scheme), []))


def read_groups(groups: list, run: dict, name: str, findings: Findings) -> dict:
    """The values of all groups by where they stand, in the same words as `of_radiographs` and `of_ct`."""
    kind, analysis = outcome(run)
    found: dict = {}
    if kind == "analysed":
        images = [image["source"]["sop_instance_uid"] for image in analysis["images"]]
        subject = images[0]
    else:
        images, subject = [], analysis["series"]["series_instance_uid"]
    members: collections.Counter = collections.Counter()
    for of_highdicom in groups:
        group = Group(of_highdicom, name, findings)
        # A group without a number names no image: it stands among those of its image.
        subject = next((image for image in group.images if image in images), subject)
        for key, value in place(group, subject, run, analysis, members):
            findings.require(key not in found, f"{name}: {key} is there twice")
            found[key] = value
    return found


def place(group: Group, subject: str, run: dict, analysis: dict, members: collections.Counter):
    """(where, value) of everything in a group."""
    numbers, member = group.numbers, group.text("111001")
    statuses = [(value, child) for name, value, child in group.codes if name == ("MODEL-STATUS", "99HILUM")]
    presence = [value for name, value, _ in group.codes if name == ("705057003", "SCT")]
    if "cosine" in numbers:
        comment = group.text("121106")
        if case := re.search(r"LIB-[0-9A-F]+", comment):
            key = subject, "similar case", case[0]
        else:
            study = re.search(r"[0-9]+(\.[0-9]+)+", comment)
            key = subject, "prior", study[0] if study else comment
        yield from (((*key, of), value) for of, value in numbers.items())
        yield from (((*key, "rank"), rank) for rank in group.ranks)
    elif member:
        # Members stand in the order of the bundle, each class of one before the next one's.
        members[subject, group.finding] += 1
        key = subject, f"member {members[subject, group.finding]} {member} {group.text('111003')}", group.finding
        yield from (((*key, of), value) for of, value in numbers.items())
        yield from (((*key, "status"), value) for value, _ in statuses)
    elif "heat" in numbers or ("HM-LUNG-FRAC" in str(group.content) and group.side):
        yield from (((subject, "lung", group.side, of), value) for of, value in numbers.items())
    elif ("KEY-SLICE", "99HILUM") in group.texts:
        yield from (((subject, "key slice", group.images[0], of), value) for of, value in numbers.items())
    elif "heat in lungs" in numbers:
        yield from (((subject, of), value) for of, value in numbers.items())
    elif statuses or "lesion share" in numbers or "slices with lesion" in numbers or ("volume" in numbers and group.finding):
        part = group.side or "all"
        yield from (((subject, "lesions", part, of), value) for of, value in numbers.items())
        yield from (((subject, "lesions", part, "presence"), value) for value in presence)
        for number, (value, child) in enumerate(statuses, 1):
            words = [str(item.TextValue) for item in child.get("ContentSequence", [])]
            names = [each["name"] for each in (analysis.get("lesions") or {"members": []})["members"]]
            named = next((name for name in names if any(text.endswith(name) for text in words)), str(words))
            yield (subject, "lesions", f"member {number} {named}", "status"), value
    elif "volume" in numbers:
        part = "whole" if group.third is None else group.third
        yield from (((subject, "lung", group.side, part, of), value) for of, value in numbers.items())
    else:
        yield from (((subject, "ensemble", group.finding, of), value) for of, value in numbers.items())
        yield from (((subject, "ensemble", group.finding, "presence"), value) for value in presence)


# --- checks -------------------------------------------------------------------------------------------------------


def check_report(study: Study, result: Object, findings: Findings) -> list[float] | None:
    """Everything about one report. Returns the numbers of its groups, for another reader to be compared with."""
    name, run = f"{study.name}/{result.name}", study.run_of(result)
    kind, analysis = outcome(run)
    check_document(study, result, run, findings)
    check_tree(study, result, findings)
    check_sentences(study, result, run, findings)
    if result.sop_class == BASIC_TEXT:
        check_text_values(result, run, name, findings)
        return None
    report = hd.sr.srread(result.path)
    if kind == "not_analysed":
        check_rejection(result, run, name, findings)
        return None
    groups = report.content.get_image_measurement_groups()
    expected = of_radiographs(run, analysis) if kind == "analysed" else of_ct(run, analysis)
    found = read_groups(groups, run, name, findings)
    findings.equal_sets("value", name, expected, found)
    tracking = [(str(group.tracking_identifier), str(group.tracking_uid)) for group in groups]
    for part, words in ((0, "Tracking Identifiers"), (1, "Tracking UIDs")):
        findings.equal(words, name, len(groups), len({each[part] for each in tracking}))
    numbers = [float(measurement.value) for group in groups for measurement in group.get_measurements()]
    check_bundle(report, run, name, findings)
    return numbers


def check_document(study: Study, result: Object, run: dict, findings: Findings) -> None:
    """SR Document Series and General modules (PS3.3 sections C.17.1 and C.17.2)."""
    name, data_set = f"{study.name}/{result.name}", result.data_set
    kind, analysis = outcome(run)
    findings.equal("modality", name, "SR", str(data_set.Modality))
    findings.equal("verification", name, "UNVERIFIED", str(data_set.VerificationFlag))
    failed = [
        member
        for scores in (analysis.get("images") or []) + [analysis.get("classification") or {}, analysis.get("lesions") or {}]
        for member in scores.get("members", [])
        if member["failure"]
    ]
    partial = bool(failed) or analysis.get("not_judged") is not None
    findings.equal("completion", name, "PARTIAL" if partial else "COMPLETE", str(data_set.CompletionFlag))
    findings.require("PreliminaryFlag" not in data_set, f"{name}: has a Preliminary Flag")
    author = data_set.AuthorObserverSequence[0]
    findings.equal("author", name, ("DEV", run["installation"]["device_uid"]), (str(author.ObserverType), str(author.DeviceUID)))
    request = data_set.ReferencedRequestSequence[0]
    findings.equal("request", name, run["study_instance_uid"], str(request.StudyInstanceUID))
    predecessors = [
        str(reference.ReferencedSOPInstanceUID)
        for of_study in data_set.get("PredecessorDocumentsSequence", [])
        for series in of_study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]
    described = result.described.get("predecessor")
    expected = [described["sop_instance_uid"]] if described else []
    if result.what == "report" or predecessors:
        findings.equal("predecessor", name, expected, predecessors)
    findings.require(all(uid in study.by_uid for uid in predecessors), f"{name}: replaces a report that nobody has")


def check_tree(study: Study, result: Object, findings: Findings) -> None:
    """What all trees keep to, and the evidence: what the tree refers to, each once."""
    name, data_set = f"{study.name}/{result.name}", result.data_set
    run = study.run_of(result)
    kind, analysis = outcome(run)
    is_text = result.sop_class == BASIC_TEXT
    referenced = set()
    for item, parent in items(data_set):
        findings.require(concept(item) is not None, f"{name}: an item of type {item.get('ValueType')} has no concept name")
        value_type = str(item.ValueType)
        if value_type == "NUM":
            findings.require(not is_text, f"{name}: a Basic Text report has a number")
            findings.require(len(item.MeasuredValueSequence) == 1, f"{name}: a number has no value")
        if value_type == "IMAGE":
            referenced |= {str(each.ReferencedSOPInstanceUID) for each in item.ReferencedSOPSequence}
        if value_type == "CONTAINER":
            findings.require(str(item.ContinuityOfContent) == "SEPARATE", f"{name}: a container is not SEPARATE")
            nested = parent is not None and str(item.RelationshipType) != "CONTAINS"
            findings.require(not nested, f"{name}: a container is not contained")
        if value_type == "CODE":
            values = item.ConceptCodeSequence
            findings.require(len(values) == 1 and len(str(values[0].CodeMeaning)) <= 64, f"{name}: a code is not whole")
        findings.require(value_type not in ("SCOORD", "SCOORD3D", "TCOORD"), f"{name}: has coordinates")
    in_evidence = collections.Counter(
        str(reference.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for of_study in data_set.get(keyword, [])
        for series in of_study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    )
    findings.equal("evidence", name, sorted(referenced), sorted(in_evidence.elements()))
    if not is_text:
        read = {uid for uid in images_read(study, run)}
        library = referenced & {source.uid for source in study.sources}
        findings.equal("images that were read", name, sorted(read), sorted(library))
    if result.described.get("with_segmentation") and not is_text and kind != "not_analysed":
        segmented = any(study.by_uid[uid].what == "segmentation" for uid in referenced if uid in study.by_uid)
        findings.require(segmented, f"{name}: does not refer to the segmentation that goes with it")


def images_read(study: Study, run: dict) -> list[str]:
    kind, analysis = outcome(run)
    if kind == "analysed":
        images = [image["source"] for image in analysis["images"]] + [each["source"] for each in analysis["excluded"]]
    elif kind == "ct_measured":
        images = analysis["series"]["images"] + [each["source"] for each in analysis["excluded"]]
    else:
        images = analysis["sources"]
    return [image["sop_instance_uid"] for image in images]


def check_sentences(study: Study, result: Object, run: dict, findings: Findings) -> None:
    name, data_set = f"{study.name}/{result.name}", result.data_set
    language = result.described["language"]
    tags = [code(item.ConceptCodeSequence[0])[0] for item, _ in items(data_set) if concept(item) == ("121049", "DCM")]
    findings.require(len(tags) == 1 and tags[0].split("-")[0].lower() == language, f"{name}: says it is in {tags}, {language} expected")
    texts = [(concept(item), str(item.TextValue)) for item, _ in items(data_set) if item.ValueType == "TEXT"]
    everything = "\n".join(text for _, text in texts)
    catalogue = messages(language)
    disclaimer = catalogue.get("disclaimer-research", "Not for diagnostic use")
    findings.require(disclaimer.lower() in everything.lower(), f"{name}: lacks the disclaimer {disclaimer!r}")
    if run["bundle"]["status"] == "untrained":
        notice = catalogue.get("untrained-notice", UNTRAINED_NOTICE)
        findings.require(notice in everything or UNTRAINED_NOTICE in everything, f"{name}: does not say that it is untrained")
    findings.require(any(of == ("121077", "DCM") for of, _ in texts), f"{name}: has no conclusion")
    if language == "zh":
        n_characters = len(re.findall(r"[\u4e00-\u9fff]", everything))
        findings.require(n_characters >= 40, f"{name}: has {n_characters} Chinese characters")
    findings.require("??" not in everything, f"{name}: has letters that were lost")
    findings.require(not re.search(r"\{ ?\$|\bNaN\b|\binf\b", everything), f"{name}: a sentence has a hole or no number")


def check_bundle(report, run: dict, name: str, findings: Findings) -> None:
    """Imaging Measurements names the algorithm."""
    for item, _ in items(report):
        if concept(item) == ("126010", "DCM"):
            texts = {concept(child)[0]: str(child.TextValue) for child in item.ContentSequence if child.ValueType == "TEXT"}
            findings.equal("algorithm", name, run["bundle"]["name"], texts.get("111001"))
            findings.equal("algorithm version", name, run["bundle"]["version"], texts.get("111003"))
            return
    findings.error(f"{name}: has no Imaging Measurements")


def check_rejection(result: Object, run: dict, name: str, findings: Findings) -> None:
    """Section 1.3 of the design: no group, the coded summary and the reason with its machine-readable name."""
    codes = {concept(item): code(item.ConceptCodeSequence[0]) for item, _ in items(result.data_set) if item.ValueType == "CODE"}
    findings.equal("summary", name, ("111245", "DCM"), codes.get(("111017", "DCM")))
    reason = outcome(run)[1]["reason"]
    table = {
        "view_not_frontal": "110531", "image_quality": "110531", "processing_failure": "110513", "geometry_missing": "110521",
    }
    findings.equal("reason", name, (table[reason], "DCM"), codes.get(("REJECT-REASON", "99HILUM")))
    values = [item for item, _ in items(result.data_set) if item.ValueType == "NUM" and concept(item)[0] not in ("110910", "110911")]
    findings.equal("numbers of a study that was not analysed", name, 0, len(values))


def check_text_values(result: Object, run: dict, name: str, findings: Findings) -> None:
    """A report of sentences says the same numbers, rounded as people read them."""
    kind, analysis = outcome(run)
    texts = "\n".join(str(item.TextValue) for item, _ in items(result.data_set) if item.ValueType == "TEXT")
    expected = []
    for scores in analysis.get("images", []) + [analysis.get("classification") or {}]:
        expected += [f"{share * 100.0:.1f} %" for share in scores.get("fused", [])]
        for member in scores.get("members", []):
            expected += [f"{share * 100.0:.1f} %" for share in member["probabilities"]]
        heats = ("right_lung_heat_fraction", "left_lung_heat_fraction", "lung_heat_fraction")
        expected += [f"{scores[key] * 100.0:.1f} %" for key in heats if scores.get(key) is not None]
    for lung in analysis.get("lungs", []):
        expected += [f"{lung['whole']['volume_ml']:.0f} ml", f"{lung['whole']['mean_hu']:.0f} HU"]
    if lesions := analysis.get("lesions"):
        expected += [f"{lesions['volume_ml']:.1f} ml"]
    for words in expected:
        findings.equal("sentence", name, (words, True), (words, words in texts))
