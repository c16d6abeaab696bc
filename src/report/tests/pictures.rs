//! Pictures in every form: identity, encoding, geometry.

use std::{path::Path, process::Command};

use dicom_pixeldata::PixelDecoder;

use super::*;
use crate::types::{PictureCompression, PictureModality};

const COMPRESSIONS: [PictureCompression; 3] =
    [PictureCompression::None, PictureCompression::RleLossless, PictureCompression::JpegBaseline];

fn compressed(compression: PictureCompression) -> PictureForm {
    PictureForm { compression, ..picture_form() }
}

/// Smooth, as photographs are, with lines of text as bright as can be.
fn picture(width: u32, height: u32) -> RgbPixels {
    let bytes = (0..height).flat_map(|y| {
        (0..width).flat_map(move |x| {
            let is_ink = y % 16 < 2 && x % 5 < 2;
            let colour = [(x * 255 / width) as u8, (y * 255 / height) as u8, ((x + y) % 256) as u8 / 2];
            if is_ink { [255; 3] } else { colour }
        })
    });
    RgbPixels { width, height, bytes: bytes.collect() }
}

fn mean_error(one: &[u8], other: &[u8]) -> f64 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / one.len() as f64
}

/// Slices with their places in the patient: 32 columns, 40 rows.
pub(super) fn placed_ct_sources() -> [SampleSource; 3] {
    let mut sources = samples::ct_sources();
    for (number, source) in sources.iter_mut().enumerate() {
        let position = format!("-160\\-160.5\\{}", -100.0 + 2.5 * number as f64);
        source.pixel_spacing = Some("0.703125\\0.703125");
        source.more = vec![
            text(0x0018, 0x0050, "DS", b"2.5"),
            text(0x0018, 0x5100, "CS", b"HFS"),
            text(0x0020, 0x0032, "DS", position.as_bytes()),
            text(0x0020, 0x0037, "DS", b"1\\0\\0\\0\\1\\0"),
            text(0x0020, 0x0052, "UI", b"1.2.826.0.1.3680043.8.498.7"),
            text(0x0020, 0x1040, "LO", b""),
            text(0x0020, 0x1041, "DS", b"-100"),
        ];
    }
    sources
}

fn slice(record: &RunRecord, number: usize, form: &PictureForm, sources: &[SampleSource]) -> RenderedObject {
    render_ct_slice(record, number, form, &pairs(sources), &picture(32, 40), &samples::options()).unwrap()
}

/// Every kind of picture in every form that changes its bytes, by name; (object, pixels).
pub(super) fn pictures_in_all_forms() -> Vec<(String, RenderedObject, RgbPixels)> {
    let mut pictures = Vec::new();
    let source = [SampleSource::new(SOURCE_1)];
    let radiograph = samples::analysed(BundleStatus::Unvalidated, &source[0]);
    let slices = placed_ct_sources();
    let ct = samples::ct_classified(BundleStatus::Untrained, &slices);
    let options = samples::options();
    for compression in COMPRESSIONS {
        for modality in [PictureModality::Other, PictureModality::Source] {
            let form = PictureForm { modality, ..compressed(compression) };
            let name = |kind: &str| format!("{kind}-{compression:?}-{modality:?}");
            // An odd number of bytes.
            let rgb = picture(61, 75);
            let object = render_heat_map(&radiograph, 0, &form, &pairs(&source), &rgb, &options).unwrap();
            pictures.push((name("radiograph"), object, rgb));
            let rgb = picture(128, 96);
            let object = render_ct_summary(&ct, &form, &pairs(&slices), &rgb, &options).unwrap();
            pictures.push((name("ct-summary"), object, rgb));
            for number in 0..2 {
                let object = slice(&ct, number, &form, &slices);
                pictures.push((name(&format!("ct-slice-{number}")), object, picture(32, 40)));
            }
        }
    }
    pictures
}

