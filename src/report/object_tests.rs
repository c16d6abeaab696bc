//! Segmentations, presentation states and key objects, read back with other code than what wrote them.

use std::{collections::BTreeSet, fmt::Write as _};

use base64::{Engine, engine::general_purpose::STANDARD};
use dicom_core::{Tag, VR, header::Header};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject};
use rstest::rstest;

use super::{
    samples::{self, Sample, SampleElement, SampleSource, text},
    tests::validators,
    *,
};
use crate::{
    imaging::{Plane, canvas, lungs::Lungs, lungs_over_source},
    types::{
        BundleStatus, CtAnalysis, Decision, LungMask, ReportClass, RunOutcome, RunRecord, SourceImage,
        UNTRAINED_NOTICE, VoxelLabels,
    },
};

const IMAGE: &str = "1.2.826.0.1.3680043.8.498.11";

fn parse(object: &RenderedObject) -> DefaultDicomObject {
    dicom_object::from_reader(&object.part10[128..]).unwrap()
}

fn pairs(sources: &[SampleSource]) -> Vec<(SourceImage, SourceHeader)> {
    sources.iter().map(|source| (source.image(), source.header())).collect()
}

fn string(object: &InMemDicomObject, tag: Tag) -> String {
    object.element(tag).unwrap().to_str().unwrap().trim_end_matches(['\0', ' ']).to_owned()
}

fn items(object: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    object.element(tag).unwrap().items().unwrap()
}

fn item(object: &InMemDicomObject, tag: Tag) -> &InMemDicomObject {
    let [item] = items(object, tag) else { panic!("not one item in {tag}") };
    item
}

fn code(object: &InMemDicomObject, tag: Tag) -> String {
    let code = item(object, tag);
    format!("{} {}", string(code, tags::CODE_VALUE), string(code, tags::CODE_MEANING))
}

fn number(object: &InMemDicomObject, tag: Tag) -> u16 {
    object.element(tag).unwrap().to_int().unwrap()
}

/// Every element at every depth, with the tags above it.
fn walk(object: &InMemDicomObject, visit: &mut impl FnMut(&dicom_object::mem::InMemElement)) {
    for element in object {
        visit(element);
        element.items().unwrap_or_default().iter().for_each(|item| walk(item, visit));
    }
}

/// The attributes of an object, a line each with what is below it; values that are long or follow from UIDs are left out.
fn structure(object: &InMemDicomObject) -> String {
    fn lines(object: &InMemDicomObject, depth: usize, out: &mut String) {
        for element in object {
            let indent = "  ".repeat(depth);
            let shown = match (element.vr(), element.items()) {
                (_, Some(items)) => format!("{} item(s)", items.len()),
                (VR::OB | VR::OW | VR::UI, _) => "…".to_owned(),
                _ => element.to_str().unwrap().trim_end_matches(['\0', ' ']).chars().take(80).collect(),
            };
            writeln!(out, "{indent}{} {} {shown}", element.tag(), element.vr()).unwrap();
            // All items of a sequence have the same attributes; the first shows them.
            if let Some(first) = element.items().unwrap_or_default().first() {
                lines(first, depth + 1, out);
            }
        }
    }
    let mut out = String::new();
    lines(object, 0, &mut out);
    out
}

/// The SOP Instance UIDs and Series Instance UIDs that an object refers to.
fn referenced(object: &InMemDicomObject) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut instances, mut series) = (BTreeSet::new(), BTreeSet::new());
    walk(object, &mut |element| {
        if element.tag() == tags::REFERENCED_SOP_INSTANCE_UID {
            instances.insert(element.to_str().unwrap().trim_end_matches('\0').to_owned());
        }
        for item in element.items().unwrap_or_default() {
            if let Some(uid) = item.get(tags::SERIES_INSTANCE_UID) {
                series.insert(uid.to_str().unwrap().trim_end_matches('\0').to_owned());
            }
        }
    });
    (instances, series)
}

/// Whatever is referred to is a source of the study.
fn assert_refers_to_sources(object: &RenderedObject, sources: &[SampleSource]) {
    let (instances, series) = referenced(&parse(object));
    let of_sources: BTreeSet<String> = sources.iter().map(|source| source.sop_instance_uid.clone()).collect();
    let series_of_sources: BTreeSet<String> = sources.iter().map(|source| source.series_instance_uid.clone()).collect();
    assert!(!instances.is_empty() && instances.is_subset(&of_sources), "{instances:?}");
    assert!(!series.is_empty() && series.is_subset(&series_of_sources), "{series:?}");
}

// --- radiographs ---------------------------------------------------------------------------------------------------

fn size_elements(rows: u16, columns: u16) -> Vec<SampleElement> {
    vec![(0x0028, 0x0010, "US", Sample::Number(rows)), (0x0028, 0x0011, "US", Sample::Number(columns))]
}

/// A radiograph of this size with two round lungs that a segmenter of this side has found; `left` may be missing.
fn radiograph(rows: u16, columns: u16, side: usize, left: bool, status: BundleStatus) -> (SampleSource, RunRecord) {
    let source = SampleSource { more: size_elements(rows, columns), ..SampleSource::new(IMAGE) };
    let mut record = samples::analysed(status, &source);
    let placement = canvas::placement(usize::from(rows), usize::from(columns));
    let mut probabilities = Plane::filled(side, side, 0.0);
    for (pixel, value) in probabilities.values.iter_mut().enumerate() {
        let on_canvas = |at: usize| (at as f64 + 0.5) / side as f64 * f64::from(placement.side);
        let x = (on_canvas(pixel % side) - f64::from(placement.pad_left)) / f64::from(columns);
        let y = (on_canvas(pixel / side) - f64::from(placement.pad_top)) / f64::from(rows);
        let is_in = |center: f64| ((x - center) / 0.17).hypot((y - 0.52) / 0.35) < 1.0;
        *value = f32::from(u8::from(is_in(0.27) || left && is_in(0.73)));
    }
    let lungs = Lungs::from_probabilities(&probabilities, &placement);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    let image = &mut analysis.images[0];
    image.placement = placement;
    image.lung_mask = LungMask {
        side_pixels: side as u32,
        png_base64: STANDARD.encode(lungs.to_png()),
        area_fraction: lungs.measurements.area_fraction,
    };
    image.left_lung_heat_fraction = left.then_some(0.25);
    (source, record)
}

