//! Modality and VOI transformations (PS3.3 C.11.1 and C.11.2).

use dicom_core::VR;
use dicom_core::value::PrimitiveValue;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::header::{ImageHeader, first_item, numbers, text};

/// How a window maps values (VOI LUT Function (0028,1056)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowFunction {
    /// The default, PS3.3 C.11.2.1.2.1: the window's edges are half a step inside.
    Linear,
    /// PS3.3 C.11.2.1.3.2.
    LinearExact,
    /// PS3.3 C.11.2.1.3.1.
    Sigmoid,
}

/// How modality values become what is shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Voi {
    /// The object says nothing.
    None,
    /// Window Center and Window Width.
    Window {
        /// Window Center (0028,1050), in modality units.
        center: f64,
        /// Window Width (0028,1051), in modality units, above 0 (at least 1 for [`WindowFunction::Linear`]).
        width: f64,
        /// VOI LUT Function (0028,1056).
        function: WindowFunction,
    },
    /// First item of the VOI LUT Sequence (0028,3010).
    Table(LookUpTable),
}

/// A table of PS3.3 C.11.1.1 / C.11.2.1.1.
#[derive(Debug, Clone, PartialEq)]
pub struct LookUpTable {
    first_mapped: i32,
    bits_per_entry: u8,
    entries: Vec<u16>,
}

impl LookUpTable {
    /// Reads LUT Descriptor (0028,3002) and LUT Data (0028,3006). `signed_input` says whether the first value mapped
    /// is two's complement when its VR (US) cannot tell.
    pub(super) fn from_item(item: &InMemDicomObject, signed_input: bool) -> Option<Self> {
        let descriptor = item.get(tags::LUT_DESCRIPTOR)?;
        let values: Vec<i32> = descriptor.to_multi_int().ok()?;
        let [count, first_mapped, bits] = values.as_slice() else { return None };
        // The number of entries is unsigned whatever the VR says, and 0 stands for 65536.
        let count = match u16::try_from(*count & 0xFFFF).ok()? {
            0 => 65_536,
            count => usize::from(count),
        };
        let bits_per_entry = u8::try_from(*bits).ok().filter(|bits| (1..=16).contains(bits))?;
        let first_mapped = if descriptor.vr() == VR::SS || signed_input {
            i32::from(*first_mapped as i16)
        } else {
            *first_mapped & 0xFFFF
        };
        let entries = lut_data(item, count)?;
        Some(Self { first_mapped, bits_per_entry, entries })
    }

    /// The entry for `value`, clamped to the ends of the table.
    fn entry(&self, value: f32) -> f32 {
        let position = (f64::from(value).round() - f64::from(self.first_mapped)).max(0.0) as usize;
        let last = self.entries.len().saturating_sub(1);
        self.entries.get(position.min(last)).map_or(0.0, |&entry| f32::from(entry))
    }

    /// The largest value an entry can have.
    fn maximum(&self) -> f32 {
        ((1_u32 << self.bits_per_entry) - 1) as f32
    }
}

/// LUT Data as 16-bit entries; 8-bit entries may be packed two to a word (retired, but written).
fn lut_data(item: &InMemDicomObject, count: usize) -> Option<Vec<u16>> {
    let value = item.get(tags::LUT_DATA)?.value().primitive()?;
    let words: Vec<u16> = match value {
        PrimitiveValue::U16(words) => words.to_vec(),
        PrimitiveValue::I16(words) => words.iter().map(|&word| word as u16).collect(),
        PrimitiveValue::U8(bytes) => bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect(),
        _ => return None,
    };
    if words.len() >= count {
        return Some(words.into_iter().take(count).collect());
    }
    if words.len() * 2 >= count {
        return Some(words.into_iter().flat_map(u16::to_le_bytes).take(count).map(u16::from).collect());
    }
    None
}

/// Stored values to modality values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ModalityTransform {
    Identity,
    Rescale { slope: f64, intercept: f64 },
    Table(LookUpTable),
}

impl ModalityTransform {
    /// Of the two forms that PS3.3 C.11.1 allows, the table wins when both are there, as they must not be.
    pub(super) fn of(object: &InMemDicomObject, header: &ImageHeader) -> Self {
        let table = first_item(object, tags::MODALITY_LUT_SEQUENCE)
            .and_then(|item| LookUpTable::from_item(item, header.is_signed));
        match (table, header.rescale) {
            (Some(table), _) => Self::Table(table),
            (None, Some((slope, intercept))) if (slope, intercept) != (1.0, 0.0) => Self::Rescale { slope, intercept },
            (None, _) => Self::Identity,
        }
    }

    pub(super) fn apply(&self, stored: i32) -> f32 {
        match self {
            Self::Identity => stored as f32,
            Self::Rescale { slope, intercept } => (f64::from(stored) * slope + intercept) as f32,
            Self::Table(table) => table.entry(stored as f32),
        }
    }

    /// Whether modality values can be negative, which decides how a VOI LUT's first value is read.
    pub(super) fn is_signed(&self, header: &ImageHeader) -> bool {
        match self {
            Self::Identity => header.is_signed,
            Self::Rescale { intercept, .. } => header.is_signed || *intercept < 0.0,
            Self::Table(_) => false,
        }
    }
}

impl Voi {
    /// What the object says; the window wins over the table when both are there. Windows that PS3.3 C.11.2.1.2
    /// forbids (width below 1, for exact and sigmoid functions not above 0) count as absent.
    pub(super) fn of(object: &InMemDicomObject, header: &ImageHeader, modality: &ModalityTransform) -> Self {
        let function = match text(object, tags::VOILUT_FUNCTION).map(|name| name.to_ascii_uppercase()).as_deref() {
            Some("LINEAR_EXACT") => WindowFunction::LinearExact,
            Some("SIGMOID") => WindowFunction::Sigmoid,
            _ => WindowFunction::Linear,
        };
        let center = numbers(object, tags::WINDOW_CENTER).first().copied();
        let width = numbers(object, tags::WINDOW_WIDTH).first().copied();
        if let (Some(center), Some(width)) = (center, width) {
            let minimum = if function == WindowFunction::Linear { 1.0 } else { f64::MIN_POSITIVE };
            if width >= minimum {
                return Self::Window { center, width, function };
            }
        }
        first_item(object, tags::VOILUT_SEQUENCE)
            .and_then(|item| LookUpTable::from_item(item, modality.is_signed(header)))
            .map_or(Self::None, Self::Table)
    }

    /// Maps a modality value to 0 to 1; `None` when there is no transformation.
    #[must_use]
    pub fn apply(&self, value: f32) -> Option<f32> {
        match self {
            Self::None => None,
            Self::Window { center, width, function } => Some(window(f64::from(value), *center, *width, *function)),
            Self::Table(table) => Some((table.entry(value) / table.maximum()).min(1.0)),
        }
    }
}

fn window(value: f64, center: f64, width: f64, function: WindowFunction) -> f32 {
    let shown = match function {
        WindowFunction::Linear => {
            let (center, width) = (center - 0.5, width - 1.0);
            if value <= center - width / 2.0 {
                0.0
            } else if value > center + width / 2.0 {
                1.0
            } else {
                (value - center) / width + 0.5
            }
        }
        WindowFunction::LinearExact => ((value - center) / width + 0.5).clamp(0.0, 1.0),
        WindowFunction::Sigmoid => 1.0 / (1.0 + (-4.0 * (value - center) / width).exp()),
    };
    shown as f32
}
