"""Compares the CT report of a node with numbers computed here: pydicom and numpy over the same labels.

    measure_ct.py <folder of the series> <labels.raw> <report.dcm>

Prints one line for each lung: side, ml, mean HU, 15th percentile, share of -700 HU and above in percent.
"""

import pathlib
import sys

import highdicom
import numpy as np
import pydicom

folder, labels, report = sys.argv[1:]
images = [pydicom.dcmread(path) for path in pathlib.Path(folder).glob("*.dcm")]
images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
hu = np.stack([i.pixel_array * float(i.RescaleSlope) + float(i.RescaleIntercept) for i in images])
labels = np.frombuffer(pathlib.Path(labels).read_bytes(), "u1").reshape(hu.shape)
heights = [float(image.ImagePositionPatient[2]) for image in images]
row, column = map(float, images[0].PixelSpacing)
voxel_ml = row * column * (heights[-1] - heights[0]) / (len(heights) - 1) / 1000
LIMITS = [-950, -700, -500, -100]


def expected(of):
    """Every number of a group by the code of its concept."""
    values = np.sort(hu[of])
    shares = np.histogram(values, [-np.inf, *LIMITS, np.inf])[0] / len(values) * 100
    numbers = {
        "118565006": len(values) * voxel_ml,
        "112031": values.mean(),
        "LUNG-PERC15": values[int(np.ceil(len(values) * 0.15)) - 1],
        "BAND-3-TO-5": shares[2:].sum(),
    }
    return numbers | {f"BAND-{n + 1}": share for n, share in enumerate(shares)}


def thirds(of):
    """Upper, middle and lower third of a lung's height."""
    slices = np.flatnonzero(of.any(axis=(1, 2)))
    first, end = slices[0], slices[-1] + 1
    third = (end - first) // 3
    for start, stop in [(end - third, end), (first + third, end - third), (first, first + third)]:
        part = np.zeros_like(of)
        part[start:stop] = of[start:stop]
        yield part


groups = {}
for group in highdicom.sr.srread(report).content.get_image_measurement_groups():
    numbers = {m.name.value: (float(m.value), m.unit.value) for m in group.get_measurements()}
    groups[group.tracking_identifier] = (numbers, group.finding_sites[0])
assert len(groups) == 8, sorted(groups)
for name, label, side in [("Right lung", 1, "24028007"), ("Left lung", 2, "7771000")]:
    lung = labels == label
    parts = {name: lung}
    parts |= {f"{name}, {third} third": of for third, of in zip(["superior", "middle", "inferior"], thirds(lung))}
    for tracking, of in parts.items():
        numbers, site = groups[tracking]
        assert site.value.value == "39607008" and site.laterality.value == side, (tracking, site)
        wanted = expected(of)
        assert set(numbers) == set(wanted), (tracking, sorted(numbers), sorted(wanted))
        for concept, value in wanted.items():
            found, unit = numbers[concept]
            assert abs(found - value) <= 1e-6 * max(1.0, abs(value)), (tracking, concept, found, value)
            units = {"118565006": "ml", "112031": "[hnsf'U]", "LUNG-PERC15": "[hnsf'U]"}
            assert unit == units.get(concept, "%"), (concept, unit)
    whole, _ = groups[name]
    concepts = ["118565006", "112031", "LUNG-PERC15", "BAND-3-TO-5"]
    print(name, *(f"{whole[concept][0]:.1f}" for concept in concepts))