fn mask_of(record: &RunRecord) -> Vec<u8> {
    let RunOutcome::Analysed(analysis) = &record.outcome else { panic!() };
    let image = &analysis.images[0];
    lungs_over_source(&image.lung_mask, &image.placement).unwrap()
}

fn segmentation(record: &RunRecord, sources: &[SampleSource]) -> RenderedObject {
    render_segmentation(record, Shown::Radiograph(0), None, &pairs(sources), &samples::options()).unwrap()
}

/// Frame `n` of a BINARY segmentation: its bits begin where those of the frame before it end.
fn frame_bits(object: &InMemDicomObject, n: usize) -> Vec<bool> {
    let pixels = usize::from(number(object, tags::ROWS)) * usize::from(number(object, tags::COLUMNS));
    let bytes = object.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap();
    (n * pixels..(n + 1) * pixels).map(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1).collect()
}

#[test]
fn the_attributes_of_a_radiographs_segmentation() {
    let (source, record) = radiograph(37, 29, 64, true, BundleStatus::Unvalidated);
    let sources = [source];
    let object = segmentation(&record, &sources);
    insta::assert_snapshot!(structure(&parse(&object)));
    assert_eq!(object.part10, segmentation(&record, &sources).part10, "rendering twice gives the same bytes");
    assert_refers_to_sources(&object, &sources);
    assert_eq!((object.kind, object.kind.as_str()), (ResultKind::Seg, "seg"));
}

/// Sizes with a number of pixels that is no multiple of 8, so that frames begin within a byte; images that are padded at the
/// sides, above and below, and not; masks that are coarser and finer than the image.
#[rstest]
#[case(37, 29, 64)]
#[case(29, 37, 512)]
#[case(61, 61, 256)]
#[case(301, 203, 256)]
#[case(8, 16, 64)]
fn every_pixel_of_a_radiograph_is_in_its_segment(#[case] rows: u16, #[case] columns: u16, #[case] side: usize) {
    let (source, record) = radiograph(rows, columns, side, true, BundleStatus::Unvalidated);
    let parsed = parse(&segmentation(&record, &[source]));
    assert_eq!((number(&parsed, tags::ROWS), number(&parsed, tags::COLUMNS)), (rows, columns));
    assert_eq!(string(&parsed, tags::NUMBER_OF_FRAMES), "2");
    let expected = mask_of(&record);
    for (n, label) in [1_u8, 2].into_iter().enumerate() {
        let of_label: Vec<bool> = expected.iter().map(|found| *found == label).collect();
        assert!(of_label.contains(&true));
        assert_eq!(frame_bits(&parsed, n), of_label, "segment {label}");
    }
    let n_bytes = parsed.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap().len();
    assert_eq!(n_bytes, (2 * expected.len()).div_ceil(8).next_multiple_of(2));
}

/// A negative has the same geometry; a lung that is not there leaves no gap among the numbers.
#[test]
fn a_lung_that_is_not_there_is_no_segment() {
    let (mut source, record) = radiograph(40, 32, 64, false, BundleStatus::Unvalidated);
    source.more.push(text(0x0028, 0x0004, "CS", b"MONOCHROME1"));
    let parsed = parse(&segmentation(&record, &[source.clone()]));
    let segment = item(&parsed, tags::SEGMENT_SEQUENCE);
    assert_eq!((number(segment, tags::SEGMENT_NUMBER), string(segment, tags::SEGMENT_LABEL)), (1, "Right lung".into()));
    assert_eq!(string(&parsed, tags::NUMBER_OF_FRAMES), "1");
    assert_eq!(frame_bits(&parsed, 0), mask_of(&record).iter().map(|label| *label == 1).collect::<Vec<_>>());
    assert_eq!(string(&parsed, tags::PHOTOMETRIC_INTERPRETATION), "MONOCHROME2", "of the segmentation");

    let mut none = record;
    let RunOutcome::Analysed(analysis) = &mut none.outcome else { panic!() };
    analysis.images[0].right_lung_heat_fraction = None;
    let refused = render_segmentation(&none, Shown::Radiograph(0), None, &pairs(&[source]), &samples::options());
    assert!(refused.unwrap_err().to_string().contains("the segmentation would be empty: no lung was found"));
}

#[test]
fn what_does_not_fit_the_source_is_told() {
    let (source, record) = radiograph(40, 32, 64, true, BundleStatus::Unvalidated);
    let other = SampleSource { more: size_elements(40, 33), ..source.clone() };
    let said = |shown, sources: &[SampleSource]| {
        let rendered = render_segmentation(&record, shown, None, &pairs(sources), &samples::options());
        rendered.unwrap_err().to_string()
    };
    assert!(said(Shown::Radiograph(0), &[other]).contains("Some((40, 33)) rows and columns"));
    assert!(said(Shown::Radiograph(1), std::slice::from_ref(&source)).contains("no analysed image number 1"));
    assert!(said(Shown::Ct, &[source]).contains("has measured no CT"));
    let foreign = SampleSource::new("1.2.3.4");
    assert!(said(Shown::Radiograph(0), &[foreign]).contains("is missing"));
}

// --- CT ------------------------------------------------------------------------------------------------------------

const CT_SIZE: [usize; 3] = [9, 7, 5];