#[test]
fn every_form_has_uids_of_its_own_and_the_default_ones_are_those_of_before() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let forms = [
        picture_form(),
        PictureForm { modality: PictureModality::Source, ..picture_form() },
        compressed(PictureCompression::RleLossless),
        compressed(PictureCompression::JpegBaseline),
        PictureForm { longest_side: 2048, ..picture_form() },
        PictureForm { language: "zh".to_owned(), ..picture_form() },
    ];
    let mut uids = BTreeSet::new();
    let mut series = BTreeSet::new();
    for form in &forms {
        let rgb = picture(16, 20);
        let object = render_heat_map(&record, 0, form, &pairs(&sources), &rgb, &samples::options()).unwrap();
        uids.insert(object.sop_instance_uid.to_string());
        series.insert(object.series_instance_uid.to_string());
    }
    assert_eq!((uids.len(), series.len()), (forms.len(), forms.len()));
    let key = record.result_key.to_string();
    let class = dicom_dictionary_std::uids::SECONDARY_CAPTURE_IMAGE_STORAGE;
    assert_eq!(heat_map(&record, &sources).sop_instance_uid, uid("instance", &["sc", class, &key, "1"]));
    assert_eq!(heat_map(&record, &sources).series_instance_uid, uid("series", &["sc", &key]));
}

#[test]
fn every_encoding_comes_out_as_it_went_in() {
    for (name, object, rgb) in pictures_in_all_forms() {
        let parsed = parse(&object);
        assert_eq!(parsed.meta().transfer_syntax(), object.transfer_syntax_uid.as_str(), "{name}");
        assert_eq!(object.kind, ResultKind::Sc);
        let photometric = string(&parsed, tags::PHOTOMETRIC_INTERPRETATION).unwrap();
        let planar = parsed.element(tags::PLANAR_CONFIGURATION).unwrap().to_int::<u16>().unwrap();
        let is_jpeg = name.contains("JpegBaseline");
        let expected = match name.split('-').rev().nth(1).unwrap() {
            "None" => ("1.2.840.10008.1.2.1", "RGB", 0),
            "RleLossless" => ("1.2.840.10008.1.2.5", "RGB", 1),
            "JpegBaseline" => ("1.2.840.10008.1.2.4.50", "YBR_FULL_422", 0),
            other => panic!("{other}"),
        };
        assert_eq!((object.transfer_syntax_uid.as_str(), photometric.as_str(), planar), expected, "{name}");
        let decoded = parsed.decode_pixel_data().unwrap();
        assert_eq!((decoded.columns(), decoded.rows()), (rgb.width, rgb.height), "{name}");
        if is_jpeg {
            let error = mean_error(decoded.data(), &rgb.bytes);
            assert!(error < 6.0, "{name}: mean error {error}");
        } else {
            assert!(decoded.data()[..rgb.bytes.len()] == rgb.bytes, "{name}");
        }
        let lossy = string(&parsed, tags::LOSSY_IMAGE_COMPRESSION);
        assert_eq!(lossy.as_deref(), Some(if is_jpeg { "01" } else { "00" }), "{name}");
        let ratio = string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_RATIO);
        assert_eq!(ratio.is_some(), is_jpeg, "{name}");
        assert!(ratio.is_none_or(|ratio| ratio.parse::<f64>().unwrap() > 1.0), "{name}");
        let method = string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_METHOD);
        assert_eq!(method.as_deref(), is_jpeg.then_some("ISO_10918_1"), "{name}");
        // Encapsulated: a table with the one offset 0, one fragment of an even length.
        let pixels = parsed.element(tags::PIXEL_DATA).unwrap();
        if let Some(fragments) = pixels.value().fragments() {
            assert_eq!(pixels.value().offset_table(), Some(&[0][..]), "{name}");
            assert!(fragments.len() == 1 && fragments[0].len() % 2 == 0, "{name}");
        } else {
            assert!(name.contains("None"), "{name}");
        }
    }
}

