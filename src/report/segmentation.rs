//! Segmentations: lungs, and for CT densities and lesions, as planes of bits at the pixels of their sources (PS3.3 section
//! A.51).

use std::borrow::Cow;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::{
    RenderOptions, RenderedObject, ReportError, ResultKind, Shown, Sources,
    codes::{self, Concept},
    content::reference,
    dataset::{Build, code_item, write},
    modules::{Frame, Series, header_of},
    pictures::{put_body_part, put_lossy},
    segments::{Segment, segmentation_identity, segments},
    source::SourceHeader,
    text::decimal_string,
    texts::Texts,
    uids::uid,
    wording,
};
use crate::{
    imaging::lungs_over_source,
    types::{CtAnalysis, CtMethod, ImageAnalysis, RunOutcome, RunRecord, SourceImage, VoxelLabels},
};

/// What is named in errors.
const WHAT: &str = "segmentation";

/// Renders the lungs of an analysed radiograph, or the lungs, densities and lesions of a measured CT, as a BINARY
/// segmentation (PS3.3 section C.8.20) with the Rows and Columns of its sources.
///
/// `masks` are those of the CT run, [`ReportError::Empty`] without; a radiograph has its own. `sources` are in the order of
/// arrival: the last one gives patient and study. The headers of all images that are segmented are needed. Frames of
/// nothing, and segments of nothing, are left out.
pub fn render_segmentation(
    record: &RunRecord,
    shown: Shown,
    masks: Option<&VoxelLabels>,
    sources: Sources<'_>,
    options: &RenderOptions,
) -> Result<RenderedObject, ReportError> {
    let frame = Frame::new(record, sources, options)?;
    let identity = segmentation_identity(&frame, shown)?;
    let subject = match shown {
        Shown::Radiograph(image_idx) => Subject::of_radiograph(radiograph(record, image_idx)?, sources)?,
        Shown::Ct => Subject::of_ct(record, masks, sources)?,
    };
    let segments = segments(record, shown);
    let (plane_frames, used) = subject.frames(&segments)?;
    // One segmentation for all destinations, whatever their language.
    let texts = Texts::english();
    let header = subject.first_header()?;
    let series = Series {
        modality: "SEG",
        number: "9003",
        description: texts.say("segmentation-series", &[("notice", wording::notice(texts, &record.bundle).into())]),
        instance_number: match shown {
            Shown::Radiograph(image_idx) => image_idx + 1,
            Shown::Ct => 1,
        },
    };
    let mut data_set = frame.data_set(&identity, &series, header);
    put_image(&mut data_set, record, texts, &subject, header);
    // The lungs do not, whatever else there is lies in them.
    let overlap = segments.iter().any(|segment| !matches!(segment, Segment::RightLung | Segment::LeftLung));
    data_set.put_text(tags::SEGMENTS_OVERLAP, VR::CS, if overlap { "YES" } else { "NO" });
    let items = segments.iter().zip(1..).map(|(segment, number)| segment_item(&frame, shown, *segment, number, texts));
    data_set.put_items(tags::SEGMENT_SEQUENCE, items.collect());

    let organization = uid("dimensions", &[identity.sop_instance_uid.as_str()]);
    let mut of_organization = InMemDicomObject::new_empty();
    of_organization.put_uid(tags::DIMENSION_ORGANIZATION_UID, &organization);
    data_set.put_items(tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![of_organization]);
    let mut dimensions =
        vec![("Segment Number", tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE)];
    if subject.grid.is_some() {
        dimensions.push(("Image Position (Patient)", tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE));
    }
    let dimensions = dimensions.into_iter().map(|(label, index, group)| {
        let mut item = InMemDicomObject::new_empty();
        item.put_uid(tags::DIMENSION_ORGANIZATION_UID, &organization);
        item.put(DataElement::new(tags::DIMENSION_INDEX_POINTER, VR::AT, PrimitiveValue::from(index)));
        item.put(DataElement::new(tags::FUNCTIONAL_GROUP_POINTER, VR::AT, PrimitiveValue::from(group)));
        item.put_text(tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, label);
        item
    });
    data_set.put_items(tags::DIMENSION_INDEX_SEQUENCE, dimensions.collect());

    subject.put_shared_groups(&mut data_set, header)?;
    let per_frame: Result<Vec<_>, _> = plane_frames.iter().map(|plane| subject.groups_of(plane, &used)).collect();
    data_set.put_items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, per_frame?);
    data_set.put_text(tags::NUMBER_OF_FRAMES, VR::IS, &plane_frames.len().to_string());
    subject.put_references(&mut data_set);
    let bits = subject.packed(&segments, &plane_frames);
    data_set.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bits)));
    frame.put_coding_schemes(&mut data_set);
    write(data_set, &frame.encoding, &options.file_meta, ResultKind::Seg, identity)
}