/// Five slices of 7 rows and 9 columns, 2.5 mm apart, from the feet.
fn ct_sources(columns_reversed: bool, rows_reversed: bool) -> Vec<SampleSource> {
    let sign = |is_reversed: bool| if is_reversed { -1.0 } else { 1.0 };
    let [columns, rows, slices] = CT_SIZE;
    (0..slices)
        .map(|slice| {
            let x = -100.0 - if columns_reversed { -0.7 * (columns - 1) as f64 } else { 0.0 };
            let y = -90.0 - if rows_reversed { -0.7 * (rows - 1) as f64 } else { 0.0 };
            let z = -400.0 + 2.5 * slice as f64;
            let orientation = format!("{}\\0\\0\\0\\{}\\0", sign(columns_reversed), sign(rows_reversed));
            let mut more = size_elements(rows as u16, columns as u16);
            more.extend([
                text(0x0018, 0x0050, "DS", b"2.5"),
                text(0x0020, 0x0013, "IS", (slice + 1).to_string().as_bytes()),
                text(0x0020, 0x0032, "DS", format!("{x:.3}\\{y:.3}\\{z:.3}").as_bytes()),
                text(0x0020, 0x0037, "DS", orientation.as_bytes()),
                text(0x0020, 0x0052, "UI", b"1.2.826.0.1.3680043.8.498.29"),
                text(0x0020, 0x1040, "LO", b""),
                text(0x0028, 0x0004, "CS", b"MONOCHROME2"),
            ]);
            SampleSource {
                modality: "CT",
                series_instance_uid: "1.2.826.0.1.3680043.8.498.20".to_owned(),
                pixel_spacing: Some("0.7\\0.7"),
                more,
                ..SampleSource::new(&format!("1.2.826.0.1.3680043.8.498.2.{}", slice + 1))
            }
        })
        .collect()
}

/// A measured CT with lesions, and what its voxels are: nothing in the lowest slice, no consolidation in the highest.
fn ct(
    columns_reversed: bool,
    rows_reversed: bool,
    status: BundleStatus,
) -> (Vec<SampleSource>, RunRecord, VoxelLabels) {
    let sources = ct_sources(columns_reversed, rows_reversed);
    let mut record = samples::ct_outlined(status, &samples::ct_sources());
    let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!() };
    let series = &mut analysis.series;
    series.images = sources.iter().map(SampleSource::image).collect();
    series.size = CT_SIZE;
    series.columns_reversed = columns_reversed;
    series.rows_reversed = rows_reversed;
    analysis.excluded.clear();
    let [columns, rows, slices] = CT_SIZE;
    let bits = (0..columns * rows * slices).map(|voxel| {
        let (column, row, slice) = (voxel % columns, voxel / columns % rows, voxel / (columns * rows));
        if slice == 0 || row == 0 || row == rows - 1 {
            return 0;
        }
        let side = match column {
            1..=3 => VoxelLabels::RIGHT_LUNG,
            5..=7 => VoxelLabels::LEFT_LUNG,
            _ => 0,
        };
        let is_dense = |divisor: usize| side != 0 && (column + 3 * row + slice) % divisor == 0;
        let opacity = u8::from(is_dense(2)) * VoxelLabels::OPACITY;
        let consolidation = u8::from(is_dense(4) && slice != slices - 1) * VoxelLabels::CONSOLIDATION;
        // Lesions may lie beyond the lungs.
        let lesion = u8::from(row == 2 && column >= 6 && slice == 2) * VoxelLabels::LESION;
        side | opacity | consolidation | lesion
    });
    let masks = VoxelLabels { size: CT_SIZE, bits: bits.collect() };
    (sources, record, masks)
}

fn ct_segmentation(record: &RunRecord, masks: &VoxelLabels, sources: &[SampleSource]) -> RenderedObject {
    render_segmentation(record, Shown::Ct, Some(masks), &pairs(sources), &samples::options()).unwrap()
}

#[test]
fn the_attributes_of_a_cts_segmentation() {
    let (sources, record, masks) = ct(false, false, BundleStatus::Untrained);
    let object = ct_segmentation(&record, &masks, &sources);
    insta::assert_snapshot!(structure(&parse(&object)));
    assert_eq!(object.part10, ct_segmentation(&record, &masks, &sources).part10);
    assert_refers_to_sources(&object, &sources);
}

