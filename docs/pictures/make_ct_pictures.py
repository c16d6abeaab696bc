#!/usr/bin/env python3
"""Makes the pictures of the docs that show pages about CT, trials, similar cases and maps on demand, from a running product.

    docs/pictures/make_ct_pictures.py HILUM

Everything in them is drawn: a phantom of two lungs, a trachea and a spine becomes a CT series, and its projection a radiograph,
both of nobody. A throw-away `hilum dev` analyses them with networks of random weights, beside which a second bundle is on trial.
Needs pydicom, NumPy, Pillow (deploy/peers-requirements.txt has them) and Chromium.
"""

import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from make_pictures import FOLDER, dx_image, node, save_small, take_page

# Two shadows and a library on a busy machine take their time.
PATIENCE_SECONDS = 1200
# Columns (patient's right first), rows (front first), slices (feet first), and their distances in millimetres.
SIZE, SPACING_MM = (224, 176, 40), (1.6, 1.6, 7.5)


def phantom(seed: int, opacity: tuple[float, float, float]) -> numpy.ndarray:
    """Hounsfield units, slices x rows x columns, with an opacity at a place in the lungs (each from -1 to 1)."""
    z, y, x = numpy.meshgrid(*(numpy.linspace(-1, 1, side) for side in reversed(SIZE)), indexing="ij")
    random = numpy.random.default_rng(seed)
    hu = numpy.full(x.shape, -1000.0)
    hu[(x / 0.95) ** 2 + (y / 0.92) ** 2 < 1] = 40
    hu[(x / 0.13) ** 2 + ((y - 0.62) / 0.16) ** 2 < 1] = 350
    for side in (-1, 1):
        lung = ((x - side * 0.46) / 0.36) ** 2 + (y / 0.68) ** 2 + ((z + 0.05) / 0.78) ** 2 < 1
        hu[lung] = -850
    hu[((x - 0.12) / 0.3) ** 2 + ((y + 0.3) / 0.4) ** 2 + ((z + 0.4) / 0.4) ** 2 < 1] = 40
    for _ in range(160):
        to_x, to_y, to_z = random.uniform(-1, 1, 3)
        hilum = numpy.sign(to_x) * 0.14
        for along in numpy.linspace(0, 1, 60):
            column, row, number = ((hilum + (to_x - hilum) * along + 1) / 2 * SIZE[0], (to_y * along + 1) / 2 * SIZE[1],
                                   (to_z * along + 1) / 2 * SIZE[2])
            at = tuple(int(min(place, side - 1)) for place, side in zip((number, row, column), reversed(SIZE)))
            if hu[at] == -850:
                hu[at] = -60
    at_x, at_y, at_z = opacity
    dense = ((x - at_x) / 0.2) ** 2 + ((y - at_y) / 0.25) ** 2 + ((z - at_z) / 0.3) ** 2 < 1
    hu[dense & (hu == -850)] = -450
    hu[((x / 0.05) ** 2 + ((y + 0.05) / 0.06) ** 2 < 1) & (z > 0.2)] = -1000
    return hu + random.normal(0, 18, hu.shape)


def ct_series(hu: numpy.ndarray, folder: pathlib.Path) -> None:
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number, slice_hu in enumerate(hu):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientName, image.PatientID, image.PatientSex, image.PatientAge = "Phantom^Drawn", "PHANTOM", "O", "050Y"
        image.PatientBirthDate = image.ReferringPhysicianName = image.StudyID = image.AccessionNumber = ""
        image.StudyDate, image.StudyTime, image.AcquisitionDate, image.ContentDate = ["20200101", "120000"] + ["20200101"] * 2
        image.Modality, image.Manufacturer, image.BodyPartExamined, image.PatientPosition = "CT", "Example", "CHEST", "HFS"
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 1, number + 1, 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0, 0, number * SPACING_MM[2]]
        image.PixelSpacing, image.SliceThickness, image.ConvolutionKernel = list(SPACING_MM[:2]), SPACING_MM[2], "STANDARD"
        image.KVP, image.PositionReferenceIndicator = 120, ""
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
        image.Rows, image.Columns = slice_hu.shape
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelData = (slice_hu + 1024).clip(0, 4095).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{number:03}.dcm", image, enforce_file_format=True)


def radiograph(hu: numpy.ndarray, file: pathlib.Path) -> None:
    """The projection from behind to the front, the head above."""
    attenuation = ((hu + 1000) / 1000).clip(0).mean(axis=1)[::-1]
    grey = attenuation / attenuation.max()
    Image.fromarray((255 * grey**0.8).astype("uint8")).resize((1024, 1024), Image.Resampling.BICUBIC).save(file)