/// Analysed image number `image_idx`, from 0.
pub(super) fn radiograph(record: &RunRecord, image_idx: usize) -> Result<&ImageAnalysis, ReportError> {
    let images = match &record.outcome {
        RunOutcome::Analysed(analysis) => analysis.images.as_slice(),
        RunOutcome::CtMeasured(_) | RunOutcome::NotAnalysed(_) => &[],
    };
    images.get(image_idx).ok_or(ReportError::NoSuchImage { image_idx, analysed: images.len() })
}

/// The header of a source image.
pub(super) fn needed_header<'a>(sources: Sources<'a>, image: &SourceImage) -> Result<&'a SourceHeader, ReportError> {
    header_of(sources, image)
        .ok_or_else(|| ReportError::SourceMissing { sop_instance_uid: image.sop_instance_uid.clone() })
}

/// Rows and Columns of an image, which must be those that were analysed.
pub(super) fn check_size(header: &SourceHeader, rows: usize, columns: usize) -> Result<[u16; 2], ReportError> {
    let stated = header.unsigned_16(tags::ROWS).zip(header.unsigned_16(tags::COLUMNS));
    match stated {
        Some((of_rows, of_columns)) if [usize::from(of_rows), usize::from(of_columns)] == [rows, columns] => {
            Ok([of_rows, of_columns])
        }
        _ => Err(ReportError::Inconsistent(format!(
            "image {} has {stated:?} rows and columns and was analysed with {rows} and {columns}",
            header.sop_instance_uid()
        ))),
    }
}

/// What is segmented, at the pixels of its images.
struct Subject<'a> {
    rows: usize,
    columns: usize,
    /// In the order of the labels.
    images: Vec<(&'a SourceImage, &'a SourceHeader)>,
    /// For each image, row after row, the bits of [`VoxelLabels`].
    labels: Cow<'a, [u8]>,
    columns_reversed: bool,
    rows_reversed: bool,
    /// Of images that have a place in the patient.
    grid: Option<&'a CtAnalysis>,
}

/// A frame: an image and the segment that is shown over it, from 0.
struct PlaneFrame {
    segment_idx: usize,
    image_idx: usize,
}

impl<'a> Subject<'a> {
    fn of_radiograph(image: &'a ImageAnalysis, sources: Sources<'a>) -> Result<Self, ReportError> {
        let header = needed_header(sources, &image.source)?;
        let (rows, columns) = (image.placement.source_rows as usize, image.placement.source_columns as usize);
        check_size(header, rows, columns)?;
        // The labels of the mask are the bits of the lungs.
        let labels = Cow::Owned(lungs_over_source(&image.lung_mask, &image.placement)?);
        let images = vec![(&image.source, header)];
        Ok(Self { rows, columns, images, labels, columns_reversed: false, rows_reversed: false, grid: None })
    }

    fn of_ct(record: &'a RunRecord, masks: Option<&'a VoxelLabels>, sources: Sources<'a>) -> Result<Self, ReportError> {
        let RunOutcome::CtMeasured(analysis) = &record.outcome else {
            return Err(ReportError::Empty { what: WHAT, why: "the run has measured no CT".to_owned() });
        };
        let Some(masks) = masks else {
            let why = "the run does not keep what each voxel is, or no longer".to_owned();
            return Err(ReportError::Empty { what: WHAT, why });
        };
        let series = &analysis.series;
        let [columns, rows, slices] = series.size;
        if masks.size != series.size || masks.bits.len() != columns * rows * slices || series.images.len() != slices {
            return Err(ReportError::Inconsistent(format!(
                "a series of {} images and {:?} voxels has labels for {:?}",
                series.images.len(),
                series.size,
                masks.size
            )));
        }
        let mut images = Vec::with_capacity(slices);
        for image in &series.images {
            let header = needed_header(sources, image)?;
            check_size(header, rows, columns)?;
            images.push((image, header));
        }
        Ok(Self {
            rows,
            columns,
            images,
            labels: Cow::Borrowed(&masks.bits),
            columns_reversed: series.columns_reversed,
            rows_reversed: series.rows_reversed,
            grid: Some(analysis),
        })
    }