#[rstest]
fn every_voxel_of_a_ct_is_in_its_segments(
    #[values(false, true)] columns_reversed: bool,
    #[values(false, true)] rows_reversed: bool,
) {
    let (sources, record, masks) = ct(columns_reversed, rows_reversed, BundleStatus::Unvalidated);
    let object = ct_segmentation(&record, &masks, &sources);
    assert_refers_to_sources(&object, &sources);
    let parsed = parse(&object);
    let segments: Vec<(u16, String)> = items(&parsed, tags::SEGMENT_SEQUENCE)
        .iter()
        .map(|segment| (number(segment, tags::SEGMENT_NUMBER), string(segment, tags::SEGMENT_LABEL)))
        .collect();
    assert_eq!(segments.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(segments[2].1.contains("-700 HU and above") && segments[3].1.contains("-100 HU and above"));
    assert_eq!(string(&parsed, tags::SEGMENTS_OVERLAP), "YES");

    let bits = [1, 2, 4, 8, 16];
    let frames = items(&parsed, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    assert_eq!(string(&parsed, tags::NUMBER_OF_FRAMES), frames.len().to_string());
    assert_eq!(frames.len(), 4 + 4 + 4 + 3 + 1, "empty frames are left out");
    let [columns, rows, _] = CT_SIZE;
    let mut seen = BTreeSet::new();
    for (n, frame) in frames.iter().enumerate() {
        let segment = number(item(frame, tags::SEGMENT_IDENTIFICATION_SEQUENCE), tags::REFERENCED_SEGMENT_NUMBER);
        let source = item(item(frame, tags::DERIVATION_IMAGE_SEQUENCE), tags::SOURCE_IMAGE_SEQUENCE);
        let uid = string(source, tags::REFERENCED_SOP_INSTANCE_UID);
        let slice = sources.iter().position(|source| source.sop_instance_uid == uid).unwrap();
        assert!(seen.insert((segment, slice)), "a frame is there twice");
        let position = string(item(frame, tags::PLANE_POSITION_SEQUENCE), tags::IMAGE_POSITION_PATIENT);
        let of_source =
            dicom_object::from_reader(&sources[slice].part10(samples::Syntax::ExplicitLittle)[128..]).unwrap();
        assert_eq!(position, string(&of_source, tags::IMAGE_POSITION_PATIENT));
        let indices = item(frame, tags::FRAME_CONTENT_SEQUENCE).element(tags::DIMENSION_INDEX_VALUES).unwrap();
        // The lowest slice has no frame, so the second is the first position.
        assert_eq!(indices.to_multi_int::<u32>().unwrap(), [u32::from(segment), slice as u32]);
        let expected: Vec<bool> = (0..rows * columns)
            .map(|pixel| {
                let (row, column) = (pixel / columns, pixel % columns);
                let row = if rows_reversed { rows - 1 - row } else { row };
                let column = if columns_reversed { columns - 1 - column } else { column };
                masks.slice(slice)[row * columns + column] & bits[usize::from(segment) - 1] != 0
            })
            .collect();
        assert_eq!(frame_bits(&parsed, n), expected, "segment {segment}, slice {slice}");
    }
}

#[test]
fn a_ct_without_lesions_has_no_segment_of_them() {
    let (sources, mut record, mut masks) = ct(false, false, BundleStatus::Unvalidated);
    let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!() };
    analysis.lesions.as_mut().unwrap().volume_ml = 0.0;
    masks.bits.iter_mut().for_each(|bits| *bits &= !VoxelLabels::LESION);
    let parsed = parse(&ct_segmentation(&record, &masks, &sources));
    assert_eq!(items(&parsed, tags::SEGMENT_SEQUENCE).len(), 4);
    let algorithms: Vec<String> = items(&parsed, tags::SEGMENT_SEQUENCE)
        .iter()
        .map(|segment| {
            let algorithm = item(segment, tags::SEGMENTATION_ALGORITHM_IDENTIFICATION_SEQUENCE);
            let family = code(algorithm, tags::ALGORITHM_FAMILY_CODE_SEQUENCE);
            let version = string(algorithm, tags::ALGORITHM_VERSION);
            format!("{family}: {} {version}", string(algorithm, tags::ALGORITHM_NAME))
        })
        .collect();
    assert_eq!(algorithms[0], "123104 Morphological Operations: hilum-lung-threshold 1");
    assert_eq!(algorithms[3], "123105 Histogram Analysis: hilum-lung-densitometry 1");
}

#[test]
fn what_the_voxels_of_a_ct_lack_is_told() {
    let (sources, record, masks) = ct(false, false, BundleStatus::Unvalidated);
    let said = |masks: Option<&VoxelLabels>, sources: &[SampleSource]| {
        let rendered = render_segmentation(&record, Shown::Ct, masks, &pairs(sources), &samples::options());
        rendered.unwrap_err().to_string()
    };
    assert!(said(None, &sources).contains("does not keep what each voxel is"));
    let other = VoxelLabels { size: [9, 7, 4], bits: vec![0; 9 * 7 * 4] };
    assert!(said(Some(&other), &sources).contains("has labels for [9, 7, 4]"));
    let other = VoxelLabels { bits: vec![0; masks.bits.len()], ..masks.clone() };
    assert!(said(Some(&other), &sources).contains("`Right lung` and no pixel"));
    assert!(said(Some(&masks), &sources[1..]).contains("is missing"));
    let mut placeless = sources;
    placeless[2].more.retain(|(group, element, ..)| (*group, *element) != (0x0020, 0x0032));
    assert!(said(Some(&masks), &placeless).contains("Image Position (Patient) (0020,0032)"));
}

// --- presentation states -------------------------------------------------------------------------------------------

fn outlines_of(record: &RunRecord, language: &str, sources: &[SampleSource]) -> RenderedObject {
    render_presentation_state(record, 0, language, &pairs(sources), &samples::options()).unwrap()
}

fn dx_grey_scale() -> Vec<SampleElement> {
    vec![
        text(0x0028, 0x0004, "CS", b"MONOCHROME2"),
        text(0x0028, 0x1050, "DS", b"2048\\1000"),
        text(0x0028, 0x1051, "DS", b"4096\\500"),
        text(0x0028, 0x1052, "DS", b"0"),
        text(0x0028, 0x1053, "DS", b"1"),
    ]
}

#[test]
fn the_attributes_of_a_presentation_state() {
    let (mut source, record) = radiograph(301, 203, 256, true, BundleStatus::Untrained);
    source.more.extend(dx_grey_scale());
    let sources = [source];
    let object = outlines_of(&record, "en", &sources);
    insta::assert_snapshot!(structure(&parse(&object)));
    assert_eq!(object.part10, outlines_of(&record, "en", &sources).part10);
    assert_refers_to_sources(&object, &sources);
    let parsed = parse(&object);
    let annotation = item(&parsed, tags::GRAPHIC_ANNOTATION_SEQUENCE);
    let text = string(item(annotation, tags::TEXT_OBJECT_SEQUENCE), tags::UNFORMATTED_TEXT_VALUE);
    assert!(text.contains(UNTRAINED_NOTICE) && text.ends_with("NOT FOR DIAGNOSTIC USE"), "{text}");
}

/// The pixels within the outlines are those of the mask, but for some at their border.
#[rstest]
#[case(301, 203, 256)]
#[case(200, 333, 512)]
#[case(900, 700, 64)]
fn the_outlines_enclose_the_lungs(#[case] rows: u16, #[case] columns: u16, #[case] side: usize) {
    let (source, record) = radiograph(rows, columns, side, true, BundleStatus::Unvalidated);
    let parsed = parse(&outlines_of(&record, "en", &[source]));
    let annotation = item(&parsed, tags::GRAPHIC_ANNOTATION_SEQUENCE);
    let objects = items(annotation, tags::GRAPHIC_OBJECT_SEQUENCE);
    assert_eq!(objects.len(), 2);
    let (height, width) = (usize::from(rows), usize::from(columns));
    let mask = mask_of(&record);
    for (object, label) in objects.iter().zip([1_u8, 2]) {
        assert_eq!(string(object, tags::GRAPHIC_TYPE), "POLYLINE");
        let data = object.element(tags::GRAPHIC_DATA).unwrap().to_multi_float32().unwrap();
        assert_eq!(data.len(), 2 * usize::from(number(object, tags::NUMBER_OF_GRAPHIC_POINTS)));
        assert!(data.len() <= 600, "{} points", data.len() / 2);
        let points: Vec<[f64; 2]> = data.chunks(2).map(|at| [f64::from(at[0]), f64::from(at[1])]).collect();
        assert_eq!(points.first(), points.last(), "it is closed");
        assert!(points.iter().all(|[x, y]| (0.0..=width as f64).contains(x) && (0.0..=height as f64).contains(y)));
        let is_within = |x: f64, y: f64| {
            let crosses = |line: &&[[f64; 2]]| {
                let [[ax, ay], [bx, by]] = [line[0], line[1]];
                (ay > y) != (by > y) && x < ax + (y - ay) / (by - ay) * (bx - ax)
            };
            points.windows(2).filter(crosses).count() % 2 == 1
        };
        for row in 1..height - 1 {
            for column in 1..width - 1 {
                let has = |row: usize, column: usize| mask[row * width + column] == label;
                // The outline is at most a pixel off, so what is farther from the border than that is certain.
                let around = (row.saturating_sub(2)..=(row + 2).min(height - 1))
                    .flat_map(|row| (column.saturating_sub(2)..=(column + 2).min(width - 1)).map(move |c| (row, c)));
                let is_certain = around.into_iter().all(|(r, c)| has(r, c) == has(row, column));
                if is_certain {
                    let found = is_within(column as f64 + 0.5, row as f64 + 0.5);
                    assert_eq!(found, has(row, column), "pixel {column}, {row}");
                }
            }
        }
    }
}

#[test]
fn the_image_keeps_its_grey_scale() {
    let (source, record) = radiograph(40, 32, 64, true, BundleStatus::Unvalidated);
    let with = |more: Vec<SampleElement>| {
        let mut source = source.clone();
        source.more.extend(more);
        parse(&outlines_of(&record, "en", &[source]))
    };
    let plain = with(dx_grey_scale());
    let voi = item(&plain, tags::SOFTCOPY_VOILUT_SEQUENCE);
    assert_eq!((string(voi, tags::WINDOW_CENTER), string(voi, tags::WINDOW_WIDTH)), ("2048".into(), "4096".into()));
    assert_eq!(string(&plain, tags::RESCALE_TYPE), "US");
    assert_eq!(string(&plain, tags::PRESENTATION_LUT_SHAPE), "IDENTITY");
    let area = item(&plain, tags::DISPLAYED_AREA_SELECTION_SEQUENCE);
    assert_eq!(string(area, tags::PRESENTATION_PIXEL_SPACING), "0.143\\0.143");
    let corner = area.element(tags::DISPLAYED_AREA_BOTTOM_RIGHT_HAND_CORNER).unwrap();
    assert_eq!(corner.to_multi_int::<i32>().unwrap(), [32, 40]);

    let negative = with(vec![text(0x0028, 0x0004, "CS", b"MONOCHROME1"), text(0x0028, 0x0030, "DS", b"0\\0")]);
    assert_eq!(string(&negative, tags::PRESENTATION_LUT_SHAPE), "INVERSE");
    assert!(negative.get(tags::RESCALE_SLOPE).is_none() && negative.get(tags::SOFTCOPY_VOILUT_SEQUENCE).is_none());
    let area = item(&negative, tags::DISPLAYED_AREA_SELECTION_SEQUENCE);
    assert_eq!(string(area, tags::PRESENTATION_PIXEL_ASPECT_RATIO), "1\\1");
    assert!(area.get(tags::PRESENTATION_PIXEL_SPACING).is_none());

    let table = |explanation: &[u8]| {
        let descriptor = [4_u16, 0, 16].iter().flat_map(|word| word.to_le_bytes()).collect();
        Sample::Items(vec![vec![
            (0x0028, 0x3002, "US", Sample::Bytes(descriptor)),
            text(0x0028, 0x3003, "LO", explanation),
            text(0x0028, 0x3004, "LO", b"OD"),
            (0x0028, 0x3006, "US", Sample::Bytes(vec![0, 0, 1, 0, 2, 0, 3, 0])),
        ]])
    };
    let tables = with(vec![
        (0x0028, 0x3000, "SQ", table(b"density")),
        (0x0028, 0x3010, "SQ", table(&[0xd5, 0x5c])),
        text(0x0028, 0x1050, "DS", b"2048"),
        text(0x0028, 0x1051, "DS", b"4096"),
    ]);
    let modality = item(&tables, tags::MODALITY_LUT_SEQUENCE);
    assert_eq!(string(modality, tags::MODALITY_LUT_TYPE), "OD");
    let voi = item(&tables, tags::SOFTCOPY_VOILUT_SEQUENCE);
    assert!(voi.get(tags::WINDOW_CENTER).is_none(), "a table stands before a window");
    let table = item(voi, tags::VOILUT_SEQUENCE);
    assert_eq!(table.element(tags::LUT_DATA).unwrap().to_multi_int::<u16>().unwrap(), [0, 1, 2, 3]);
    assert!(table.get(tags::LUT_EXPLANATION).is_none());
}

#[test]
fn words_are_in_the_language_of_the_destination() {
    let (source, record) = radiograph(40, 32, 64, true, BundleStatus::Unvalidated);
    let said = |character_set, language: &str| {
        let sources = [SampleSource { character_set, ..source.clone() }];
        let object = outlines_of(&record, language, &sources);
        let parsed = parse(&object);
        let annotation = item(&parsed, tags::GRAPHIC_ANNOTATION_SEQUENCE);
        let words = string(item(annotation, tags::TEXT_OBJECT_SEQUENCE), tags::UNFORMATTED_TEXT_VALUE);
        (words, object.sop_instance_uid)
    };
    for character_set in [None, Some("ISO_IR 100"), Some("ISO_IR 192"), Some("GB18030")] {
        let (chinese, of_chinese) = said(character_set, "zh");
        assert_eq!(chinese, "AI 肺部轮廓。不可用于诊断");
        let (english, of_english) = said(character_set, "en");
        assert_eq!(english, "AI lung outlines. NOT FOR DIAGNOSTIC USE");
        assert_ne!(of_chinese, of_english, "other words are another object");
        assert_eq!(said(character_set, "xx"), (english, of_english));
    }
}

#[test]
fn without_lungs_there_is_nothing_to_outline() {
    let (source, mut record) = radiograph(40, 32, 64, true, BundleStatus::Unvalidated);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    let placement = analysis.images[0].placement;
    let empty = Lungs::from_probabilities(&Plane::filled(64, 64, 0.0), &placement);
    analysis.images[0].lung_mask.png_base64 = STANDARD.encode(empty.to_png());
    let refused = render_presentation_state(&record, 0, "en", &pairs(&[source]), &samples::options());
    assert!(refused.unwrap_err().to_string().contains("the presentation state would be empty"));
}

// --- key objects ---------------------------------------------------------------------------------------------------

fn key_objects(record: &RunRecord, language: &str, sources: &[SampleSource]) -> Result<RenderedObject, ReportError> {
    render_key_objects(record, language, &pairs(sources), &samples::options())
}

/// Two radiographs, the second of which is present.
fn present_radiograph(status: BundleStatus) -> (Vec<SampleSource>, RunRecord) {
    let sources = samples::three_sources();
    let mut record = samples::partial(&sources);
    record.bundle = samples::bundle(status);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    analysis.images[0].decision = Decision::Absent;
    analysis.images[1].decision = Decision::Present;
    analysis.images[1].fused = vec![0.912, 0.088];
    (sources.to_vec(), record)
}

fn present_ct(change: impl FnOnce(&mut CtAnalysis)) -> (Vec<SampleSource>, RunRecord) {
    let (sources, mut record, _) = ct(false, false, BundleStatus::Validated);
    let classified = samples::ct_classified(BundleStatus::Validated, &samples::ct_sources());
    let RunOutcome::CtMeasured(of_classes) = classified.outcome else { panic!() };
    let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!() };
    analysis.classification = of_classes.classification;
    change(analysis);
    (sources, record)
}

