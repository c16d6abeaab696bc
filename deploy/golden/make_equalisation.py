#!/usr/bin/env python3
"""Writes the golden file that src/imaging/equalise.rs is compared with, with OpenCV itself.

    pip install opencv-python-headless==4.12.0.88 numpy
    python deploy/golden/make_equalisation.py tests/golden/equalisation.json

The pictures are made here: ramps, noise and blobs, of sizes that the tiles divide and do not divide.
"""

import json
import sys

import cv2
import numpy as np


def pictures():
    generator = np.random.default_rng(20261128)
    for rows, columns in [(32, 32), (24, 30), (33, 32), (17, 41)]:
        y, x = np.mgrid[0:rows, 0:columns]
        blob = 150 * np.exp(-((x - columns / 3) ** 2 + (y - rows / 2) ** 2) / (rows * columns / 20))
        picture = 20 + 60 * x / columns + blob + generator.normal(0, 6, (rows, columns))
        yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    yield np.full((16, 16), 77, np.uint8)


def main():
    golden = []
    for picture in pictures():
        entries = []
        for clip_limit, tiles in [(2.0, 8), (2.0, 4), (40.0, 8), (0.5, 2), (3.5, 3), (1.0, 1)]:
            result = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(tiles, tiles)).apply(picture)
            entries.append({"clip_limit": clip_limit, "tiles": tiles, "picture": result.ravel().tolist()})
        golden.append({
            "rows": picture.shape[0],
            "columns": picture.shape[1],
            "picture": picture.ravel().tolist(),
            "histogram": cv2.equalizeHist(picture).ravel().tolist(),
            "clahe": entries,
        })
    with open(sys.argv[1], "w") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")
    print(f"OpenCV {cv2.__version__}: {len(golden)} pictures")


main()