    fn first_header(&self) -> Result<&'a SourceHeader, ReportError> {
        let first = self.images.first().map(|(_, header)| *header);
        first.ok_or_else(|| ReportError::Inconsistent("a series has no image".to_owned()))
    }

    /// The labels of an image, in the order of its own pixels.
    fn lines(&self, image_idx: usize) -> impl Iterator<Item = &[u8]> {
        let pixels = self.rows * self.columns;
        let of_image = self.labels.get(image_idx * pixels..(image_idx + 1) * pixels).unwrap_or_default();
        let (rows, columns, is_reversed) = (self.rows, self.columns, self.rows_reversed);
        (0..rows).map(move |row| {
            let row = if is_reversed { rows - 1 - row } else { row };
            of_image.get(row * columns..(row + 1) * columns).unwrap_or_default()
        })
    }

    /// The frames that show something, segment by segment, and the images that have one, in their order. Every segment has a
    /// frame.
    fn frames(&self, segments: &[Segment]) -> Result<(Vec<PlaneFrame>, Vec<usize>), ReportError> {
        let bits_of = |image_idx: usize| self.lines(image_idx).flatten().fold(0, |bits, label| bits | label);
        let of_images: Vec<u8> = (0..self.images.len()).map(bits_of).collect();
        let mut frames = Vec::new();
        for (segment_idx, segment) in segments.iter().enumerate() {
            let before = frames.len();
            let holding = of_images.iter().enumerate().filter(|(_, bits)| **bits & segment.voxel_bit() != 0);
            frames.extend(holding.map(|(image_idx, _)| PlaneFrame { segment_idx, image_idx }));
            if frames.len() == before {
                let words = format!("it has measured `{}` and no pixel has that label", segment.label());
                return Err(ReportError::Inconsistent(words));
            }
        }
        if frames.is_empty() {
            return Err(ReportError::Empty { what: WHAT, why: "no lung was found".to_owned() });
        }
        let mut used: Vec<usize> = frames.iter().map(|frame| frame.image_idx).collect();
        used.sort_unstable();
        used.dedup();
        Ok((frames, used))
    }

    /// The pixels of all frames, bit after bit from the lowest on, frames without a gap between them (PS3.5 section 8.1.1),
    /// to an even length.
    fn packed(&self, segments: &[Segment], frames: &[PlaneFrame]) -> Vec<u8> {
        let mut packer = BitPacker::for_bits(frames.len() * self.rows * self.columns);
        for PlaneFrame { segment_idx, image_idx } in frames {
            let bit = segments.get(*segment_idx).map_or(0, |segment| segment.voxel_bit());
            for line in self.lines(*image_idx) {
                if self.columns_reversed {
                    for label in line.iter().rev() {
                        packer.push(label & bit != 0);
                    }
                } else {
                    for label in line {
                        packer.push(label & bit != 0);
                    }
                }
            }
        }
        packer.finish()
    }

    /// What all frames have in common (PS3.3 section C.7.6.16): of a CT plane and distances, of a radiograph nothing, since
    /// its geometry is that of its source.
    fn put_shared_groups(&self, data_set: &mut InMemDicomObject, header: &SourceHeader) -> Result<(), ReportError> {
        let mut shared = InMemDicomObject::new_empty();
        if let Some(analysis) = self.grid {
            let series = &analysis.series;
            match header.ascii(tags::FRAME_OF_REFERENCE_UID) {
                Some(frame_of_reference) => {
                    data_set.put_text(tags::FRAME_OF_REFERENCE_UID, VR::UI, &frame_of_reference);
                }
                // A series without one is a frame of reference of its own.
                None => data_set.put_uid(
                    tags::FRAME_OF_REFERENCE_UID,
                    &uid("frame_of_reference", &[series.series_instance_uid.as_str()]),
                ),
            }
            let indicator = header.element(tags::POSITION_REFERENCE_INDICATOR);
            data_set.copy_or_empty(
                tags::POSITION_REFERENCE_INDICATOR,
                VR::LO,
                indicator.filter(|element| super::source::ascii(element).is_none_or(|text| text.is_ascii())),
            );
            let mut orientation = InMemDicomObject::new_empty();
            put_needed(&mut orientation, header, tags::IMAGE_ORIENTATION_PATIENT, "Image Orientation (Patient)")?;
            shared.put_items(tags::PLANE_ORIENTATION_SEQUENCE, vec![orientation]);
            let mut measures = InMemDicomObject::new_empty();
            let between_slices = series.spacing_mm[2];
            let thickness = series.slice_thickness_mm.unwrap_or(between_slices);
            for (tag, millimetres) in
                [(tags::SLICE_THICKNESS, thickness), (tags::SPACING_BETWEEN_SLICES, between_slices)]
            {
                if let Some(text) = decimal_string(millimetres) {
                    measures.put_text(tag, VR::DS, &text);
                }
            }
            put_needed(&mut measures, header, tags::PIXEL_SPACING, "Pixel Spacing (0028,0030)")?;
            shared.put_items(tags::PIXEL_MEASURES_SEQUENCE, vec![measures]);
        }
        data_set.put_items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
        Ok(())
    }

    /// What a frame is (PS3.3 sections C.7.6.16.2 and C.8.20.3). `used` are the images that have frames.
    fn groups_of(&self, plane: &PlaneFrame, used: &[usize]) -> Result<InMemDicomObject, ReportError> {
        let PlaneFrame { segment_idx, image_idx } = *plane;
        let Some((image, header)) = self.images.get(image_idx) else {
            return Err(ReportError::Inconsistent(format!("there is no image number {image_idx}")));
        };
        let segment_number = segment_idx as u16 + 1;
        let mut indices = vec![u32::from(segment_number)];
        let mut groups = InMemDicomObject::new_empty();
        if self.grid.is_some() {
            let place = used.iter().position(|of| *of == image_idx).unwrap_or(0);
            indices.push(place as u32 + 1);
            let mut position = InMemDicomObject::new_empty();
            put_needed(&mut position, header, tags::IMAGE_POSITION_PATIENT, "Image Position (Patient) (0020,0032)")?;
            groups.put_items(tags::PLANE_POSITION_SEQUENCE, vec![position]);
        }
        let mut content = InMemDicomObject::new_empty();
        content.put(DataElement::new(tags::DIMENSION_INDEX_VALUES, VR::UL, PrimitiveValue::U32(indices.into())));
        groups.put_items(tags::FRAME_CONTENT_SEQUENCE, vec![content]);
        let mut of_segment = InMemDicomObject::new_empty();
        of_segment.put_u16(tags::REFERENCED_SEGMENT_NUMBER, segment_number);
        groups.put_items(tags::SEGMENT_IDENTIFICATION_SEQUENCE, vec![of_segment]);

        let mut source = reference(&image.sop_class_uid, &image.sop_instance_uid);
        source.put_code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, codes::SOURCE_IMAGE);
        source.put_text(tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES");
        let mut derivation = InMemDicomObject::new_empty();
        derivation.put_items(tags::SOURCE_IMAGE_SEQUENCE, vec![source]);
        derivation.put_code(tags::DERIVATION_CODE_SEQUENCE, codes::SEGMENTATION);
        groups.put_items(tags::DERIVATION_IMAGE_SEQUENCE, vec![derivation]);
        Ok(groups)
    }

    /// Common Instance Reference (PS3.3 section C.12.2): viewers look here for what the segmentation lies over.
    fn put_references(&self, data_set: &mut InMemDicomObject) {
        let Some((first, _)) = self.images.first() else { return };
        let references =
            self.images.iter().map(|(image, _)| reference(&image.sop_class_uid, &image.sop_instance_uid)).collect();
        let mut series = InMemDicomObject::new_empty();
        series.put_uid(tags::SERIES_INSTANCE_UID, &first.series_instance_uid);
        series.put_items(tags::REFERENCED_INSTANCE_SEQUENCE, references);
        data_set.put_items(tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
    }
}

