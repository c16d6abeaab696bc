//! Colour pictures: RGB, YBR and palettes (PS3.3 C.7.6.3.1.2, C.7.6.3.1.5) to RGB and to luminance.

use dicom_core::{Tag, value::PrimitiveValue};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject};

use super::ImagingError;

/// How the samples of a pixel make its colour (Photometric Interpretation (0028,0004)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Color {
    /// MONOCHROME1, MONOCHROME2.
    Grey,
    /// PALETTE COLOR.
    Palette,
    /// RGB; YBR_ICT and YBR_RCT, whose codec delivers RGB.
    Rgb,
    /// YBR_FULL.
    Ybr,
    /// YBR_FULL_422.
    YbrFull422,
}

impl Color {
    /// `None` when it is another colour space, or does not go with so many samples.
    pub(super) fn of(photometric_interpretation: &str, samples_per_pixel: u16) -> Option<Self> {
        let color = match photometric_interpretation {
            "MONOCHROME1" | "MONOCHROME2" => Self::Grey,
            "PALETTE COLOR" => Self::Palette,
            "RGB" | "YBR_ICT" | "YBR_RCT" => Self::Rgb,
            "YBR_FULL" => Self::Ybr,
            "YBR_FULL_422" => Self::YbrFull422,
            _ => return None,
        };
        (color.samples_per_pixel() == samples_per_pixel).then_some(color)
    }

    pub(super) const fn samples_per_pixel(self) -> u16 {
        match self {
            Self::Grey | Self::Palette => 1,
            Self::Rgb | Self::Ybr | Self::YbrFull422 => 3,
        }
    }

    /// Y1 Y2 Cb Cr for two pixels to Y Cb Cr for each.
    pub(super) fn full_resolution(samples: &[u32]) -> Vec<u32> {
        let pairs = samples.chunks_exact(4);
        pairs.flat_map(|pair| [pair[0], pair[2], pair[3], pair[1], pair[2], pair[3]]).collect()
    }

    /// Converts luminance and chrominance to RGB in place; other colours stay.
    pub(super) fn make_rgb(self, samples: &mut [u32], bits_stored: u16) {
        if !matches!(self, Self::Ybr | Self::YbrFull422) {
            return;
        }
        let maximum = ((1_u32 << bits_stored) - 1) as f32;
        let middle = (1_u32 << (bits_stored - 1)) as f32;
        for pixel in samples.chunks_exact_mut(3) {
            let (y, cb, cr) = (pixel[0] as f32, pixel[1] as f32 - middle, pixel[2] as f32 - middle);
            let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
            for (sample, value) in pixel.iter_mut().zip(rgb) {
                *sample = value.round().clamp(0.0, maximum) as u32;
            }
        }
    }

    /// The luminance of RGB samples, in their own range.
    pub(super) fn luminance(rgb: &[u32]) -> Vec<f32> {
        let of_pixel = |pixel: &[u32]| luminance(pixel[0] as f32, pixel[1] as f32, pixel[2] as f32);
        rgb.chunks_exact(3).map(of_pixel).collect()
    }
}

/// ITU-R BT.601, as YBR_FULL is defined.
fn luminance(red: f32, green: f32, blue: f32) -> f32 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

/// A Palette Color Lookup Table: the luminance of each stored value.
pub(super) struct Palette {
    first_mapped: u32,
    luminance: Vec<f32>,
}

impl Palette {
    /// Reads the three tables of `object`.
    pub(super) fn of(object: &DefaultDicomObject, bits_stored: u16) -> Result<Self, ImagingError> {
        let tables = [
            (tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::RED_PALETTE_COLOR_LOOKUP_TABLE_DATA),
            (tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::GREEN_PALETTE_COLOR_LOOKUP_TABLE_DATA),
            (tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DESCRIPTOR, tags::BLUE_PALETTE_COLOR_LOOKUP_TABLE_DATA),
        ];
        let [red, green, blue] = tables.map(|(descriptor, data)| table(object, descriptor, data));
        let Some((((first_mapped, red), (_, green)), (_, blue))) = red.zip(green).zip(blue) else {
            return Err(ImagingError::UnsupportedImage {
                what: "a PALETTE COLOR image without plain colour tables".to_owned(),
                expected: "images with a Palette Color Lookup Table Descriptor and Data for each colour are",
            });
        };
        let colors = red.iter().zip(&green).zip(&blue);
        let luminance = colors.map(|((red, green), blue)| luminance(*red, *green, *blue)).collect();
        // Signed first values do not occur: palette indices are unsigned.
        Ok(Self { first_mapped: first_mapped & ((1 << bits_stored) - 1), luminance })
    }

    /// The luminance of each stored value; those outside of the table have its first or last (PS3.3 C.7.6.3.1.5).
    pub(super) fn luminance(&self, stored: &[u32]) -> Vec<f32> {
        let last = self.luminance.len().saturating_sub(1);
        let of_value = |&value: &u32| {
            let index = value.saturating_sub(self.first_mapped) as usize;
            self.luminance.get(index.min(last)).copied().unwrap_or(0.0)
        };
        stored.iter().map(of_value).collect()
    }
}

/// First value mapped and entries of one colour's table.
fn table(object: &InMemDicomObject, descriptor: Tag, data: Tag) -> Option<(u32, Vec<f32>)> {
    let values: Vec<i32> = object.get(descriptor)?.to_multi_int().ok()?;
    let &[count, first_mapped, bits] = values.as_slice() else { return None };
    // The number of entries is unsigned whatever the VR says, and 0 stands for 65536.
    let count = match (count & 0xFFFF) as usize {
        0 => 65_536,
        count => count,
    };
    let bytes: Vec<u8> = match object.get(data)?.value().primitive()? {
        PrimitiveValue::U8(bytes) => bytes.to_vec(),
        PrimitiveValue::U16(words) => words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        _ => return None,
    };
    // Entries of 8 bits may take 8 or 16.
    let entries: Vec<f32> = if bits == 8 && bytes.len() < 2 * count {
        bytes.iter().take(count).map(|&byte| f32::from(byte)).collect()
    } else {
        bytes.chunks_exact(2).take(count).map(|pair| f32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect()
    };
    (!entries.is_empty()).then_some(((first_mapped & 0xFFFF) as u32, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ybr_is_converted_as_the_standard_says() {
        let mut grey = vec![0, 128, 128, 255, 128, 128];
        Color::Ybr.make_rgb(&mut grey, 8);
        assert_eq!(grey, [0, 0, 0, 255, 255, 255]);
        let mut red = vec![76, 85, 255];
        Color::Ybr.make_rgb(&mut red, 8);
        assert_eq!(red, [254, 0, 0]);
        assert_eq!(Color::full_resolution(&[1, 2, 3, 4]), [1, 3, 4, 2, 3, 4]);
        let mut untouched = vec![1, 2, 3];
        Color::Rgb.make_rgb(&mut untouched, 8);
        assert_eq!(untouched, [1, 2, 3]);
    }

    #[test]
    fn samples_and_colour_space_must_agree() {
        assert_eq!(Color::of("RGB", 3), Some(Color::Rgb));
        assert_eq!(Color::of("RGB", 1), None);
        assert_eq!(Color::of("MONOCHROME2", 3), None);
        assert_eq!(Color::of("CMYK", 4), None);
    }

    #[test]
    fn luminance_weighs_green_most() {
        assert_eq!(Color::luminance(&[100, 100, 100]), [100.0]);
        let pure = Color::luminance(&[255, 0, 0, 0, 255, 0, 0, 0, 255]);
        assert!(pure[1] > pure[0] && pure[0] > pure[2], "{pure:?}");
    }
}
