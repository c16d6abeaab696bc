"""Synthetic images: the sets that senders send. Made once for each run, in its own folder."""

import datetime
import pathlib
import uuid

import numpy
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

# All UIDs have one length, so that a template's can be replaced in its bytes.
UID_LENGTH = 44


def fresh_uid() -> str:
    """A UID below 2.25 (PS3.5 B.2) of UID_LENGTH characters."""
    return f"2.25.{uuid.uuid4().int % 10**39:0{UID_LENGTH - 5}d}".replace("2.25.0", "2.25.1", 1)


def template(modality: str, sop_class: str, rows: int, columns: int) -> FileDataset:
    """One grey image of 16 bits, explicit little endian, filled with reproducible noise of 12 bits."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = fresh_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID = sop_class
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID = fresh_uid()
    image.SeriesInstanceUID = fresh_uid()
    image.Modality = modality
    image.StudyDate = datetime.date(2026, 1, 2).strftime("%Y%m%d")
    image.StudyTime = "120000"
    image.AccessionNumber = ""
    image.PatientName = "Bench^Synthetic"
    image.PatientID = "BENCH"
    image.PatientBirthDate = ""
    image.PatientSex = "O"
    image.ReferringPhysicianName = ""
    image.StudyID = "1"
    image.SeriesNumber = "1"
    image.InstanceNumber = "1"
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = rows, columns
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    noise = numpy.random.default_rng(1).integers(0, 4096, rows * columns, dtype="<u2")
    image.PixelData = noise.tobytes()
    return image


def write_set(folder: pathlib.Path, modality: str, count: int, associations: int = 1) -> list[pathlib.Path]:
    """`count` images for each association, each association with a study of its own. Returns their folders."""
    sop_class, rows, columns = {
        "CT": (CTImageStorage, 512, 512),
        "CR": (ComputedRadiographyImageStorage, 2000, 2500),
        "LARGE": (ComputedRadiographyImageStorage, 8000, 8000),
    }[modality]
    image = template("CT" if modality == "CT" else "CR", sop_class, rows, columns)
    source = folder / "template.dcm"
    folder.mkdir(parents=True)
    image.save_as(source, enforce_file_format=True)
    pattern = source.read_bytes()
    source.unlink()
    folders = []
    for association in range(associations):
        of_association = folder / f"association-{association}"
        of_association.mkdir()
        study, series = fresh_uid(), fresh_uid()
        for index in range(count):
            head = pattern[:2048]
            for old, new in [
                (image.SOPInstanceUID, fresh_uid()),
                (image.StudyInstanceUID, study),
                (image.SeriesInstanceUID, series),
            ]:
                assert old.encode() in head
                head = head.replace(old.encode(), new.encode())
            (of_association / f"{index:04}.dcm").write_bytes(head + pattern[2048:])
        folders.append(of_association)
    return folders


def fresh_copy(source: pathlib.Path, target: pathlib.Path) -> str:
    """A copy under fresh UIDs, pixel data unchanged. Returns its Study Instance UID."""
    image = pydicom.dcmread(source)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = fresh_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = fresh_uid(), fresh_uid()
    image.save_as(target)
    return image.StudyInstanceUID
