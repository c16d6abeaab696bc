"""Pictures, segmentations, presentation states and key objects: pixels, geometry and references."""

import base64
import io

import highdicom as hd
import numpy as np
from PIL import Image, ImageDraw
from pydicom.pixels import pixel_array

import tools
from findings import Findings
from study import Object, Study, outcome

SYNTAXES = {
    "none": "1.2.840.10008.1.2.1", "rle_lossless": "1.2.840.10008.1.2.5", "jpeg_baseline": "1.2.840.10008.1.2.4.50",
}
# A lossy picture may differ by this much from what was drawn: on average, and at one place.
JPEG_MEAN, JPEG_LARGEST = 4.0, 48


# --- Secondary Capture --------------------------------------------------------------------------------------------


def check_picture(study: Study, result: Object, findings: Findings) -> None:
    name, data_set, described = f"{study.name}/{result.name}", result.data_set, result.described
    form, drawn = described["form"], described["pixels"]
    shown = shown_sources(study, result)
    modality = "OT" if form["modality"] == "other" else str(shown[0].data_set.Modality)
    findings.equal("modality", name, modality, str(data_set.Modality))
    findings.equal("transfer syntax", name, SYNTAXES[form["compression"]], str(data_set.file_meta.TransferSyntaxUID))
    findings.equal("image type", name, ["DERIVED", "SECONDARY"], list(data_set.ImageType)[:2])
    findings.equal("conversion type", name, "WSD", str(data_set.ConversionType))
    is_jpeg = form["compression"] == "jpeg_baseline"
    description = (
        3, "YBR_FULL_422" if is_jpeg else "RGB", int(data_set.PlanarConfiguration) if form["compression"] == "rle_lossless" else 0,
        drawn["rows"], drawn["columns"], 8, 8, 7, 0,
    )
    keywords = (
        "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored",
        "HighBit", "PixelRepresentation",
    )
    for keyword, expected in zip(keywords, description):
        findings.equal(keyword, name, expected, data_set[keyword].value)
    findings.require(len(data_set.PixelData) % 2 == 0, f"{name}: the pixel data have an odd length")
    for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTSequence"):
        findings.require(keyword not in data_set, f"{name}: a coloured picture has {keyword}")
    check_pixels(study, result, is_jpeg, findings)
    check_lossy(result, shown, is_jpeg, findings, name)
    check_places(result, shown, drawn, findings, name)
    burned = "YES" if any(str(source.data_set.get("BurnedInAnnotation", "")) == "YES" for source in shown) else "NO"
    findings.equal("burned in annotation", name, burned, str(data_set.BurnedInAnnotation))
    for keyword in ("ImageComments", "DerivationDescription"):
        words = str(data_set.get(keyword, "")).upper()
        findings.require("NOT FOR DIAGNOSTIC USE" in words or "UNTRAINED" in words or not words.isascii(), f"{name}: {keyword} lacks the notice")


def shown_sources(study: Study, result: Object) -> list[Object]:
    """The images that a picture shows."""
    kind, analysis = outcome(study.run_of(result))
    if result.what == "heat_map":
        images = [analysis["images"][result.described["image"]]["source"]]
    elif result.what == "ct_slice":
        images = [analysis["series"]["images"][result.described["slice"]]]
    else:
        images = analysis["series"]["images"]
    return [study.by_uid[image["sop_instance_uid"]] for image in images]


def check_pixels(study: Study, result: Object, is_jpeg: bool, findings: Findings) -> None:
    """What a reader sees is what was drawn."""
    name, drawn = f"{study.name}/{result.name}", result.described["pixels"]
    expected = np.frombuffer((study.folder / drawn["file"]).read_bytes(), np.uint8)
    expected = expected.reshape(drawn["rows"], drawn["columns"], 3).astype(int)
    # JPEG is YBR in the file; every reader shows RGB.
    found = pixel_array(result.path).astype(int)
    if found.shape != expected.shape:
        findings.error(f"{name}: the pixels are {found.shape}, {expected.shape} expected")
        return
    difference = np.abs(found - expected)
    findings.compared["pixels of pictures"] += 1
    if is_jpeg:
        same = difference.mean() <= JPEG_MEAN and difference.max() <= JPEG_LARGEST
    else:
        same = not difference.any()
    if not same:
        findings.mismatches.append(f"{name}: pixels differ by {difference.mean():.2f} on average, {difference.max()} at most")