#[test]
fn what_was_lossy_before_is_named_before_what_is_lossy_now() {
    let lossy = [text(0x0028, 0x2110, "CS", b"01"), text(0x0028, 0x2112, "DS", b"12.5")];
    let with_method = [&lossy[..], &[text(0x0028, 0x2114, "CS", b"ISO_15444_1")]].concat();
    for (more, expected) in [(with_method, "ISO_15444_1\\ISO_10918_1"), (lossy.to_vec(), "ISO_10918_1")] {
        let sources = [SampleSource { more, ..SampleSource::new(SOURCE_1) }];
        let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
        let form = compressed(PictureCompression::JpegBaseline);
        let rgb = picture(40, 40);
        let object = render_heat_map(&record, 0, &form, &pairs(&sources), &rgb, &samples::options()).unwrap();
        let parsed = parse(&object);
        assert_eq!(string(&parsed, tags::LOSSY_IMAGE_COMPRESSION).as_deref(), Some("01"));
        assert_eq!(string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_METHOD).as_deref(), Some(expected));
        let ratio = string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_RATIO).unwrap();
        assert_eq!(ratio.split('\\').count(), expected.split('\\').count());
        assert_eq!(ratio.starts_with("12.5\\"), expected.contains("15444"), "{ratio}");
    }
}

#[test]
fn a_picture_has_the_modality_that_its_destination_wants() {
    for (name, object, _) in pictures_in_all_forms() {
        let expected = match (name.ends_with("Other"), name.starts_with("ct")) {
            (true, _) => "OT",
            (false, true) => "CT",
            (false, false) => "DX",
        };
        let parsed = parse(&object);
        assert_eq!(string(&parsed, tags::MODALITY).as_deref(), Some(expected), "{name}");
        let class = dicom_dictionary_std::uids::SECONDARY_CAPTURE_IMAGE_STORAGE;
        assert_eq!(object.sop_class_uid.as_str(), class, "{name}");
    }
}

#[test]
fn a_slice_lies_where_its_source_lies() {
    let sources = placed_ct_sources();
    let record = samples::ct_measured(BundleStatus::Untrained, &sources);
    let slices: Vec<RenderedObject> = (0..2).map(|number| slice(&record, number, &picture_form(), &sources)).collect();
    assert_eq!(slices[0].series_instance_uid, slices[1].series_instance_uid);
    assert_ne!(slices[0].sop_instance_uid, slices[1].sop_instance_uid);
    assert_ne!(slices[0].series_instance_uid, ct_overlay(&record, &sources).series_instance_uid);
    for (number, object) in slices.iter().enumerate() {
        let parsed = parse(object);
        let said = |tag: Tag| string(&parsed, tag).unwrap_or_default();
        assert_eq!(said(tags::IMAGE_POSITION_PATIENT), format!("-160\\-160.5\\{}", -100.0 + 2.5 * number as f64));
        assert_eq!(said(tags::IMAGE_ORIENTATION_PATIENT), "1\\0\\0\\0\\1\\0");
        assert_eq!(said(tags::FRAME_OF_REFERENCE_UID), "1.2.826.0.1.3680043.8.498.7");
        assert_eq!(
            (said(tags::PIXEL_SPACING), said(tags::SLICE_THICKNESS)),
            ("0.703125\\0.703125".into(), "2.5".into())
        );
        assert_eq!(
            (said(tags::PATIENT_ORIENTATION), said(tags::INSTANCE_NUMBER)),
            (String::new(), (number + 1).to_string())
        );
        assert_eq!(
            (said(tags::SERIES_NUMBER), said(tags::IMAGE_TYPE)),
            ("9005".into(), "DERIVED\\SECONDARY\\AI_OVERLAY".into())
        );
        assert!(said(tags::SERIES_DESCRIPTION).ends_with(UNTRAINED_NOTICE));
        assert!(said(tags::DERIVATION_DESCRIPTION).contains("Slice of the CT"));
        let source = first_item(&parsed, tags::SOURCE_IMAGE_SEQUENCE).unwrap();
        assert_eq!(string(source, tags::SPATIAL_LOCATIONS_PRESERVED).as_deref(), Some("YES"));
        assert_eq!(string(source, tags::REFERENCED_SOP_INSTANCE_UID).unwrap(), sources[number].sop_instance_uid);
        let series = first_item(&parsed, tags::REFERENCED_SERIES_SEQUENCE).unwrap();
        assert_eq!(series.get(tags::REFERENCED_INSTANCE_SEQUENCE).unwrap().items().unwrap().len(), 1);
    }
    // A slice without optional facts has none made up.
    let bare = samples::ct_sources();
    let parsed = parse(&slice(&samples::ct_measured(BundleStatus::Unvalidated, &bare), 0, &picture_form(), &bare));
    assert!(parsed.get(tags::IMAGE_POSITION_PATIENT).is_none());
    assert_eq!(string(&parsed, tags::SLICE_THICKNESS).as_deref(), Some(""));
}