def wait_until_answered(http: int, count: int) -> list[dict]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/api/studies", timeout=10) as answer:
            studies = json.load(answer)
        studies = studies if isinstance(studies, list) else studies["studies"]
        if len(studies) == count and all(study["state"] == "answered" for study in studies):
            return studies
        time.sleep(0.5)
    raise SystemExit("the studies were not answered in time")


def runs_of(http: int, uid: str) -> list[dict]:
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/api/studies/{uid}", timeout=10) as answer:
        return json.load(answer)["workups"][0]["runs"]


def wait_until_compared(http: int, uid: str) -> None:
    """The shadow comes after the run that somebody waits for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if len([run for run in runs_of(http, uid) if run["state"] == "succeeded"]) == 2:
            return
        time.sleep(0.5)
    raise SystemExit("the shadow did not end in time")


def reduced(picture: Image.Image, width: int, height: int) -> Image.Image:
    picture.thumbnail((width, height), Image.Resampling.LANCZOS)
    return picture


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    hilum = sys.argv[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        scratch = pathlib.Path(scratch)
        scratch.chmod(0o755)
        data = scratch / "data"
        with node(hilum, scratch) as (dicom, http):
            def run(*arguments: object) -> str:
                command = [hilum, "--dev", data, *arguments]
                return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout

            def send(path: pathlib.Path) -> None:
                run("send", "--to", f"127.0.0.1:{dicom}", "--called", "HILUM", "--calling", "DEMO_SCANNER", path)

            rows = [("file", "label", "patient")]
            library = scratch / "library"
            library.mkdir()
            for number, place in enumerate([(0.5, 0.2, -0.3), (-0.5, 0.1, 0.2), (0.4, -0.2, 0.3), (-0.4, 0.3, -0.4)]):
                radiograph(phantom(number, place), library / f"{number}.png")
                rows.append((f"{number}.png", f"drawn opacity {number + 1}", f"P{number + 1}"))
            with open(library / "list.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
            run("cases", "import", "--bundle", "cxr-untrained", "--cohort", "drawn", library / "list.csv")
            for network in ("unet_plus_plus", "covnet"):
                run("model", "init", "--ct", network)
            usual = ["--called-ae-title", "HILUM", "--quiet-seconds", 2, "--max-wait-seconds", 60, "--destinations", "demopacs"]
            run("route", "add", "scans", "--modalities", "CT", "--pipeline", "chest_ct", "--bundle", "ct-unet_plus_plus", *usual)
            run("route", "trial", "scans", "--bundle", "ct-covnet", "--mode", "shadow")

            hu = phantom(9, (-0.5, 0.15, -0.2))
            ct_series(hu, scratch / "ct")
            send(scratch / "ct")
            radiograph(hu, scratch / "film.png")
            film = scratch / "film.dcm"
            pydicom.dcmwrite(film, dx_image(scratch / "film.png"), enforce_file_format=True)
            send(film)
            studies = wait_until_answered(http, 2)
            of = {modality: study["study_instance_uid"] for study in studies for modality in study["modalities"]}
            wait_until_compared(http, of["CT"])
            page = f"http://127.0.0.1:{http}"
            take_page(f"{page}/studies/{of['CT']}", "ct-page.jpg", 1280, 1700, scratch)
            take_page(f"{page}/routes/scans/trial", "trial-page.png", 1280, 640, scratch)
            take_page(f"{page}/studies/{of['DX']}", "cases-page.jpg", 1280, 1900, scratch)
            for name in ("ct-page.jpg", "cases-page.jpg"):
                save_small(reduced(Image.open(FOLDER / name), 900, 1400), name)
            [radiograph_run] = [run["id"] for run in runs_of(http, of["DX"])]
            [ct_run] = [run["id"] for run in runs_of(http, of["CT"]) if run["role"] == "live"]
            picture = scratch / "map.png"
            run("explain", radiograph_run, "--method", "integrated_gradients", "--steps", 10, "--output", picture)
        save_small(reduced(Image.open(picture).convert("RGB"), 800, 800), "map-on-demand.jpg")
        results = data / "archive" / "results"
        [summary] = results.rglob(f"{ct_run}-sc-*.png")
        save_small(Image.open(summary).convert("RGB"), "ct-summary.jpg")
        slices = [pydicom.dcmread(path) for path in results.rglob(f"{ct_run}-sc-*.dcm")]
        slices = sorted((one for one in slices if "SliceLocation" in one or "ImagePositionPatient" in one),
                        key=lambda one: one.ImagePositionPatient[2])
        middle = Image.fromarray(slices[len(slices) // 2].pixel_array)
        save_small(middle.resize((512, 512), Image.Resampling.LANCZOS), "ct-slice.jpg")


if __name__ == "__main__":
    main()