/// Copies an attribute that the object must have.
fn put_needed(
    item: &mut InMemDicomObject,
    header: &SourceHeader,
    tag: Tag,
    attribute: &'static str,
) -> Result<(), ReportError> {
    let element = header.element(tag).filter(|element| super::source::ascii(element).is_some());
    let Some(element) = element else {
        let sop_instance_uid = header.sop_instance_uid().clone();
        return Err(ReportError::AttributeMissing { sop_instance_uid, attribute, what: WHAT });
    };
    item.copy(Some(element));
    Ok(())
}

/// General Image, Image Pixel and Segmentation Image (PS3.3 section C.8.20.2).
fn put_image(
    data_set: &mut InMemDicomObject,
    record: &RunRecord,
    texts: Texts<'_>,
    subject: &Subject<'_>,
    header: &SourceHeader,
) {
    let description =
        texts.say("segmentation-description", &[("notice", wording::notice(texts, &record.bundle).into())]);
    data_set.put_text(tags::IMAGE_TYPE, VR::CS, "DERIVED\\PRIMARY");
    data_set.put_text(tags::CONTENT_LABEL, VR::CS, "LUNGS");
    data_set.put_text(tags::CONTENT_DESCRIPTION, VR::LO, &description);
    data_set.put_text(tags::CONTENT_CREATOR_NAME, VR::PN, "");
    data_set.put_text(tags::SEGMENTATION_TYPE, VR::CS, "BINARY");
    if subject.grid.is_none() {
        data_set.copy_or_empty(tags::PATIENT_ORIENTATION, VR::CS, header.element(tags::PATIENT_ORIENTATION));
    }
    put_body_part(data_set, header);
    // Nothing is written into masks.
    data_set.put_text(tags::BURNED_IN_ANNOTATION, VR::CS, "NO");
    let headers: Vec<&SourceHeader> = subject.images.iter().map(|(_, header)| *header).collect();
    put_lossy(data_set, &headers, None);
    data_set.put_u16(tags::SAMPLES_PER_PIXEL, 1);
    data_set.put_text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    data_set.put_u16(tags::ROWS, subject.rows as u16);
    data_set.put_u16(tags::COLUMNS, subject.columns as u16);
    data_set.put_u16(tags::BITS_ALLOCATED, 1);
    data_set.put_u16(tags::BITS_STORED, 1);
    data_set.put_u16(tags::HIGH_BIT, 0);
    data_set.put_u16(tags::PIXEL_REPRESENTATION, 0);
}

