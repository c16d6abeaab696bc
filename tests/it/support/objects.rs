//! Objects to send: real radiographs with fresh UIDs, and synthetic ones.

use std::path::{Path, PathBuf};

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject, open_file};

use super::cache;

/// A radiograph of the fixtures that `make setup` fetches, such as `RG1_UNCR.dcm`.
#[track_caller]
pub(crate) fn fixture(name: &str) -> PathBuf {
    let folder = std::env::var_os("HILUM_TEST_FIXTURES").map_or_else(cache, PathBuf::from);
    let path = folder.join("pydicom-data-1.0.0/data_store/data").join(name);
    assert!(path.exists(), "{} is missing; `make setup` fetches it", path.display());
    path
}

/// All files of the packages `pydicom` and `pydicom-data`, which are no DICOM files here and there.
#[track_caller]
pub(crate) fn package_files() -> Vec<PathBuf> {
    let fixtures = std::env::var_os("HILUM_TEST_FIXTURES").map_or_else(cache, PathBuf::from);
    let mut folders =
        vec![fixtures.join("pydicom-3.0.2/pydicom/data"), fixtures.join("pydicom-data-1.0.0/data_store/data")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = fs_err::read_dir(folder).expect("`make setup` fetches the packages");
        for path in entries.map(|entry| entry.expect("a folder").path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    assert!(files.len() > 250, "only {} files", files.len());
    files
}

/// A UID that nobody has.
pub(crate) fn fresh_uid() -> String {
    format!("2.25.{}", uuid::Uuid::new_v4().as_u128())
}

/// An object in a file of its own, with what tests ask of it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub path: PathBuf,
    pub study_instance_uid: String,
    pub series_instance_uid: String,
    pub sop_instance_uid: String,
}

impl Sample {
    /// Writes an object as it is.
    #[track_caller]
    pub(crate) fn write(object: &DefaultDicomObject, folder: &Path) -> Self {
        let sop_instance_uid = text(object, tags::SOP_INSTANCE_UID);
        let path = folder.join(format!("{sop_instance_uid}.dcm"));
        object.write_to_file(&path).expect("a DICOM file");
        Self {
            path,
            study_instance_uid: text(object, tags::STUDY_INSTANCE_UID),
            series_instance_uid: text(object, tags::SERIES_INSTANCE_UID),
            sop_instance_uid,
        }
    }

    pub(crate) fn object(&self) -> DefaultDicomObject {
        open_file(&self.path).expect("a DICOM file")
    }

    /// The bytes of its data set, without preamble and file meta information.
    pub(crate) fn data_set_bytes(&self) -> Vec<u8> {
        data_set_bytes(&self.path)
    }
}

/// A fixture with fresh UIDs, written into `folder`.
#[track_caller]
pub(crate) fn fresh_copy(fixture_name: &str, folder: &Path) -> Sample {
    let mut object = open_file(fixture(fixture_name)).expect("a DICOM file");
    set_uids(&mut object, &fresh_uid(), &fresh_uid(), &fresh_uid());
    Sample::write(&object, folder)
}

/// Gives an object other UIDs, in the file meta information too.
pub(crate) fn set_uids(object: &mut DefaultDicomObject, study: &str, series: &str, instance: &str) {
    object.put_str(tags::STUDY_INSTANCE_UID, VR::UI, study);
    object.put_str(tags::SERIES_INSTANCE_UID, VR::UI, series);
    object.put_str(tags::SOP_INSTANCE_UID, VR::UI, instance);
    object.update_meta(|meta| meta.media_storage_sop_instance_uid = instance.to_owned());
}

/// The text of an element without its padding; empty when it is not there.
pub(crate) fn text(object: &InMemDicomObject, tag: Tag) -> String {
    object
        .get(tag)
        .and_then(|element| element.to_str().ok())
        .map(|text| text.trim_end_matches(['\0', ' ']).to_owned())
        .unwrap_or_default()
}

/// The bytes of a file's data set, without preamble and file meta information.
#[track_caller]
pub(crate) fn data_set_bytes(file: &Path) -> Vec<u8> {
    let bytes = fs_err::read(file).expect("a DICOM file");
    assert_eq!(&bytes[128..132], b"DICM", "{} is no DICOM file", file.display());
    assert_eq!(&bytes[132..140], b"\x02\0\0\0UL\x04\0", "{} starts without a group length", file.display());
    let length = u32::from_le_bytes(bytes[140..144].try_into().expect("four bytes"));
    bytes[144 + length as usize..].to_vec()
}

/// A synthetic radiograph: noise around two dark lungs, the same pixels for the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Radiograph {
    pub study_instance_uid: String,
    pub series_instance_uid: String,
    pub sop_instance_uid: String,
    /// `DX` or `CR`, with the SOP class that goes with it.
    pub modality: &'static str,
    pub rows: u16,
    pub columns: u16,
    pub bits_stored: u16,
    pub photometric_interpretation: &'static str,
    /// Such as `045Y`; empty leaves the element empty.
    pub patient_age: &'static str,
    /// Such as `PA`, `AP`, `LL`.
    pub view_position: &'static str,
    pub patient_name: &'static str,
    pub patient_id: &'static str,
    pub study_date: &'static str,
    /// Chooses the noise.
    pub seed: u32,
}