/// The content of a key object selection: (relationship, value type, concept, value).
fn content(parsed: &InMemDicomObject) -> Vec<String> {
    let optional = |item: &InMemDicomObject, tag: Tag| item.get(tag).map(|_| string(item, tag)).unwrap_or_default();
    items(parsed, tags::CONTENT_SEQUENCE)
        .iter()
        .map(|item| {
            let concept =
                item.get(tags::CONCEPT_NAME_CODE_SEQUENCE).map(|_| code(item, tags::CONCEPT_NAME_CODE_SEQUENCE));
            let value = item.get(tags::REFERENCED_SOP_SEQUENCE).map_or_else(
                || optional(item, tags::TEXT_VALUE),
                |references| string(&references.items().unwrap()[0], tags::REFERENCED_SOP_INSTANCE_UID),
            );
            let value_type = string(item, tags::VALUE_TYPE);
            format!("{} {value_type} {} {value}", string(item, tags::RELATIONSHIP_TYPE), concept.unwrap_or_default())
        })
        .collect()
}

#[test]
fn the_attributes_of_key_objects() {
    let (sources, record) = present_radiograph(BundleStatus::Validated);
    let object = key_objects(&record, "en", &sources).unwrap();
    let parsed = parse(&object);
    insta::assert_snapshot!(structure(&parsed));
    assert_eq!(object.part10, key_objects(&record, "en", &sources).unwrap().part10);
    assert_refers_to_sources(&object, &sources);
    let (instances, _) = referenced(&parsed);
    assert_eq!(
        instances.into_iter().collect::<Vec<_>>(),
        [sources[1].sop_instance_uid.clone()],
        "what is present only"
    );
    let content = content(&parsed);
    let description = content.iter().find(|line| line.contains("113012 Key Object Description")).unwrap();
    assert!(
        description.ends_with(
            "Model output for class COVID-19: 91.2 %, at or above the operating threshold of 50.0 %. NOT FOR DIAGNOSTIC USE"
        ),
        "{description}"
    );
    assert_eq!(content.last().unwrap(), &format!("CONTAINS IMAGE  {}", sources[1].sop_instance_uid), "no Concept Name");
    assert_eq!(code(&parsed, tags::CONCEPT_NAME_CODE_SEQUENCE), "113000 Of Interest");
}