def check_lossy(result: Object, shown: list[Object], is_jpeg: bool, findings: Findings, name: str) -> None:
    """Once lossy, always lossy (PS3.3 section C.7.6.1.1.5)."""
    was_lossy = any(str(source.data_set.get("LossyImageCompression", "")) == "01" for source in shown)
    data_set = result.data_set
    findings.equal("lossy", name, "01" if was_lossy or is_jpeg else "00", str(data_set.LossyImageCompression))
    if is_jpeg:
        methods = data_set.LossyImageCompressionMethod
        methods = [methods] if isinstance(methods, str) else list(methods)
        ratios = data_set.LossyImageCompressionRatio
        n_ratios = 1 if not hasattr(ratios, "__len__") or isinstance(ratios, str) else len(ratios)
        findings.equal("lossy method", name, "ISO_10918_1", methods[-1])
        findings.equal("lossy ratios", name, len(methods), n_ratios)


def check_places(result: Object, shown: list[Object], drawn: dict, findings: Findings, name: str) -> None:
    """Where the picture lies: locations are preserved on the very grid of the source alone, spacing goes with the size."""
    data_set, source = result.data_set, shown[0].data_set
    same_grid = (drawn["rows"], drawn["columns"]) == (source.Rows, source.Columns) and result.what != "ct_summary"
    for item in data_set.SourceImageSequence:
        findings.equal("locations preserved", name, "YES" if same_grid else "NO", str(item.SpatialLocationsPreserved))
        findings.equal("purpose", name, "121322", str(item.PurposeOfReferenceCodeSequence[0].CodeValue))
    of_sources = {str(item.ReferencedSOPInstanceUID) for item in data_set.SourceImageSequence}
    allowed = {source.uid for source in shown}
    findings.require(bool(of_sources) and of_sources <= allowed, f"{name}: shows other images than it should")
    if result.what == "ct_summary":
        findings.require("ImagePositionPatient" not in data_set, f"{name}: a summary has a position")
        return
    findings.equal("source", name, allowed, of_sources)
    scale = [source.Rows / drawn["rows"], source.Columns / drawn["columns"]]
    if source.get("PixelSpacing"):
        for axis, millimetres in enumerate(source.PixelSpacing):
            findings.equal("pixel spacing", name, float(millimetres) * scale[axis], float(data_set.PixelSpacing[axis]))
    else:
        findings.require("PixelSpacing" not in data_set, f"{name}: has a spacing that its source has not")
    if result.what == "ct_slice":
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
            for number, expected in enumerate(source[keyword].value):
                findings.equal(keyword, name, float(expected), float(data_set[keyword].value[number]))
        findings.equal("frame of reference", name, str(source.FrameOfReferenceUID), str(data_set.FrameOfReferenceUID))
    else:
        findings.require("ImagePositionPatient" not in data_set, f"{name}: a radiograph has a position")


# --- Segmentation -------------------------------------------------------------------------------------------------

BITS = {"right": 1, "left": 2, "opacity": 4, "consolidation": 8, "lesion": 16}


