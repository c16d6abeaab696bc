//! What a compressed picture says about itself, read before a decoder allocates memory for it: a codestream may
//! announce other dimensions than the DICOM header.

/// Dimensions of a compressed picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CodestreamInfo {
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) components: u16,
    pub(super) bits_per_sample: u8,
}

/// Finds the frame header (SOFn of ITU-T T.81, SOF55 of T.87) of a JPEG or JPEG-LS picture.
pub(super) fn read_jpeg(data: &[u8]) -> Option<CodestreamInfo> {
    let mut offset = data.windows(2).position(|pair| pair == [0xFF, 0xD8])? + 2;
    loop {
        while *data.get(offset)? != 0xFF {
            offset += 1;
        }
        let marker = *data.get(offset + 1)?;
        match marker {
            // Fill bytes before a marker.
            0xFF => offset += 1,
            // Markers without a segment.
            0x00 | 0x01 | 0xD0..=0xD8 => offset += 2,
            // Entropy-coded data or the end before any frame header.
            0xDA | 0xD9 => return None,
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | 0xF7 => {
                return Some(CodestreamInfo {
                    bits_per_sample: *data.get(offset + 4)?,
                    rows: u32::from(be16(data, offset + 5)?),
                    columns: u32::from(be16(data, offset + 7)?),
                    components: u16::from(*data.get(offset + 9)?),
                });
            }
            _ => offset += 2 + usize::from(be16(data, offset + 2)?),
        }
    }
}

/// Finds the SIZ segment (ITU-T T.800 A.5.1) of a JPEG 2000 codestream, also inside a JP2 file.
pub(super) fn read_jpeg_2000(data: &[u8]) -> Option<CodestreamInfo> {
    let siz = data.windows(4).position(|bytes| bytes == [0xFF, 0x4F, 0xFF, 0x51])? + 4;
    let columns = be32(data, siz + 4)?.checked_sub(be32(data, siz + 12)?)?;
    let rows = be32(data, siz + 8)?.checked_sub(be32(data, siz + 16)?)?;
    let components = be16(data, siz + 36)?;
    let bits_per_sample = (*data.get(siz + 38)? & 0x7F) + 1;
    Some(CodestreamInfo { rows, columns, components, bits_per_sample })
}

fn be16(data: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(offset..offset + 2)?.try_into().ok()?))
}

fn be32(data: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jpeg_frame_header_is_found_after_other_segments() {
        let data = [
            0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 0xAA, 0xBB, 0xFF, 0xFF, 0xC1, 0, 11, 12, 0x07, 0xA3, 0x07, 0x31, 1, 1, 0x11,
            0,
        ];
        let expected = CodestreamInfo { rows: 1955, columns: 1841, components: 1, bits_per_sample: 12 };
        assert_eq!(read_jpeg(&data), Some(expected));
        assert_eq!(read_jpeg(&data[..14]), None);
        assert_eq!(read_jpeg(b""), None);
        assert_eq!(read_jpeg(&[0xFF, 0xD8, 0xFF, 0xDA, 0, 2]), None);
    }

    #[test]
    fn jpeg_2000_size_subtracts_the_image_offset() {
        let mut data = vec![0xFF, 0x4F, 0xFF, 0x51, 0, 41, 0, 0];
        for value in [2000_u32, 1000, 10, 20, 512, 512, 0, 0] {
            data.extend(value.to_be_bytes());
        }
        data.extend([0, 1, 0x8E, 1, 1]);
        let expected = CodestreamInfo { rows: 980, columns: 1990, components: 1, bits_per_sample: 15 };
        assert_eq!(read_jpeg_2000(&data), Some(expected));
        assert_eq!(read_jpeg_2000(&data[..30]), None);
    }
}