#[test]
fn only_what_a_validated_bundle_calls_present_is_of_interest() {
    for status in [BundleStatus::Untrained, BundleStatus::Unvalidated] {
        let (sources, record) = present_radiograph(status);
        let refused = key_objects(&record, "en", &sources).unwrap_err().to_string();
        assert!(refused.contains("only a validated bundle may say"), "{refused}");
    }
    let (sources, mut record) = present_radiograph(BundleStatus::Validated);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    analysis.images[1].decision = Decision::Undetermined;
    let refused = key_objects(&record, "en", &sources).unwrap_err().to_string();
    assert!(refused.contains("the key object selection would be empty: nothing is present"), "{refused}");
    let (sources, record) = present_ct(|_| ());
    assert!(key_objects(&record, "en", &sources).unwrap_err().to_string().contains("nothing is present"));
}

#[test]
fn the_key_slices_of_a_ct_are_of_interest() {
    let images = |change: fn(&mut CtAnalysis)| {
        let (sources, record) = present_ct(change);
        let object = key_objects(&record, "en", &sources).unwrap();
        assert_refers_to_sources(&object, &sources);
        let (instances, _) = referenced(&parse(&object));
        let numbers: Vec<usize> =
            (0..sources.len()).filter(|slice| instances.contains(&sources[*slice].sop_instance_uid)).collect();
        (numbers, content(&parse(&object)).join("\n"))
    };
    let (slices, words) = images(|analysis| analysis.classification.as_mut().unwrap().decision = Decision::Present);
    assert_eq!(slices, [1]);
    assert!(words.contains("Model output for class Lesion: 62.5 %") && !words.contains("rule"), "{words}");
    let (slices, words) = images(|analysis| {
        let lesions = analysis.lesions.as_mut().unwrap();
        lesions.decision = Decision::Present;
        lesions.largest_slice = Some(4);
        lesions.run.as_mut().unwrap().first_slice = 1;
        lesions.run.as_mut().unwrap().last_slice = 3;
    });
    assert_eq!(slices, [2, 4]);
    assert!(words.contains("satisfies the rule of the bundle: at least 10 mm2"), "{words}");
    let (slices, _) = images(|analysis| {
        let scan = analysis.classification.as_mut().unwrap();
        scan.decision = Decision::Present;
        scan.key_slices.clear();
        scan.slices = vec![0, 3];
    });
    assert_eq!(slices, [0, 3], "all that the networks saw");
}