/// An algorithm: family, name, version.
struct Algorithm<'a> {
    family: Concept<'static>,
    name: &'a str,
    version: &'a str,
}

impl<'a> Algorithm<'a> {
    /// What made a segment.
    fn of(record: &'a RunRecord, segment: Segment) -> Self {
        let bundle = &record.bundle;
        let of_bundle = Self { family: codes::ARTIFICIAL_INTELLIGENCE, name: &bundle.name, version: &bundle.version };
        let method: Option<&CtMethod> = match &record.outcome {
            RunOutcome::CtMeasured(analysis) => Some(&analysis.method),
            RunOutcome::Analysed(_) | RunOutcome::NotAnalysed(_) => None,
        };
        match (segment, method) {
            (Segment::RightLung | Segment::LeftLung, Some(method)) if method.threshold_hu.is_some() => {
                Self::named(codes::MORPHOLOGICAL_OPERATIONS, &method.segmentation)
            }
            (Segment::RightLung | Segment::LeftLung, _) => bundle.segmenter.as_ref().map_or(of_bundle, |network| {
                Self { family: codes::ARTIFICIAL_INTELLIGENCE, name: &network.name, version: &network.version }
            }),
            (Segment::Opacity | Segment::Consolidation, Some(method)) => {
                Self::named(codes::HISTOGRAM_ANALYSIS, &method.densitometry)
            }
            (Segment::Opacity | Segment::Consolidation | Segment::Lesion, _) => of_bundle,
        }
    }

    /// A name that its version follows.
    fn named(family: Concept<'static>, name_and_version: &'a str) -> Self {
        let (name, version) = name_and_version.rsplit_once(' ').unwrap_or((name_and_version, "1"));
        Self { family, name, version }
    }
}

/// What a segment is: category, type, side, and its colour as CIELab (PS3.3 section C.10.7.1.1).
///
/// The colours are five that people with any common kind of colour vision tell apart (Okabe and Ito, 2008).
fn property(segment: Segment) -> (Concept<'static>, Concept<'static>, Option<Concept<'static>>, [u16; 3]) {
    match segment {
        Segment::RightLung => (codes::ANATOMICAL_STRUCTURE, codes::LUNG, Some(codes::RIGHT), [45400, 28579, 23766]),
        Segment::LeftLung => (codes::ANATOMICAL_STRUCTURE, codes::LUNG, Some(codes::LEFT), [37753, 21404, 36035]),
        Segment::Opacity => (codes::TISSUE, codes::SEGMENT_OPACITY, None, [46653, 38053, 52082]),
        Segment::Consolidation => (codes::TISSUE, codes::SEGMENT_CONSOLIDATION, None, [35976, 44539, 49401]),
        Segment::Lesion => (codes::ABNORMAL_STRUCTURE, codes::LESION, None, [40112, 42581, 30302]),
    }
}

