"""Other people's command-line validators, and the messages of theirs that are known and harmless."""

import json
import pathlib
import re
import subprocess
import tempfile
import zlib

import numpy as np

from findings import Findings

PIXELMED = "/usr/share/java/pixelmed.jar"

# (pattern, why it is harmless). Whatever else a tool says fails.
ALLOWED = {
    "dciodvfy": [
        (r"Unrecognized defined term <99HILUM>", "a private coding scheme is what the designator says"),
        (r"Unrecognized defined term <99LOCAL>", "the same, of the procedure code of the source"),
        (r"not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID", "newer than the tables of the tool"),
        (r"this is a Standard Extended SOP Class", "follows from the line before"),
    ],
    "dciodvfy of 2022": [
        (
            r"not present in standard DICOM IOD - \((0x0020,0x0032|0x0020,0x0037|0x0020,0x0052|0x0018,0x0050|0x0020,0x1040)\)",
            "Secondary Capture has the Image Plane and Frame of Reference modules since 2024e",
        ),
    ],
    "dciodvfy of bare sources": [
        (
            r"needed to build DICOMDIR - (Patient ID|Study Date|Study Time|Study ID)",
            "the images of the study have none: the attributes are of type 2 and stay empty",
        ),
    ],
    "dcentvfy": [
        (
            r"Element=<AccessionNumber> IE <(Series> versus <Study|Study> versus <Series)>",
            "the one is of the request that is referred to, nested in the report",
        ),
    ],
    "dcentvfy of two character sets": [
        (
            r"String attribute has different value - Element=<PatientName> IE=<Patient>",
            "it compares bytes that it cannot decode; that the names are the same is compared beside",
        ),
    ],
    "dcentvfy of bare sources": [
        (
            r"present in one instance but not the other - Element=<(PatientName|PatientID|PatientBirthDate|PatientSex|"
            r"StudyDate|StudyTime|AccessionNumber|ReferringPhysicianName|StudyID)> .* for file <src-\d+.dcm> versus ",
            "the images of the study lack attributes of type 2, which results must have, and have empty",
        ),
    ],
    "dsrdump": [
        (r"Reading unknown/unsupported SpecificCharacterSet \(\\ISO 2022 IR 87\)", "it knows no code extensions"),
        (r"VR checker does not support this Specific Character Set", "it reads the set but checks no values in it"),
        (r"Check for template constraints not yet supported", "of Key Object Selections; PixelMed checks those"),
    ],
    "dsrdump of names with a backslash": [
        (r"PatientName \(0010,0010\) VM != 1 in PatientModule", "it takes the second byte of a character for a delimiter"),
    ],
    "pixelmed": [
        (r"Procedure reported.*not found in (expected )?context group", "the context group is extensible"),
        (r"Target Region.*not found in (expected )?context group", "its tables have an older code of the chest"),
        (r"Content Item not in template", "rows with parameters are not compiled in its TID 1501; highdicom reads them"),
    ],
}


def unexpected(lines: list[str], *lists: str) -> list[str]:
    """The lines that none of the named lists allows."""
    patterns = [pattern for name in lists for pattern, _ in ALLOWED[name]]
    return [line for line in lines if not any(re.search(pattern, line) for pattern in patterns)]


def run(*command) -> subprocess.CompletedProcess:
    completed = subprocess.run([str(word) for word in command], capture_output=True, check=False, timeout=600)
    completed.text = (completed.stdout + completed.stderr).decode("utf-8", "replace")
    return completed


def said_of_name(program: str, source: pathlib.Path) -> set[str]:
    """What dciodvfy says of the patient's name in an image. It takes the second byte of a character of GB18030 for the
    delimiter of values; results have the same bytes."""
    return {line for line in run(program, source).text.splitlines() if "Element=<PatientName> Module=<Patient>" in line}


def dciodvfy(
    program: str, path: pathlib.Path, is_of_2022: bool, is_bare: bool, of_source: set[str], findings: Findings
) -> None:
    """The exit code says nothing; the lines do. `of_source` are lines that its source has too."""
    lines = [line for line in run(program, path).text.splitlines() if line not in of_source]
    name = "dciodvfy of 2022" if is_of_2022 else "dciodvfy"
    findings.runs[name] += 1
    findings.errors += [f"{path.name}: {name}: {line}" for line in lines if line.startswith("Error")]
    lists = ["dciodvfy"] + ["dciodvfy of 2022"] * is_of_2022 + ["dciodvfy of bare sources"] * is_bare
    warnings = unexpected([line for line in lines if line.startswith("Warning")], *lists)
    findings.warnings += [f"{path.name}: {name}: {line}" for line in warnings]
    # It names the IOD that it recognised, or it did not read the file at all.
    findings.require(len(lines) > 0, f"{path.name}: {name}: said nothing")