#[test]
fn key_objects_speak_the_language_of_the_destination() {
    let (mut sources, record) = present_radiograph(BundleStatus::Validated);
    for source in &mut sources {
        source.character_set = Some("ISO_IR 192");
    }
    let parsed = parse(&key_objects(&record, "zh", &sources).unwrap());
    let language = items(&parsed, tags::CONTENT_SEQUENCE)
        .iter()
        .find(|item| code(item, tags::CONCEPT_NAME_CODE_SEQUENCE).starts_with("121049"))
        .map(|item| code(item, tags::CONCEPT_CODE_SEQUENCE));
    assert_eq!(language.as_deref(), Some("zh Chinese"));
    assert!(content(&parsed).join("\n").contains("类别 COVID-19 的模型输出：91.2 %"));
}

// --- all of them ---------------------------------------------------------------------------------------------------

/// A segmentation with what its pixels should be: for each image that it refers to, in their order, and each of its rows a
/// byte for each pixel, bit n - 1 for segment n.
struct Written {
    name: String,
    object: RenderedObject,
    pixels: Option<Vec<u8>>,
}

fn all_objects() -> Vec<Written> {
    let mut all = Vec::new();
    let mut add =
        |name: String, object: RenderedObject, pixels: Option<Vec<u8>>| all.push(Written { name, object, pixels });
    for (rows, columns, side, left) in [(37, 29, 64, true), (301, 203, 256, true), (200, 333, 512, false)] {
        for (modality, photometric) in [("DX", "MONOCHROME2"), ("CR", "MONOCHROME1")] {
            for status in [BundleStatus::Untrained, BundleStatus::Unvalidated] {
                let (mut source, record) = radiograph(rows, columns, side, left, status);
                source.modality = modality;
                source.character_set = (side == 256).then_some("ISO_IR 192");
                source.more.extend(dx_grey_scale().into_iter().skip(1));
                source.more.push(text(0x0028, 0x0004, "CS", photometric.as_bytes()));
                let name = format!("{modality}-{rows}x{columns}-{status:?}");
                let sources = [source];
                add(format!("{name}-seg"), segmentation(&record, &sources), Some(mask_of(&record)));
                add(format!("{name}-pr"), outlines_of(&record, "zh", &sources), None);
            }
        }
    }
    let (source, record) = radiograph(40, 32, 64, true, BundleStatus::Unvalidated);
    let bare = [SampleSource { without_type_2: true, pixel_spacing: None, ..source }];
    add("bare-seg".to_owned(), segmentation(&record, &bare), Some(mask_of(&record)));
    add("bare-pr".to_owned(), outlines_of(&record, "en", &bare), None);
    for (columns_reversed, rows_reversed) in [(false, false), (true, false), (false, true), (true, true)] {
        let (sources, record, masks) = ct(columns_reversed, rows_reversed, BundleStatus::Unvalidated);
        let [columns, rows, slices] = CT_SIZE;
        let stored = (0..columns * rows * slices).map(|voxel| {
            let (column, row, slice) = (voxel % columns, voxel / columns % rows, voxel / (columns * rows));
            let row = if rows_reversed { rows - 1 - row } else { row };
            let column = if columns_reversed { columns - 1 - column } else { column };
            masks.slice(slice)[row * columns + column]
        });
        let name = format!("ct-{columns_reversed}-{rows_reversed}-seg");
        add(name, ct_segmentation(&record, &masks, &sources), Some(stored.collect()));
    }
    let (sources, record) = present_radiograph(BundleStatus::Validated);
    add("present-ko".to_owned(), key_objects(&record, "en", &sources).unwrap(), None);
    let (sources, record) = present_ct(|analysis| analysis.lesions.as_mut().unwrap().decision = Decision::Present);
    add("ct-present-ko".to_owned(), key_objects(&record, "en", &sources).unwrap(), None);
    all
}