#[test]
fn a_picture_that_is_not_of_its_slice_is_refused() {
    let sources = placed_ct_sources();
    let record = samples::ct_measured(BundleStatus::Unvalidated, &sources);
    let render = |record: &RunRecord, number: usize, sources: &[SampleSource], rgb: &RgbPixels| {
        render_ct_slice(record, number, &picture_form(), &pairs(sources), rgb, &samples::options())
            .unwrap_err()
            .to_string()
    };
    let fitting = picture(32, 40);
    assert!(render(&record, 0, &sources, &picture(40, 32)).contains("slice 1 has 32 x 40 pixels"));
    assert!(render(&record, 2, &sources, &fitting).contains("no analysed image number 2: it has 2"));
    assert!(render(&record, 0, &sources[1..], &fitting).contains("is missing"));
    let radiograph = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    assert!(render(&radiograph, 0, &sources, &fitting).contains("no analysed image number 0"));
    let of_radiograph =
        render_ct_summary(&radiograph, &picture_form(), &pairs(&sources), &fitting, &samples::options());
    assert!(of_radiograph.unwrap_err().to_string().contains("no analysed image"));
}

/// Decodes every picture with pydicom, and with dcmtk those that it can, and prints `name reader mean-error`.
const DECODE: &str = r#"
import sys, pathlib, subprocess, numpy as np, pydicom
from pydicom.pixels import pixel_array
folder = pathlib.Path(sys.argv[1])
def error(path, rgb):
    pixels = pixel_array(path)
    assert pixels.shape == rgb.shape, (path, pixels.shape, rgb.shape)
    return float(np.abs(pixels.astype(int) - rgb.astype(int)).mean())
for path in sorted(folder.glob("*.dcm")):
    data_set = pydicom.dcmread(path)
    rgb = np.fromfile(path.with_suffix(".rgb"), np.uint8).reshape(data_set.Rows, data_set.Columns, 3)
    print(path.stem, "pydicom", error(path, rgb))
    tool = {"1.2.840.10008.1.2.5": "dcmdrle", "1.2.840.10008.1.2.4.50": "dcmdjpeg"}.get(data_set.file_meta.TransferSyntaxUID)
    if tool:
        plain = path.with_suffix(".plain")
        subprocess.run([tool, str(path), str(plain)], check=True)
        print(path.stem, tool, error(plain, rgb))
"#;

/// pydicom and dcmtk read what this program compresses: RLE to the bit, JPEG with a small error.
#[test]
fn heavy_other_readers_see_the_same_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let folder: &Path = folder.path();
    let pictures = pictures_in_all_forms();
    for (name, object, rgb) in &pictures {
        fs_err::write(folder.join(format!("{name}.dcm")), &object.part10).unwrap();
        fs_err::write(folder.join(format!("{name}.rgb")), &rgb.bytes).unwrap();
    }
    let read = Command::new(validators::peers_python()).args(["-c", DECODE]).arg(folder).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let lines: Vec<String> = String::from_utf8_lossy(&read.stdout).lines().map(str::to_owned).collect();
    // Two of three encodings have a second reader.
    assert_eq!(lines.len(), pictures.len() / 3 * 5, "{lines:#?}");
    for line in lines {
        let error: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        let allowed = if line.contains("JpegBaseline") { 6.0 } else { 0.0 };
        assert!(error <= allowed, "{line}");
    }
}