def check_segmentation(study: Study, result: Object, dcmqi: str | None, findings: Findings) -> None:
    name, data_set = f"{study.name}/{result.name}", result.data_set
    run = study.run_of(result)
    is_ct = "image" not in result.described
    segmentation = hd.seg.segread(result.path)
    findings.equal("modality", name, "SEG", str(data_set.Modality))
    findings.equal("image type", name, ["DERIVED", "PRIMARY"], list(data_set.ImageType))
    findings.equal("segmentation type", name, "BINARY", str(data_set.SegmentationType))
    findings.equal("segment numbers", name, list(range(1, len(data_set.SegmentSequence) + 1)), list(segmentation.segment_numbers))
    bits = int(data_set.NumberOfFrames) * int(data_set.Rows) * int(data_set.Columns)
    findings.equal("length of pixel data", name, (bits + 15) // 16 * 2, len(data_set.PixelData))
    expected = expected_masks(study, run, result.described.get("image"))
    uids = list(expected)
    masks = np.stack([expected[uid] for uid in uids])
    # Every image that holds something is referred to; of the others none is needed.
    referred = {str(item.ReferencedSOPInstanceUID) for series in data_set.ReferencedSeriesSequence for item in series.ReferencedInstanceSequence}
    findings.require(referred <= set(uids), f"{name}: refers to other images than those that were segmented")
    was_lossy = any(str(study.by_uid[uid].data_set.get("LossyImageCompression", "")) == "01" for uid in uids)
    findings.equal("lossy", name, "01" if was_lossy else "00", str(data_set.LossyImageCompression))
    meanings = [segment_meaning(item) for item in data_set.SegmentSequence]
    present = [meaning for meaning, bit in BITS.items() if (masks & bit).any()]
    findings.equal("segments", name, present, meanings)
    try:
        found = segmentation.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    except Exception as error:  # whatever highdicom says of a broken object
        findings.error(f"{name}: highdicom: {error}")
        return
    voxels = {}
    for number, meaning in enumerate(meanings):
        mask = (masks & BITS.get(meaning, 0)) > 0
        findings.compared["masks"] += len(uids)
        wrong = [uid for index, uid in enumerate(uids) if not np.array_equal(found[index, :, :, number] > 0, mask[index])]
        if wrong:
            findings.mismatches.append(f"{name}: the {meaning} mask of {len(wrong)} of {len(uids)} images is another one")
        findings.equal("voxels", f"{name}: {meaning}", int(mask.sum()), int((found[..., number] > 0).sum()))
        voxels[number + 1] = int(mask.sum())
    check_places_of_frames(study, result, is_ct, findings, name)
    if is_ct and dcmqi:
        findings.equal("voxels read by dcmqi", name, voxels, tools.segment_volumes(dcmqi, result.path, findings))


def segment_meaning(item) -> str:
    """What a segment is by its codes; its label where lesions and densities have the same ones."""
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence", [])
    side = {"24028007": "right", "7771000": "left"}.get(str(modifiers[0].CodeValue)) if modifiers else None
    if str(kind.get("CodeValue", "")) == "39607008" and side:
        return side
    label = str(item.SegmentLabel).lower()
    return next((meaning for meaning in ("consolidation", "opacity", "lesion") if label.startswith(meaning)), label)


def expected_masks(study: Study, run: dict, image_idx: int | None) -> dict[str, np.ndarray]:
    """The labels of each image in its own rows and columns, from the labels that were written beside the results."""
    kind, analysis = outcome(run)
    if image_idx is not None:
        image = analysis["images"][image_idx]
        placement, mask = image["placement"], image["lung_mask"]
        canvas = np.array(Image.open(io.BytesIO(base64.b64decode(mask["png_base64"]))))

        def on_canvas(length: int, padding: int) -> np.ndarray:
            # The middle of each pixel of the image.
            return ((np.arange(length) + 0.5 + padding) * mask["side_pixels"] / placement["side"]).astype(int)

        rows = on_canvas(placement["source_rows"], placement["pad_top"])
        columns = on_canvas(placement["source_columns"], placement["pad_left"])
        return {image["source"]["sop_instance_uid"]: canvas[np.ix_(rows, columns)]}
    columns, rows, slices = study.case["labels"]["size"]
    labels = np.frombuffer((study.folder / study.case["labels"]["file"]).read_bytes(), np.uint8).reshape(slices, rows, columns)
    series = analysis["series"]
    if series["columns_reversed"]:
        labels = labels[:, :, ::-1]
    if series["rows_reversed"]:
        labels = labels[:, ::-1, :]
    return {image["sop_instance_uid"]: labels[index] for index, image in enumerate(series["images"])}


def check_places_of_frames(study: Study, result: Object, is_ct: bool, findings: Findings, name: str) -> None:
    """Every frame lies where its image lies."""
    data_set = result.data_set
    if not is_ct:
        findings.require("FrameOfReferenceUID" not in data_set, f"{name}: a radiograph has a frame of reference")
    for frame in data_set.PerFrameFunctionalGroupsSequence:
        derivation = frame.get("DerivationImageSequence") or data_set.SharedFunctionalGroupsSequence[0].DerivationImageSequence
        source = derivation[0].SourceImageSequence[0]
        image = study.by_uid.get(str(source.ReferencedSOPInstanceUID))
        if image is None:
            continue  # told elsewhere
        findings.equal("locations preserved", name, "YES", str(source.get("SpatialLocationsPreserved", "")))
        if is_ct:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            for number, expected in enumerate(image.data_set.ImagePositionPatient):
                findings.equal("position of a frame", name, float(expected), float(position[number]))
            findings.equal("frame of reference", name, str(image.data_set.FrameOfReferenceUID), str(data_set.FrameOfReferenceUID))
    if is_ct:
        shared = data_set.SharedFunctionalGroupsSequence[0]
        image = study.sources[0].data_set
        for number, expected in enumerate(image.ImageOrientationPatient):
            findings.equal("orientation", name, float(expected), float(shared.PlaneOrientationSequence[0].ImageOrientationPatient[number]))
        for number, expected in enumerate(image.PixelSpacing):
            findings.equal("pixel spacing", name, float(expected), float(shared.PixelMeasuresSequence[0].PixelSpacing[number]))


# --- presentation states and key objects --------------------------------------------------------------------------


def check_presentation_state(study: Study, result: Object, findings: Findings) -> None:
    name, data_set, run = f"{study.name}/{result.name}", result.data_set, study.run_of(result)
    image = outcome(run)[1]["images"][result.described["image"]]
    source = study.by_uid[image["source"]["sop_instance_uid"]]
    findings.equal("modality", name, "PR", str(data_set.Modality))
    shown = [str(item.ReferencedSOPInstanceUID) for series in data_set.ReferencedSeriesSequence for item in series.ReferencedImageSequence]
    findings.equal("images", name, [source.uid], shown)
    area = data_set.DisplayedAreaSelectionSequence[0]
    corners = list(area.DisplayedAreaTopLeftHandCorner) + list(area.DisplayedAreaBottomRightHandCorner)
    findings.equal("displayed area", name, [1, 1, source.data_set.Columns, source.data_set.Rows], corners)
    inverse = str(source.data_set.PhotometricInterpretation) == "MONOCHROME1"
    findings.equal("presentation LUT", name, "INVERSE" if inverse else "IDENTITY", str(data_set.PresentationLUTShape))
    mask = next(iter(expected_masks(study, run, result.described["image"]).values())) > 0
    drawn = np.zeros(mask.shape, bool)
    for annotation in data_set.GraphicAnnotationSequence:
        for graphic in annotation.get("GraphicObjectSequence", []):
            points = np.array(graphic.GraphicData, float).reshape(-1, 2)
            findings.require(np.array_equal(points[0], points[-1]), f"{name}: an outline is not closed")
            inside = (points >= 0).all() and (points <= np.array(mask.shape[::-1]) + 1).all()
            findings.require(bool(inside), f"{name}: an outline leaves the image")
            drawn |= filled(points, mask.shape)
    findings.compared["outlines"] += 1
    overlap = (drawn & mask).sum() / max((drawn | mask).sum(), 1)
    if overlap < 0.85:
        findings.mismatches.append(f"{name}: the outlines cover the lungs by {overlap:.2f} only")


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels within an outline, drawn eight times as large: corners of pixels count from 0 at the upper left."""
    scale = 8
    canvas = Image.new("1", (shape[1] * scale, shape[0] * scale))
    ImageDraw.Draw(canvas).polygon([(x * scale, y * scale) for x, y in points.tolist()], fill=1)
    return np.array(canvas).reshape(shape[0], scale, shape[1], scale).mean(axis=(1, 3)) >= 0.5


def check_key_objects(study: Study, result: Object, findings: Findings) -> None:
    name, data_set, run = f"{study.name}/{result.name}", result.data_set, study.run_of(result)
    kind, analysis = outcome(run)
    findings.equal("status of the bundle", name, "validated", run["bundle"]["status"])
    findings.equal("title", name, "113000", str(data_set.ConceptNameCodeSequence[0].CodeValue))
    images = [item for item in data_set.ContentSequence if item.ValueType == "IMAGE"]
    findings.require(all("ConceptNameCodeSequence" not in item for item in images), f"{name}: an image has a concept name")
    uids = [str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for item in images]
    if kind == "analysed":
        expected = [image["source"]["sop_instance_uid"] for image in analysis["images"] if image["decision"] == "present"]
        of_sources = [uid for uid in uids if study.by_uid.get(uid) in study.sources]
        findings.equal("key images", name, sorted(expected), sorted(of_sources))
    findings.require(len(uids) > 0 and len(set(uids)) == len(uids), f"{name}: names no image, or one twice")
    evidence = [
        str(reference.ReferencedSOPInstanceUID)
        for of_study in data_set.CurrentRequestedProcedureEvidenceSequence
        for series in of_study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]
    findings.equal("evidence", name, sorted(uids), sorted(evidence))