#[test]
fn nothing_says_more_than_it_may() {
    for Written { name, object, .. } in all_objects() {
        let parsed = parse(&object);
        let mut texts = Vec::new();
        walk(&parsed, &mut |element| {
            if matches!(element.vr(), VR::LO | VR::SH | VR::ST | VR::LT | VR::UT | VR::CS) {
                texts.push(element.to_str().unwrap().to_lowercase());
            }
        });
        let texts = texts.join("\n");
        for forbidden in ["positive", "negative", "detected", "diagnosis", "probability", "infected", "suspicious"] {
            assert!(!texts.contains(forbidden), "{name} says {forbidden}: {texts}");
        }
        let id = if name.contains("Untrained") { "untrained-notice" } else { "not-for-diagnostic-use" };
        let description = string(&parsed, tags::SERIES_DESCRIPTION);
        let catalogue = samples::options().texts;
        let mut notices = ["en", "zh"].map(|tag| catalogue.language(tag).say(id, &[])).into_iter();
        assert!(notices.any(|notice| description.ends_with(&notice)), "{name}: {description}");
        assert!(description.chars().count() <= 64);
        assert_eq!(string(&parsed, tags::CONTENT_QUALIFICATION), "RESEARCH");
        assert_eq!(string(&parsed, tags::SOP_CLASS_UID), object.sop_class_uid.as_str());
        assert!(CREATED_SOP_CLASSES.contains(&object.sop_class_uid.as_str()), "{name}");
        assert_eq!(object.sha256, Sha256Digest::of(&object.part10), "{name}");
    }
}

/// Has dcmqi turn the segmentations in `folder` whose names begin with `prefix` into volumes, and compares every voxel with
/// the `.masks` beside them.
const COMPARE_VOLUMES: &str = r#"
import gzip, pathlib, subprocess, sys, tempfile, numpy as np, pydicom
for path in sorted(pathlib.Path(sys.argv[1]).glob(sys.argv[2] + "*-seg.dcm")):
    seg = pydicom.dcmread(path)
    series = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    bits = np.fromfile(path.with_suffix(".masks"), np.uint8).reshape(len(series), seg.Rows, seg.Columns)
    place = {item.ReferencedSOPInstanceUID: n for n, item in enumerate(series)}
    used = set()
    for frame in seg.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        used.add((float(frame.PlanePositionSequence[0].ImagePositionPatient[2]), place[source]))
    with tempfile.TemporaryDirectory() as out:
        ended = subprocess.run([sys.argv[3], "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nrrd"],
                               capture_output=True, text=True)
        assert ended.returncode == 0, (path, ended.stdout, ended.stderr)
        found = sorted(pathlib.Path(out).glob("*.nrrd"))
        assert len(found) == len(seg.SegmentSequence), (path, found)
        for nrrd in found:
            head, data = nrrd.read_bytes().split(b"\n\n", 1)
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
            data = gzip.decompress(data) if fields["encoding"] == "gzip" else data
            columns, rows, slices = map(int, fields["sizes"].split())
            volume = np.frombuffer(data, fields["type"].replace("unsigned char", "u1").replace("short", "<i2"))
            volume = volume.reshape(slices, rows, columns)
            to_slices = eval("[" + fields["space directions"].replace(" (", ", (") + "]")[2]
            order = [n for _, n in sorted(used, reverse=to_slices[2] < 0)]
            assert slices == len(order), (nrrd, slices, order)
            number = int(nrrd.stem.split("-")[-1])
            assert np.array_equal(volume != 0, bits[order] >> (number - 1) & 1 != 0), (path, number)
    print("dcmqi", path.name, len(found))
"#;

/// Fails unless `segimage2itkimage` of dcmqi makes the volumes that are expected of every segmentation `PREFIX…-seg.dcm` in
/// `folder`, of which there must be one.
fn assert_dcmqi_reads(folder: &std::path::Path, prefix: &str) {
    let python = validators::peers_python();
    let program = python.with_file_name("segimage2itkimage");
    let mut command = std::process::Command::new(&python);
    let read = command.args(["-c", COMPARE_VOLUMES]).arg(folder).arg(prefix).arg(program).output().unwrap();
    assert!(read.status.success(), "dcmqi: {}", String::from_utf8_lossy(&read.stderr).trim());
    assert!(String::from_utf8_lossy(&read.stdout).starts_with("dcmqi "), "no segmentation in {}", folder.display());
}

/// Other people's programs read what was written. `HILUM_REPORT_OBJECTS` names a folder that keeps the files.
#[test]
fn heavy_validators_accept_segmentations_outlines_and_key_objects() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("HILUM_REPORT_OBJECTS").map_or(temporary.path().to_path_buf(), Into::into);
    for Written { name, object, pixels } in all_objects() {
        fs_err::write(folder.join(format!("{name}.dcm")), &object.part10).unwrap();
        if let Some(pixels) = pixels {
            fs_err::write(folder.join(format!("{name}.masks")), pixels).unwrap();
        }
    }
    // A folder of results has a report.
    let source = SampleSource::new(IMAGE);
    let record = samples::analysed(BundleStatus::Unvalidated, &source);
    let form = ReportForm {
        class: ReportClass::Comprehensive,
        language: "en".to_owned(),
        with_segmentation: false,
        predecessor: None,
    };
    let report = render_report(&record, &pairs(&[source]), &form, &samples::options()).unwrap();
    fs_err::write(folder.join("report.dcm"), &report.part10).unwrap();
    let of_samples = [("bare", "Missing attribute or value that would be needed to build DICOMDIR")];
    validators::assert_valid(&folder, &of_samples);
    assert_dcmqi_reads(&folder, "ct-");
}
