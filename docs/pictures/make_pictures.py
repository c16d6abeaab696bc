#!/usr/bin/env python3
"""Makes the pictures of the README anew, from a running product.

    docs/pictures/make_pictures.py FILM.jpg HILUM

FILM is a grey chest film (PNG or JPEG) whose licence allows this use, HILUM the program. The film becomes a DX image
of nobody, a throw-away `hilum dev` analyses it, and headless Chromium takes the pages. The operating threshold is set
to 40 %, because random weights stay below the usual 50 % and the map would then show no colours. Needs pydicom, NumPy,
Pillow (deploy/peers-requirements.txt has them) and Chromium. Whoever replaces the film replaces the attribution in the
README as well.
"""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

FOLDER = pathlib.Path(__file__).resolve().parent
PATIENCE_SECONDS = 300


def dx_image(film: pathlib.Path) -> FileDataset:
    """The film as a Digital X-Ray image for presentation, of a patient who does not exist."""
    pixels = numpy.asarray(Image.open(film).convert("L"), dtype=numpy.uint16) << 4
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.PatientName, image.PatientID, image.PatientSex, image.PatientAge = "Example^CC-BY", "EXAMPLE", "O", "040Y"
    image.PatientBirthDate = image.ReferringPhysicianName = image.StudyID = image.AccessionNumber = ""
    image.StudyDate, image.StudyTime, image.AcquisitionDate, image.ContentDate = ["20200101", "120000"] + ["20200101"] * 2
    image.AcquisitionTime = image.ContentTime = "120000"
    image.Modality, image.PresentationIntentType, image.Manufacturer = "DX", "FOR PRESENTATION", "Example"
    image.BodyPartExamined, image.ViewPosition, image.PatientOrientation = "CHEST", "PA", ["L", "F"]
    image.ImageType, image.ImageLaterality = ["DERIVED", "SECONDARY"], "U"
    image.SeriesNumber, image.InstanceNumber = 1, 1
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LOG", -1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "US"
    image.PresentationLUTShape, image.LossyImageCompression, image.BurnedInAnnotation = "IDENTITY", "01", "NO"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.WindowCenter, image.WindowWidth = 2048, 4096
    image.PixelData = pixels.tobytes()
    return image


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def node(hilum: str, folder: pathlib.Path):
    """A throw-away node; yields its DICOM and its HTTP port."""
    dicom, http, pacs = free_port(), free_port(), free_port()
    ports = ["--dicom-port", str(dicom), "--http-port", str(http), "--pacs-port", str(pacs)]
    process = subprocess.Popen([hilum, "dev", "--data-dir", folder / "data", *ports])
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=5).close()
                break
            time.sleep(0.2)
        yield dicom, http
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def lower_threshold(hilum: str, data: pathlib.Path) -> None:
    """A copy of the untrained bundle with a lower operating threshold, and a route to it."""
    shutil.copytree(data / "models" / "cxr-untrained", data / "models" / "cxr-pictures")
    manifest = data / "models" / "cxr-pictures" / "manifest.toml"
    text = re.sub(r"(?m)^threshold = .*$", "threshold = 0.4", manifest.read_text())
    manifest.write_text(re.sub(r'(?m)^name = "cxr-untrained"$', 'name = "cxr-pictures"', text))
    subprocess.run(
        [hilum, "--dev", data, "route", "add", "chest", "--called-ae-title", "HILUM", "--modalities", "CR,DX",
         "--pipeline", "chest_radiograph", "--bundle", "cxr-pictures", "--quiet-seconds", "2",
         "--max-wait-seconds", "60", "--destinations", "demopacs"],
        check=True,
    )


def wait_for_answer(http: int) -> dict:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/api/studies", timeout=10) as answer:
            studies = json.load(answer)
        studies = studies if isinstance(studies, list) else studies["studies"]
        if studies and studies[0]["state"] == "answered":
            return studies[0]
        time.sleep(0.5)
    raise SystemExit("the study was not answered in time")


def take_page(url: str, name: str, width: int, height: int, scratch: pathlib.Path) -> None:
    shot = scratch / "shot.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},{height}", f"--screenshot={shot}", url],
        check=True, stderr=subprocess.DEVNULL, timeout=120,
    )
    save_small(Image.open(shot).convert("RGB"), name)


def save_small(picture: Image.Image, name: str) -> None:
    """Pages of text as PNG in 256 colours, whatever shows the film as JPEG: a palette would spoil its shades."""
    if name.endswith(".png"):
        picture.quantize(256).save(FOLDER / name, optimize=True)
    else:
        picture.save(FOLDER / name, quality=88, optimize=True)
    print(f"{FOLDER / name}: {picture.size[0]} x {picture.size[1]}, {(FOLDER / name).stat().st_size // 1024} KiB")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    film, hilum = pathlib.Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        dicom_file = scratch / "film.dcm"
        pydicom.dcmwrite(dicom_file, dx_image(film), enforce_file_format=True)
        with node(hilum, scratch) as (dicom, http):
            lower_threshold(hilum, scratch / "data")
            send = [hilum, "send", "--to", f"127.0.0.1:{dicom}", "--called", "HILUM", "--calling", "DEMO_SCANNER", dicom_file]
            subprocess.run(send, check=True)
            study = wait_for_answer(http)
            uid = study["study_instance_uid"]
            take_page(f"http://127.0.0.1:{http}/", "status-page.png", 1280, 1400, scratch)
            take_page(f"http://127.0.0.1:{http}/studies/{uid}", "study-page.jpg", 1280, 1440, scratch)
        previews = sorted((scratch / "data" / "archive" / "results").rglob("*.png"))
        overlay = Image.open(previews[0]).convert("RGB")
        overlay.thumbnail((800, 800), Image.Resampling.LANCZOS)
        save_small(overlay, "heat-map.jpg")


if __name__ == "__main__":
    main()