impl Default for Radiograph {
    fn default() -> Self {
        Self {
            study_instance_uid: fresh_uid(),
            series_instance_uid: fresh_uid(),
            sop_instance_uid: fresh_uid(),
            modality: "DX",
            rows: 320,
            columns: 288,
            bits_stored: 12,
            photometric_interpretation: "MONOCHROME2",
            patient_age: "045Y",
            view_position: "PA",
            patient_name: "Synthetic^Sample",
            patient_id: "SYN-4711",
            study_date: "20260102",
            seed: 1,
        }
    }
}

impl Radiograph {
    /// Another image of the same study.
    pub(crate) fn sibling(&self) -> Self {
        Self { series_instance_uid: fresh_uid(), sop_instance_uid: fresh_uid(), seed: self.seed + 1, ..self.clone() }
    }

    pub(crate) fn write(&self, folder: &Path) -> Sample {
        Sample::write(&self.object(), folder)
    }

    pub(crate) fn object(&self) -> DefaultDicomObject {
        let sop_class = match self.modality {
            "DX" => uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION,
            "CR" => uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
            other => panic!("no radiograph has the modality {other}"),
        };
        let mut object = base(
            sop_class,
            self.modality,
            [&self.study_instance_uid, &self.series_instance_uid, &self.sop_instance_uid],
        );
        for (tag, vr, value) in [
            (tags::PATIENT_NAME, VR::PN, self.patient_name),
            (tags::PATIENT_ID, VR::LO, self.patient_id),
            (tags::PATIENT_AGE, VR::AS, self.patient_age),
            (tags::STUDY_DATE, VR::DA, self.study_date),
            (tags::VIEW_POSITION, VR::CS, self.view_position),
            (tags::BODY_PART_EXAMINED, VR::CS, "CHEST"),
            (tags::PRESENTATION_LUT_SHAPE, VR::CS, "IDENTITY"),
        ] {
            object.put_str(tag, vr, value);
        }
        let maximum = (1_u32 << self.bits_stored) - 1;
        let (rows, columns) = (u32::from(self.rows), u32::from(self.columns));
        let mut state = self.seed.wrapping_mul(0x9E37_79B9) | 1;
        let pixels = (0..rows * columns).map(|index| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let (x, y) =
                (f64::from(index % columns) / f64::from(columns), f64::from(index / columns) / f64::from(rows));
            let lung = |centre: f64| ((x - centre) / 0.16).powi(2) + ((y - 0.5) / 0.32).powi(2) < 1.0;
            let base = if lung(0.3) || lung(0.7) { 0.25 } else { 0.7 };
            let noise = f64::from(state % 1000) / 1000.0 - 0.5;
            let value = ((base + noise * 0.1) * f64::from(maximum)).round();
            let inverted = self.photometric_interpretation == "MONOCHROME1";
            (if inverted { f64::from(maximum) - value } else { value }) as u16
        });
        let pixels: Vec<u16> = pixels.collect();
        put_pixels(&mut object, self.rows, self.columns, self.bits_stored, self.photometric_interpretation, &pixels);
        with_meta(object, sop_class, &self.sop_instance_uid)
    }
}

