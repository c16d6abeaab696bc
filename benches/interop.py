"""Which programs can talk to the node, in which role, in which transfer syntax, with and without TLS: every cell of the
table is tried, and the object that arrives is compared with the one that was sent. `make interop` starts this and writes
the tables into docs/interoperation.md. A cell that fails is shown with its reason and ends the run with 1; what a peer
is known not to take (it refuses every presentation context for it) is told as that."""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request

import pydicom
from pydicom.uid import ComputedRadiographyImageStorage

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/faults"))

import images  # noqa: E402
import processes  # noqa: E402
from bench import say, table  # noqa: E402
from check import digest_of_content, digest_of_data_set  # noqa: E402
from peers import PYNETDICOM, DicomRs, Pynetdicom  # noqa: E402
from servers import CALLED, CALLING, Hilum, Orthanc, Server, Storescp, environment, free_port  # noqa: E402

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "interoperation.md"
BEGIN, END = "<!-- tried: begin -->", "<!-- tried: end -->"
# A file of pydicom in each transfer syntax, and dcmtk's option to propose it.
SYNTAXES = {
    "Implicit VR Little Endian": ("MR_small_implicit.dcm", "-xi"),
    "Explicit VR Little Endian": ("CT_small.dcm", "-xe"),
    "Explicit VR Big Endian": ("MR_small_bigendian.dcm", "-xb"),
    "Deflated Explicit VR Little Endian": ("image_dfl.dcm", "-xd"),
    "RLE Lossless": ("MR_small_RLE.dcm", "-xr"),
    "JPEG Baseline": ("SC_rgb_jpeg_dcmtk.dcm", "-xy"),
    "JPEG Extended, 12 bits": ("JPGExtended.dcm", "-xx"),
    "JPEG Lossless, first-order prediction": ("SC_rgb_jpeg_gdcm.dcm", "-xs"),
    "JPEG-LS Lossless": ("MR_small_jpeg_ls_lossless.dcm", "-xt"),
    "JPEG-LS Near-Lossless": ("JPEGLSNearLossless_16.dcm", "-xu"),
    "JPEG 2000 Lossless": ("MR_small_jp2klossless.dcm", "-xv"),
    "JPEG 2000": ("JPEG2000.dcm", "-xw"),
}
SAME_BYTES, SAME_CONTENT, NOT_TRIED = "yes", "yes, encoded anew", "–"
NOT_TAKEN = "not taken by the peer"
# dcmtk, Orthanc and pynetdicom take everything: whatever else is refused is a failure.
NOT_TAKEN_BY = {(DicomRs.name, "Deflated Explicit VR Little Endian")}


