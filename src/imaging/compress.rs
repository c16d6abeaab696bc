//! Encapsulated pixel data of colour pictures: RLE Lossless and JPEG Baseline.

use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, EncodingError, SamplingFactor};

/// The colours of a pixel, 8 bits each.
const SAMPLES: usize = 3;
/// The header of a frame: the number of segments and 15 offsets, 4 bytes each.
const HEADER_BYTES: usize = 64;
/// Most bytes that one code of the run-length encoding stands for.
const LONGEST_CODE: usize = 128;
/// A run shorter than this costs more than it saves within other bytes.
const SHORTEST_RUN: usize = 3;
/// JPEG quality: the letters in a picture stay sharp.
const QUALITY: u8 = 95;

/// The encoder refused a picture.
#[derive(Debug, thiserror::Error)]
#[error("the picture of {width} x {height} pixels cannot be written as JPEG: {source}")]
pub struct JpegError {
    /// Columns.
    width: u16,
    /// Rows.
    height: u16,
    /// The encoder's words.
    source: EncodingError,
}

/// A frame of RGB pixels in RLE Lossless (PS3.5 annex G): a segment for each colour, each row encoded by itself, each segment
/// of an even length.
#[must_use]
pub fn rle_lossless(rgb: &[u8], width: u16) -> Vec<u8> {
    let mut segments = Vec::new();
    let mut header = vec![SAMPLES as u32];
    for sample in 0..SAMPLES {
        header.push((HEADER_BYTES + segments.len()) as u32);
        for row in rgb.chunks(SAMPLES * usize::from(width).max(1)) {
            let row: Vec<u8> = row.iter().skip(sample).step_by(SAMPLES).copied().collect();
            pack(&row, &mut segments);
        }
        if segments.len() % 2 == 1 {
            segments.push(0);
        }
    }
    let mut frame: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    frame.resize(HEADER_BYTES, 0);
    frame.extend(segments);
    frame
}

/// PS3.5 section G.3.1: runs as (257 - length, byte), other bytes as (length - 1, bytes).
fn pack(row: &[u8], out: &mut Vec<u8>) {
    let run_at = |at: usize| row[at..].iter().take(LONGEST_CODE).take_while(|byte| **byte == row[at]).count();
    let mut at = 0;
    while at < row.len() {
        let run = run_at(at);
        if run >= SHORTEST_RUN {
            out.extend([(257 - run) as u8, row[at]]);
            at += run;
            continue;
        }
        let start = at;
        while at < row.len() && at - start < LONGEST_CODE && run_at(at) < SHORTEST_RUN {
            at += 1;
        }
        out.push((at - start - 1) as u8);
        out.extend_from_slice(&row[start..at]);
    }
}

/// A frame of RGB pixels in JPEG Baseline, with half the columns of colour: what DICOM calls YBR_FULL_422 (PS3.3 section
/// C.7.6.3.1.2).
///
/// # Errors
/// [`JpegError`] when width, height and bytes do not agree.
pub fn jpeg_baseline(rgb: &[u8], width: u16, height: u16) -> Result<Vec<u8>, JpegError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_2);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode(rgb, width, height, ColorType::Rgb).map_err(|source| JpegError { width, height, source })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// PS3.5 section G.3.2, written independently of the encoder.
    fn unpack(mut packed: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let code = packed[0] as i8;
            packed = &packed[1..];
            match code {
                0..=127 => {
                    let count = usize::from(code as u8) + 1;
                    bytes.extend_from_slice(&packed[..count]);
                    packed = &packed[count..];
                }
                -128 => {}
                _ => {
                    bytes.extend(std::iter::repeat_n(packed[0], (1 - isize::from(code)) as usize));
                    packed = &packed[1..];
                }
            }
        }
        bytes
    }

    fn unpack_frame(frame: &[u8], pixels: usize) -> Vec<u8> {
        let number = |at: usize| u32::from_le_bytes(frame[4 * at..4 * at + 4].try_into().unwrap()) as usize;
        assert_eq!(number(0), 3);
        assert!((4..16).all(|unused| number(unused) == 0));
        let planes: Vec<Vec<u8>> = (1..=3).map(|segment| unpack(&frame[number(segment)..], pixels)).collect();
        (0..pixels).flat_map(|pixel| planes.iter().map(move |plane| plane[pixel])).collect()
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            width in 1_u16..300,
            height in 1_u16..6,
            // Few values, so that there are runs.
            seed in proptest::collection::vec(0_u8..3, 5400),
        ) {
            let rgb = &seed[..3 * usize::from(width) * usize::from(height)];
            let frame = rle_lossless(rgb, width);
            prop_assert_eq!(frame.len() % 2, 0);
            prop_assert_eq!(unpack_frame(&frame, rgb.len() / 3), rgb);
        }
    }

    #[test]
    fn runs_are_short_and_never_cross_a_row() {
        let rgb = vec![7; 3 * 200 * 2];
        let frame = rle_lossless(&rgb, 200);
        // Two codes for the 200 bytes of each of 2 rows, in each of 3 segments.
        assert_eq!(frame.len(), HEADER_BYTES + 3 * 2 * 2 * 2);
        assert_eq!(frame[64..72], [129, 7, 185, 7, 129, 7, 185, 7]);
        let mut literals = Vec::new();
        pack(&(0..=255).collect::<Vec<u8>>(), &mut literals);
        assert_eq!((literals.len(), literals[0], literals[129]), (258, 127, 127));
    }

    #[test]
    fn jpeg_is_baseline_in_one_scan_with_half_the_columns_of_colour() {
        let (width, height) = (40_u16, 24_u16);
        let smooth: Vec<u8> = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| [x as u8 * 6, y as u8 * 10, 255 - x as u8 * 6]))
            .collect();
        let jpeg = jpeg_baseline(&smooth, width, height).unwrap();
        let at = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).expect("a baseline frame header");
        // SOF0: length, precision 8, rows, columns, 3 components of (id, sampling, table).
        assert_eq!(jpeg[at + 4..at + 10], [8, 0, 24, 0, 40, 3]);
        assert_eq!([jpeg[at + 11], jpeg[at + 14], jpeg[at + 17]], [0x21, 0x11, 0x11]);
        assert_eq!(jpeg.windows(2).filter(|marker| *marker == [0xff, 0xda]).count(), 1);
        let decoded = image::load_from_memory(&jpeg).unwrap().into_rgb8().into_raw();
        let error: f64 = decoded.iter().zip(&smooth).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(error / (decoded.len() as f64) < 3.0, "mean error {}", error / decoded.len() as f64);
        assert!(jpeg_baseline(&smooth[1..], width, height).unwrap_err().to_string().contains("40 x 24"));
    }
}
