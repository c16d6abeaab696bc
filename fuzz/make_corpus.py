"""Makes fuzz seeds of the files of the packages pydicom and pydicom-data: make_corpus.py FIXTURES CORPUS.

Nothing here is committed: the files have licences of their own. Pixels are left out, but for the 12-bit JPEG pictures.
"""

import pathlib
import sys
import warnings

import pydicom
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGExtended12Bit

LONGEST_SEED = 16 * 1024
TARGETS = ["pdu", "command_set", "data_set_header", "part10_file", "character_set", "configuration", "jpeg_12_bit"]

fixtures, corpus = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
warnings.simplefilter("ignore")
for target in TARGETS:
    (corpus / target).mkdir(parents=True, exist_ok=True)


def seed(target, name, content):
    if 0 < len(content) <= LONGEST_SEED:
        (corpus / target / name).write_bytes(content)


def texts(data_set):
    """Each person name with its character set."""
    character_set = data_set.get_item("SpecificCharacterSet")
    name = data_set.get_item("PatientName")
    if name is not None and isinstance(name.value, bytes):
        declared = bytes(character_set.value or b"") if character_set is not None else b""
        yield bytes([len(declared)]) + declared + name.value


def pictures(data_set):
    if data_set.file_meta.get("TransferSyntaxUID") == JPEGExtended12Bit and max(data_set.Rows, data_set.Columns) <= 256:
        for frame in generate_frames(data_set.PixelData):
            yield bytes([data_set.Rows - 1, data_set.Columns - 1]) + frame


for folder in ("pydicom-3.0.2/pydicom/data", "pydicom-data-1.0.0/data_store/data"):
    for path in sorted(path for path in (fixtures / folder).rglob("*") if path.is_file()):
        name = str(path.relative_to(fixtures)).replace("/", "_")
        content = path.read_bytes()
        seed("part10_file", name, content)
        if content[128:132] == b"DICM":
            start = 144 + int.from_bytes(content[140:144], "little")
            seed("data_set_header", name, content[start : start + LONGEST_SEED])
        try:
            data_set = pydicom.dcmread(path)
            for number, text in enumerate(texts(data_set)):
                seed("character_set", f"{name}_{number}", text)
            for number, picture in enumerate(pictures(data_set)):
                seed("jpeg_12_bit", f"{name}_{number}", picture)
        except Exception:  # what pydicom cannot read is a seed all the same
            continue
for path in pathlib.Path("config").glob("*.toml"):
    seed("configuration", path.name, path.read_bytes())