/// An item of the Segment Sequence (PS3.3 section C.8.20.4).
fn segment_item(frame: &Frame<'_>, shown: Shown, segment: Segment, number: u16, texts: Texts<'_>) -> InMemDicomObject {
    let (category, kind, side, colour) = property(segment);
    let Algorithm { family, name, version } = Algorithm::of(frame.record, segment);
    let mut item = InMemDicomObject::new_empty();
    item.put_u16(tags::SEGMENT_NUMBER, number);
    item.put_text(tags::SEGMENT_LABEL, VR::LO, segment.label());
    if matches!(segment, Segment::Opacity | Segment::Consolidation) {
        item.put_text(tags::SEGMENT_DESCRIPTION, VR::ST, &texts.say("segment-density", &[]));
    }
    item.put_text(tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC");
    item.put_text(tags::SEGMENT_ALGORITHM_NAME, VR::LO, name);
    item.put_code(tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, category);
    let mut kind = code_item(kind);
    if let Some(side) = side {
        kind.put_code(tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE, side);
    }
    item.put_items(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, vec![kind]);
    let mut algorithm = InMemDicomObject::new_empty();
    algorithm.put_code(tags::ALGORITHM_FAMILY_CODE_SEQUENCE, family);
    algorithm.put_text(tags::ALGORITHM_NAME, VR::LO, name);
    algorithm.put_text(tags::ALGORITHM_VERSION, VR::LO, version);
    algorithm.put_text(tags::ALGORITHM_SOURCE, VR::LO, &frame.options.manufacturer);
    item.put_items(tags::SEGMENTATION_ALGORITHM_IDENTIFICATION_SEQUENCE, vec![algorithm]);
    item.put_text(tags::TRACKING_ID, VR::UT, segment.label());
    item.put_uid(tags::TRACKING_UID, &uid("segment", &[&tracked(frame.record, shown), segment.label()]));
    let colour = PrimitiveValue::from(colour);
    item.put(DataElement::new(tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE, VR::US, colour));
    item
}

/// What is tracked over the revisions of a study: its image or its series.
fn tracked(record: &RunRecord, shown: Shown) -> String {
    match (&record.outcome, shown) {
        (RunOutcome::Analysed(analysis), Shown::Radiograph(image_idx)) => {
            analysis.images.get(image_idx).map(|image| image.source.sop_instance_uid.to_string())
        }
        (RunOutcome::CtMeasured(analysis), Shown::Ct) => Some(analysis.series.series_instance_uid.to_string()),
        _ => None,
    }
    .unwrap_or_default()
}

/// Bits, the first in the lowest of its byte.
pub(super) struct BitPacker {
    bytes: Vec<u8>,
    n_bits: usize,
}

impl BitPacker {
    pub(super) fn for_bits(n_bits: usize) -> Self {
        Self { bytes: Vec::with_capacity(n_bits.div_ceil(16) * 2), n_bits: 0 }
    }

    pub(super) fn push(&mut self, bit: bool) {
        let place = self.n_bits % 8;
        if place == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << place;
        }
        self.n_bits += 1;
    }

    /// The bytes, an even number of them.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.bytes.len() % 2 == 1 {
            self.bytes.push(0);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Read by arithmetic, not by the same code: bit n is bit n mod 8 of byte n / 8.
        #[test]
        fn bits_are_packed_without_gaps_and_found_again(bits in proptest::collection::vec(any::<bool>(), 0..200)) {
            let mut packer = BitPacker::for_bits(bits.len());
            for bit in &bits {
                packer.push(*bit);
            }
            let bytes = packer.finish();
            prop_assert_eq!(bytes.len(), bits.len().div_ceil(8).next_multiple_of(2));
            for (n, byte) in bytes.iter().enumerate() {
                for place in 0..8 {
                    let expected = bits.get(n * 8 + place).copied().unwrap_or(false);
                    prop_assert_eq!(byte >> place & 1 == 1, expected);
                }
            }
        }
    }
}