def dcentvfy(
    program: str, paths: list[pathlib.Path], is_bare: bool, has_two_sets: bool, findings: Findings
) -> None:
    findings.runs["dcentvfy"] += 1
    lines = [line for line in run(program, *paths).text.splitlines() if line.strip()]
    errors = [shorter(line) for line in lines if line.startswith("Error")]
    findings.errors += [f"dcentvfy: {line}" for line in unexpected(errors, *["dcentvfy of two character sets"] * has_two_sets)]
    lists = ["dcentvfy"] + ["dcentvfy of bare sources"] * is_bare
    others = unexpected([shorter(line) for line in lines if not line.startswith("Error")], *lists)
    findings.warnings += [f"dcentvfy: {line}" for line in others]


def shorter(line: str) -> str:
    return re.sub(r"/[^ <>]*/", "", line)


def dsrdump(path: pathlib.Path, has_backslash: bool, findings: Findings) -> None:
    """`has_backslash`: the patient's name has a character whose second byte is 5CH."""
    findings.runs["dsrdump"] += 1
    completed = run("dsrdump", "+Pn", path)
    findings.require(completed.returncode == 0, f"{path.name}: dsrdump: ended with {completed.returncode}")
    findings.require(len(completed.stdout.splitlines()) > 5, f"{path.name}: dsrdump: printed no report")
    lines = [line for line in completed.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    for line in unexpected(lines, "dsrdump", *["dsrdump of names with a backslash"] * has_backslash):
        (findings.errors if line.startswith(("E:", "F:")) else findings.warnings).append(f"{path.name}: dsrdump: {line}")


def tid1500(program: str, path: pathlib.Path, findings: Findings) -> list[float]:
    """The numbers that dcmqi reads from the measurement groups of a report."""
    findings.runs["tid1500reader"] += 1
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "read.json"
        completed = run(program, "--inputDICOM", path, "--outputMetadata", out)
        if completed.returncode != 0 or not out.exists():
            findings.error(f"{path.name}: tid1500reader: {completed.text.strip()[-300:]}")
            return []
        # It writes the bytes of the file as they are, whatever their character set.
        read = json.loads(out.read_text("latin-1"), strict=False)
    items = [item for group in read.get("Measurements", []) for item in group.get("measurementItems", [])]
    return [float(item["value"]) for item in items]


def segment_volumes(program: str, path: pathlib.Path, findings: Findings) -> dict[int, int]:
    """How many voxels each segment has in the volumes that dcmqi makes of a segmentation, by Segment Number."""
    findings.runs["segimage2itkimage"] += 1
    with tempfile.TemporaryDirectory() as folder:
        completed = run(program, "--inputDICOM", path, "--outputDirectory", folder)
        if completed.returncode != 0:
            findings.error(f"{path.name}: segimage2itkimage: {completed.text.strip()[-300:]}")
            return {}
        volumes = {}
        for file in sorted(pathlib.Path(folder).glob("*.nrrd")):
            values, counts = np.unique(nrrd(file), return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist()):
                if value != 0:
                    volumes[int(value)] = volumes.get(int(value), 0) + count
    return volumes


def nrrd(path: pathlib.Path) -> np.ndarray:
    """The voxels of an NRRD file with attached data."""
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode("ascii", "replace").splitlines() if ": " in line)
    if fields["encoding"] in ("gzip", "gz"):
        data = zlib.decompress(data, 31)
    types = {"unsigned char": "u1", "uint8": "u1", "short": "i2", "signed short": "i2", "int16": "i2", "unsigned short": "u2"}
    return np.frombuffer(data, "<" + types[fields["type"]])


class PixelMed:
    """Its template check of reports, in a Java process for many files."""

    def __init__(self) -> None:
        import jpype

        # Its style sheets are larger than what Java allows by default.
        limits = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("ExprOp", "TotalOp", "ExprGrp")]
        jpype.startJVM("-Xmx2g", *limits, classpath=[PIXELMED])
        validator = jpype.JClass("com.pixelmed.validate.DicomSRValidator")
        self.validator = validator()

        # It gives its style sheets the context groups without a name, so that Java does not know them again and parses them
        # anew for every code: ten seconds a report instead of one.
        @jpype.JImplements("javax.xml.transform.URIResolver")
        class Named:
            def __init__(self, resolver):
                self.resolver = resolver

            @jpype.JOverride
            def resolve(self, href, base):
                source = self.resolver.resolve(href, base)
                source.setSystemId(href)
                return source

        for name in ("transformerPass1", "transformerPass2"):
            field = validator.class_.getDeclaredField(name)
            field.setAccessible(True)
            transformer = field.get(self.validator)
            transformer.setURIResolver(Named(transformer.getURIResolver()))

    def validate(self, path: pathlib.Path, findings: Findings) -> None:
        findings.runs["pixelmed"] += 1
        lines = [line for line in str(self.validator.validate(str(path))).splitlines() if line.strip()]
        findings.require("IOD validation complete" in lines, f"{path.name}: pixelmed: said nothing")
        errors = unexpected([line for line in lines if line.startswith("Error")], "pixelmed")
        findings.errors += [f"{path.name}: pixelmed: {line}" for line in errors]
        warnings = unexpected([line for line in lines if line.startswith("Warning")], "pixelmed")
        findings.warnings += [f"{path.name}: pixelmed: {line}" for line in warnings]
