#!/usr/bin/env python3
"""Writes tests/golden/pixels.json: what pydicom with GDCM and OpenJPEG makes of every picture in the packages `pydicom`
and `pydicom-data`, as the reference for Hilum's decoding. Run it with `make golden-pixels`. JPEG Extended with 12 bits,
which pydicom's plugins refuse, is decoded by dcmtk's dcmdjpeg.

For each file: its shape; of the first, the middle and the last frame the SHA-256 of all stored values as little-endian
32-bit integers (colour as RGB, interleaved), and 33 of the values spread over the frame, for codecs that may differ by
one; of single grey frames also the SHA-256 of the values after the Modality LUT as little-endian 32-bit floats.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import JPEGExtended12Bit, JPEGTransferSyntaxes

SAMPLES_PER_FRAME = 33


def frame_values(data_set, index):
    """The stored values of one frame as 32-bit integers, without bits that are not stored."""
    plugin = "gdcm" if data_set.file_meta.TransferSyntaxUID in JPEGTransferSyntaxes else ""
    values = pixel_array(data_set, index=index, decoding_plugin=plugin).astype(np.int64)
    if data_set.SamplesPerPixel == 1 and data_set.BitsStored < data_set.BitsAllocated:
        values &= (1 << data_set.BitsStored) - 1
        if data_set.PixelRepresentation == 1:
            values[values >= 1 << (data_set.BitsStored - 1)] -= 1 << data_set.BitsStored
    return values


def digest(values, kind):
    return hashlib.sha256(np.ascontiguousarray(values).astype(kind).tobytes()).hexdigest()


def read(path):
    data_set = pydicom.dcmread(path)
    if data_set.file_meta.get("TransferSyntaxUID") == JPEGExtended12Bit and data_set.BitsStored == 12:
        with tempfile.TemporaryDirectory() as folder:
            plain = pathlib.Path(folder) / "plain.dcm"
            subprocess.run(["dcmdjpeg", path, plain], check=True, stderr=subprocess.DEVNULL)
            data_set = pydicom.dcmread(plain)
            data_set.PixelData
    return data_set


def picture(path):
    data_set = read(path)
    if "PixelData" not in data_set or not data_set.get("Rows"):
        return None
    number_of_frames = int(data_set.get("NumberOfFrames") or 1)
    found = {
        "rows": data_set.Rows,
        "columns": data_set.Columns,
        "samples_per_pixel": data_set.SamplesPerPixel,
        "bits_allocated": data_set.BitsAllocated,
        "number_of_frames": number_of_frames,
    }
    if data_set.BitsAllocated not in (8, 16):
        return found
    found["frames"] = []
    for index in sorted({0, number_of_frames // 2, number_of_frames - 1}):
        values = frame_values(data_set, index)
        flat = values.ravel()
        spread = np.linspace(0, flat.size - 1, SAMPLES_PER_FRAME).astype(int)
        found["frames"].append(
            {"index": index, "sha256": digest(values, "<i4"), "values": [int(value) for value in flat[spread]]}
        )
    if number_of_frames == 1 and data_set.PhotometricInterpretation.startswith("MONOCHROME"):
        found["modality_sha256"] = digest(apply_modality_lut(frame_values(data_set, 0), data_set), "<f4")
    return found


def main():
    fixtures, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    warnings.simplefilter("ignore")
    pictures = {}
    for folder in ("pydicom-3.0.2/pydicom/data", "pydicom-data-1.0.0/data_store/data"):
        for path in sorted((fixtures / folder).rglob("*")):
            if not path.is_file():
                continue
            name = str(path.relative_to(fixtures))
            try:
                found = picture(path)
            except Exception as error:  # what pydicom cannot decode has no reference
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            if found is not None:
                pictures[name] = found
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(pictures.items())]
    output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(pictures)} pictures in {output}")


main()