class Certificates:
    """A CA of the run's own and one certificate for everybody: mutual TLS."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir()
        self.authority, self.certificate, self.key = (str(folder / name) for name in ("ca.pem", "node.pem", "node.key"))
        extensions = folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        request, authority_key = folder / "request", folder / "ca.key"
        for command in (
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Interoperation CA",
             "-keyout", authority_key, "-out", self.authority],
            ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout", self.key, "-out", request],
            ["x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", authority_key, "-CAcreateserial",
             "-days", "2", "-extfile", extensions, "-out", self.certificate],
        ):
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
        pathlib.Path(self.key).chmod(0o600)

    def of_dcmtk(self) -> list[str]:
        return ["+tls", self.key, self.certificate, "+cf", self.authority]

    def of_pynetdicom(self) -> list[str]:
        return [self.certificate, self.key, self.authority]

    def of_orthanc(self) -> dict:
        return {"DicomTlsCertificate": self.certificate, "DicomTlsPrivateKey": self.key,
                "DicomTlsTrustedCertificates": self.authority}

    def of_hilum(self) -> list[str]:
        return ["--tls-ca", self.authority, "--tls-certificate", self.certificate, "--tls-key", self.key]


class OrthancPeer(Orthanc):
    """Orthanc that also sends; `tls` for both roles."""

    hilum_port = 0
    tls: Certificates | None = None

    def more_configuration(self) -> dict:
        more = {"DicomAet": CALLING, "DicomCheckCalledAet": False}
        if self.hilum_port:
            target = {"AET": CALLED, "Host": "127.0.0.1", "Port": self.hilum_port, "UseDicomTls": self.tls is not None}
            more["DicomModalities"] = {"hilum": target}
        if self.tls:
            more |= {"DicomTlsEnabled": True, **self.tls.of_orthanc()}
        return more

    def post(self, path: str, body: bytes) -> dict:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def send(self, file: pathlib.Path) -> None:
        identifier = self.post("/instances", file.read_bytes())["ID"]
        self.post("/modalities/hilum/echo", b"{}")
        self.post("/modalities/hilum/store", json.dumps({"Resources": [identifier], "Synchronous": True}).encode())

    def files(self) -> list[bytes]:
        base = f"http://127.0.0.1:{self.http_port}/instances"
        with urllib.request.urlopen(base, timeout=60) as answer:
            identifiers = json.load(answer)
        found = []
        for identifier in identifiers:
            with urllib.request.urlopen(f"{base}/{identifier}/file", timeout=60) as answer:
                found.append(answer.read())
        return found


def run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment(True), timeout=120, check=False)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        failed = [line for line in lines if line.startswith("failed:")] or lines[-1:] or [str(done.returncode)]
        raise RuntimeError(f"{what}: {failed[0]}")


def objects(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """One radiograph in each transfer syntax."""
    source = pathlib.Path(os.environ["HILUM_CACHE"]) / "pydicom-3.0.2/pydicom/data/test_files"
    folder.mkdir()
    made = {}
    for index, (name, (file, _)) in enumerate(SYNTAXES.items()):
        image = pydicom.dcmread(source / file)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        image.Modality = "CR"
        image.pop("DataSetTrailingPadding", None)  # dcmtk leaves it out
        if image.file_meta.TransferSyntaxUID.is_encapsulated:
            image["PixelData"].VR = "OB"  # PS3.5 A.4; some of these files say OW
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = images.fresh_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = images.fresh_uid(), images.fresh_uid()
        made[name] = folder / f"{index}.dcm"
        image.save_as(made[name])
    return made


def fresh(file: pathlib.Path) -> pathlib.Path:
    """The same under a new SOP Instance UID: every cell sends an object of its own."""
    image = pydicom.dcmread(file)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = images.fresh_uid()
    image.save_as(file)
    return file


def arrived(sent: pathlib.Path, files: list[bytes]) -> str:
    """What became of an object on its way."""
    uid = pydicom.dcmread(sent, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    for file in files:
        if uid.encode() in file[:4096]:
            of_sent = sent.read_bytes()
            if digest_of_data_set(file) == digest_of_data_set(of_sent):
                return SAME_BYTES
            if digest_of_content(file) == digest_of_content(of_sent):
                return SAME_CONTENT
            raise RuntimeError("another object arrived")
    raise RuntimeError("nothing arrived")


def files_of(server: Server) -> list[bytes]:
    if isinstance(server, OrthancPeer):
        return server.files()
    pattern = "data/archive/objects/**/*.dcm" if isinstance(server, Hilum) else "objects/*"
    return [path.read_bytes() for path in server.folder.glob(pattern) if path.is_file()]


def try_cell(where: str, send, receiver: Server, file: pathlib.Path, name: str = "") -> str:
    try:
        send(fresh(file))
        return arrived(file, files_of(receiver))
    except Exception as error:  # whatever a peer says
        say(f"{where}: {error}")
        if (where, name) in NOT_TAKEN_BY and "transfer syntaxes not supported" in str(error):
            return NOT_TAKEN
        return f"**no**: {str(error).replace('|', '/')[:120]}"


def storescu(port: int, option: str, tls: Certificates | None):
    def send(file: pathlib.Path) -> None:
        more = tls.of_dcmtk() if tls else []
        ends = ["-aet", CALLING, "-aec", CALLED, "127.0.0.1", str(port)]
        run(["echoscu", *more, *ends], "echoscu")
        run(["storescu", *more, "-R", option, *ends, str(file)], "storescu")

    return send


def pynetdicom(port: int, tls: Certificates | None):
    more = tls.of_pynetdicom() if tls else []
    return lambda file: run([sys.executable, str(PYNETDICOM), "send", str(port), str(file), *more], "pynetdicom")


def dicom_rs(port: int):
    program = pathlib.Path(os.environ["HILUM_CACHE"]) / "cargo-tools/bin/dicom-storescu"
    return lambda file: run([str(program), "--fail-first", "--never-transcode", "--calling-ae-title", CALLING,
                             "--called-ae-title", CALLED, f"127.0.0.1:{port}", str(file)], "dicom-storescu")


def hilum_send(port: int, tls: Certificates | None):
    def send(file: pathlib.Path) -> None:
        more = tls.of_hilum() if tls else []
        ends = ["--to", f"127.0.0.1:{port}", "--called", CALLED, "--calling", CALLING, *more]
        run([os.environ["HILUM"], "send", *ends, str(file)], "hilum send")

    return send


def into_hilum(folder: pathlib.Path, files: dict[str, pathlib.Path], tls: Certificates | None) -> dict[str, list[str]]:
    """Hilum as SCP: a row of cells for each transfer syntax."""
    hilum = Hilum(folder / "hilum")
    port = hilum.port
    if tls:
        port = free_port()
        hilum.more_configuration = (
            f'[tls]\nlisten = "127.0.0.1:{port}"\ncertificate_file = "{tls.certificate}"\n'
            f'private_key_file = "{tls.key}"\nca_files = ["{tls.authority}"]\n')
    orthanc = OrthancPeer(folder / "orthanc")
    orthanc.hilum_port, orthanc.tls = port, tls
    # Its own start is checked by C-ECHO without TLS, which a server with TLS does not answer.
    orthanc._answers = lambda: bool(orthanc_is_up(orthanc))
    rows = {}
    with hilum, orthanc:
        for name, file in files.items():
            say(f"into Hilum{' over TLS' if tls else ''}: {name}")
            rows[name] = [
                try_cell("storescu", storescu(port, SYNTAXES[name][1], tls), hilum, file),
                try_cell("Orthanc", orthanc.send, hilum, file),
                try_cell("pynetdicom", pynetdicom(port, tls), hilum, file),
                NOT_TRIED if tls else try_cell("dicom-rs", dicom_rs(port), hilum, file),
                try_cell("hilum send", hilum_send(port, tls), hilum, file),
            ]
    return rows


def orthanc_is_up(orthanc: OrthancPeer) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{orthanc.http_port}/system", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def out_of_hilum(folder: pathlib.Path, files: dict[str, pathlib.Path], tls: Certificates | None) -> dict[str, list[str]]:
    """Hilum as SCU: `hilum send` to each."""
    storescp, orthanc, pynetdicom_scp, dicomrs = (
        Storescp(folder / "storescp"), OrthancPeer(folder / "orthanc"), Pynetdicom(folder / "pynetdicom"),
        DicomRs(folder / "dicom-rs"))
    storescp.more_options = ("+xa", "+B", *(tls.of_dcmtk() if tls else []))
    orthanc.tls = tls
    pynetdicom_scp.more_arguments = tuple(tls.of_pynetdicom()) if tls else ()
    servers: list[Server] = [storescp, orthanc, pynetdicom_scp] + ([] if tls else [dicomrs])
    rows: dict[str, list[str]] = {name: [] for name in files}
    for server in servers:
        if tls:
            server._answers = lambda own=server: answers_over_tls(own, tls)
        with server:
            for name, file in files.items():
                say(f"out of Hilum{' over TLS' if tls else ''} to {server.name}: {name}")
                rows[name].append(try_cell(server.name, hilum_send(server.port, tls), server, file, name))
    if tls:
        for cells in rows.values():
            cells.append(NOT_TRIED)
    return rows


def answers_over_tls(server: Server, tls: Certificates) -> bool:
    if server.process.poll() is not None:
        raise RuntimeError(f"{server.name} ended: {(server.folder / 'log').read_text(errors='replace')[-2000:]}")
    echo = ["echoscu", *tls.of_dcmtk(), "-aet", CALLING, "-aec", CALLED, "127.0.0.1", str(server.port)]
    return subprocess.run(echo, capture_output=True, check=False).returncode == 0


def speaks_tls() -> bool:
    done = subprocess.run([os.environ["HILUM"], "send", "--help"], capture_output=True, text=True, check=False)
    return "--tls-ca" in done.stdout


def tables(folder: pathlib.Path) -> str:
    files = objects(folder / "objects")
    text = ""
    for encrypted in (False, True):
        words = "over TLS, mutual" if encrypted else "without TLS"
        if encrypted and not speaks_tls():
            return text + "This build does not speak TLS.\n"
        tls = Certificates(folder / "certificates") if encrypted else None
        work = folder / ("tls" if encrypted else "plain")
        incoming = into_hilum(work / "in", files, tls)
        outgoing = out_of_hilum(work / "out", files, tls)
        text += f"### Hilum receives, {words}\n\n" + table(
            ["transfer syntax", "dcmtk storescu", "Orthanc", "pynetdicom", "dicom-rs storescu", "hilum send"],
            [[name, *cells] for name, cells in incoming.items()])
        text += f"\n### Hilum sends, {words}\n\n" + table(
            ["transfer syntax", "dcmtk storescp", "Orthanc", "pynetdicom", "dicom-rs storescp"],
            [[name, *cells] for name, cells in outgoing.items()]) + "\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="make interop", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="leave docs/interoperation.md as it is")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hilum-interop."))
    folder.chmod(0o755)
    try:
        text = tables(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = [fact for fact in processes.machine_facts(os.environ["HILUM"], pathlib.Path("/tmp"))
             if not fact.startswith(("CPU", "Postgres"))]
    now = datetime.datetime.now(datetime.timezone.utc)
    text = "\n".join(f"* {fact}" for fact in [f"tried on {now:%Y-%m-%d}", *facts]) + "\n\n" + text
    print(text)
    if not arguments.dry_run:
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    failed = text.count("**no**")
    print(f"interoperation: {text.count(SAME_BYTES)} cells work, {failed} do not, {text.count(NOT_TAKEN)} are not taken")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