/// Slices of a synthetic CT series, 64 × 64.
pub(crate) fn ct_slices(folder: &Path, count: u16) -> Vec<Sample> {
    let (study, series) = (fresh_uid(), fresh_uid());
    (1..=count).map(|number| ct_slice(folder, &study, &series, number)).collect()
}

/// One slice of a synthetic CT series.
pub(crate) fn ct_slice(folder: &Path, study: &str, series: &str, number: u16) -> Sample {
    let instance = fresh_uid();
    let mut object = base(uids::CT_IMAGE_STORAGE, "CT", [study, series, &instance]);
    for (tag, vr, value) in [
        (tags::PATIENT_NAME, VR::PN, "Synthetic^Sample"),
        (tags::PATIENT_ID, VR::LO, "SYN-4711"),
        (tags::RESCALE_INTERCEPT, VR::DS, "-1024"),
        (tags::RESCALE_SLOPE, VR::DS, "1"),
        (tags::PIXEL_SPACING, VR::DS, "0.7\\0.7"),
        (tags::SLICE_THICKNESS, VR::DS, "1.25"),
        (tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0"),
    ] {
        object.put_str(tag, vr, value);
    }
    object.put_str(tags::INSTANCE_NUMBER, VR::IS, &number.to_string());
    object.put_str(tags::IMAGE_POSITION_PATIENT, VR::DS, &format!("0\\0\\{number}"));
    let pixels: Vec<u16> = (0..64_u32 * 64).map(|index| ((index * 7 + u32::from(number) * 13) % 2000) as u16).collect();
    put_pixels(&mut object, 64, 64, 12, "MONOCHROME2", &pixels);
    Sample::write(&with_meta(object, uids::CT_IMAGE_STORAGE, &instance), folder)
}

/// An object that is no chest image at all: MR, which the node does not take.
pub(crate) fn mr_image(folder: &Path) -> Sample {
    let instance = fresh_uid();
    let mut object = base(uids::MR_IMAGE_STORAGE, "MR", [&fresh_uid(), &fresh_uid(), &instance]);
    put_pixels(&mut object, 16, 16, 12, "MONOCHROME2", &[7; 256]);
    Sample::write(&with_meta(object, uids::MR_IMAGE_STORAGE, &instance), folder)
}

fn base(sop_class: &str, modality: &str, [study, series, instance]: [&str; 3]) -> InMemDicomObject {
    let mut object = InMemDicomObject::new_empty();
    for (tag, vr, value) in [
        (tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
        (tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY"),
        (tags::SOP_CLASS_UID, VR::UI, sop_class),
        (tags::SOP_INSTANCE_UID, VR::UI, instance),
        (tags::STUDY_DATE, VR::DA, "20260102"),
        (tags::STUDY_TIME, VR::TM, "101500"),
        (tags::ACCESSION_NUMBER, VR::SH, "ACC-0815"),
        (tags::MODALITY, VR::CS, modality),
        (tags::MANUFACTURER, VR::LO, "Synthetic"),
        (tags::REFERRING_PHYSICIAN_NAME, VR::PN, ""),
        (tags::PATIENT_BIRTH_DATE, VR::DA, "19800101"),
        (tags::PATIENT_SEX, VR::CS, "O"),
        (tags::STUDY_INSTANCE_UID, VR::UI, study),
        (tags::SERIES_INSTANCE_UID, VR::UI, series),
        (tags::STUDY_ID, VR::SH, "1"),
        (tags::SERIES_NUMBER, VR::IS, "1"),
        (tags::INSTANCE_NUMBER, VR::IS, "1"),
    ] {
        object.put_str(tag, vr, value);
    }
    object
}

fn put_pixels(
    object: &mut InMemDicomObject,
    rows: u16,
    columns: u16,
    bits_stored: u16,
    photometric_interpretation: &str,
    pixels: &[u16],
) {
    object.put_str(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, photometric_interpretation);
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, rows),
        (tags::COLUMNS, columns),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, bits_stored),
        (tags::HIGH_BIT, bits_stored - 1),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        object.put_element(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
    }
    object.put_element(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into())));
}

fn with_meta(object: InMemDicomObject, sop_class: &str, instance: &str) -> DefaultDicomObject {
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(sop_class)
        .media_storage_sop_instance_uid(instance);
    object.with_meta(meta).expect("complete file meta information")
}
