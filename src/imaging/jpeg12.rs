//! JPEG Extended with 12 bits (ITU-T T.81 process 4, sequential Huffman): one component, as radiographs have.
//!
//! The JPEG library below dicom-pixeldata decodes 8 bits only. The caller has compared the size in the frame header with
//! the image and its limits before ([`super::codestream`]); this decoder allocates nothing beyond the picture, reads
//! each byte once, and reports damage instead of guessing.

use std::array;

/// Level shift and the largest value of 12-bit samples (T.81 A.3.1).
const LEVEL_SHIFT: f32 = 2048.0;
const MAXIMUM_SAMPLE: f32 = 4095.0;
const BLOCK_SIDE: usize = 8;
const BLOCK: usize = BLOCK_SIDE * BLOCK_SIDE;

/// Where the k-th coefficient of the zigzag order lies in the block (T.81 figure 5).
const ZIGZAG: [u8; BLOCK] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Decodes the picture into `rows` × `columns` samples of 0 to 4095, row by row.
///
/// # Errors
/// What is damaged, missing or of another kind, in words.
pub fn decode(data: &[u8], rows: usize, columns: usize) -> Result<Vec<u16>, &'static str> {
    let mut tables = Tables::default();
    let mut frame_has_table = None;
    let mut reader = Segments { rest: data.get(start_of_image(data)?..).unwrap_or_default() };
    loop {
        let (marker, segment) = reader.next()?;
        match marker {
            0xDB => tables.read_quantization(segment)?,
            0xC4 => tables.read_huffman(segment)?,
            0xDD => tables.restart_interval = usize::from(be16(segment).ok_or("its restart interval is cut off")?),
            0xC0 | 0xC1 => frame_has_table = Some(frame_quantization_table(segment, rows, columns)?),
            0xDA => {
                let quantization = frame_has_table.ok_or("its scan comes before its frame header")?;
                let scan = tables.scan(segment, quantization)?;
                return scan.decode(reader.rest, rows, columns);
            }
            0xC2..=0xCF => return Err("it is not sequential with Huffman codes"),
            0xD9 => return Err("it ends before its scan"),
            _ => {}
        }
    }
}

fn start_of_image(data: &[u8]) -> Result<usize, &'static str> {
    data.windows(2).position(|pair| pair == [0xFF, 0xD8]).map(|at| at + 2).ok_or("it has no start of image")
}

fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.first_chunk()?))
}

/// The marker segments before the entropy-coded data.
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Segments<'a> {
    fn next(&mut self) -> Result<(u8, &'a [u8]), &'static str> {
        const CUT_OFF: &str = "it is cut off between its segments";
        loop {
            let (&[prefix, marker], after) = self.rest.split_first_chunk().ok_or(CUT_OFF)?;
            match (prefix, marker) {
                (0xFF, 0xFF) => self.rest = self.rest.get(1..).unwrap_or_default(),
                (0xFF, 0x01 | 0xD0..=0xD8) => self.rest = after,
                (0xFF, 0xD9) => return Ok((marker, &[])),
                (0xFF, _) => {
                    let length = usize::from(be16(after).ok_or(CUT_OFF)?);
                    let segment = after.get(2..length).ok_or(CUT_OFF)?;
                    self.rest = after.get(length..).unwrap_or_default();
                    return Ok((marker, segment));
                }
                _ => return Err("it has bytes between its segments"),
            }
        }
    }
}

/// Checks the frame header and returns the number of its quantization table.
fn frame_quantization_table(segment: &[u8], rows: usize, columns: usize) -> Result<u8, &'static str> {
    let &[precision, r0, r1, c0, c1, components, _, _, table, ..] = segment else {
        return Err("its frame header is cut off");
    };
    let size = (usize::from(u16::from_be_bytes([r0, r1])), usize::from(u16::from_be_bytes([c0, c1])));
    match (precision, components, size == (rows, columns)) {
        (12, 1, true) => Ok(table),
        _ => Err("its frame header does not announce one component of 12 bits and the image's size"),
    }
}

/// Tables of T.81 B.2.4; at most four of each kind.
#[derive(Default)]
struct Tables {
    quantization: [Option<[f32; BLOCK]>; 4],
    dc: [Option<HuffmanTable>; 4],
    ac: [Option<HuffmanTable>; 4],
    restart_interval: usize,
}

impl Tables {
    fn read_quantization(&mut self, mut segment: &[u8]) -> Result<(), &'static str> {
        const DAMAGED: &str = "a quantization table is damaged";
        while let Some((&head, mut rest)) = segment.split_first() {
            let mut table = [0.0; BLOCK];
            for &position in &ZIGZAG {
                let value = if head >> 4 == 0 {
                    let (&byte, after) = rest.split_first().ok_or(DAMAGED)?;
                    rest = after;
                    u16::from(byte)
                } else {
                    let (&word, after) = rest.split_first_chunk().ok_or(DAMAGED)?;
                    rest = after;
                    u16::from_be_bytes(word)
                };
                table[usize::from(position)] = f32::from(value);
            }
            *self.quantization.get_mut(usize::from(head & 15)).ok_or(DAMAGED)? = Some(table);
            segment = rest;
        }
        Ok(())
    }

    fn read_huffman(&mut self, mut segment: &[u8]) -> Result<(), &'static str> {
        const DAMAGED: &str = "a Huffman table is damaged";
        while !segment.is_empty() {
            let (&[head, ref counts @ ..], rest) = segment.split_first_chunk::<17>().ok_or(DAMAGED)?;
            let counts: [u8; 16] = *counts;
            let n_symbols = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(..n_symbols).ok_or(DAMAGED)?;
            let kind = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let table = HuffmanTable::new(&counts, symbols).ok_or(DAMAGED)?;
            *kind.get_mut(usize::from(head & 15)).ok_or(DAMAGED)? = Some(table);
            segment = rest.get(n_symbols..).unwrap_or_default();
        }
        Ok(())
    }

    /// The scan of one component (T.81 B.2.3).
    fn scan(&self, segment: &[u8], quantization: u8) -> Result<Scan<'_>, &'static str> {
        // The spectral selection that follows is for progressive pictures; some writers fill it with zeros.
        let &[1, _, tables, ..] = segment else {
            return Err("its scan is not one of a single component");
        };
        let missing = "its scan names a table that it does not have";
        Ok(Scan {
            quantization: self.quantization.get(usize::from(quantization)).and_then(Option::as_ref).ok_or(missing)?,
            dc: self.dc.get(usize::from(tables >> 4)).and_then(Option::as_ref).ok_or(missing)?,
            ac: self.ac.get(usize::from(tables & 15)).and_then(Option::as_ref).ok_or(missing)?,
            restart_interval: self.restart_interval,
        })
    }
}

/// Canonical codes of T.81 annex C, decoded as F.2.2.3 does: the smallest code that is larger than all codes of its
/// length tells the length.
struct HuffmanTable {
    /// For each length 1 to 16: the first code, how many there are, and where their symbols begin.
    lengths: [(u32, u32, usize); 16],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// `None` when there are more codes than their lengths allow.
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let (mut code, mut start) = (0_u32, 0);
        let mut lengths = [(0, 0, 0); 16];
        for (length, (slot, &count)) in lengths.iter_mut().zip(counts).enumerate() {
            *slot = (code, u32::from(count), start);
            code += u32::from(count);
            if code > 1 << (length + 1) {
                return None;
            }
            code <<= 1;
            start += usize::from(count);
        }
        Some(Self { lengths, symbols: symbols.to_vec() })
    }
}

struct Scan<'a> {
    quantization: &'a [f32; BLOCK],
    dc: &'a HuffmanTable,
    ac: &'a HuffmanTable,
    restart_interval: usize,
}

impl Scan<'_> {
    fn decode(&self, data: &[u8], rows: usize, columns: usize) -> Result<Vec<u16>, &'static str> {
        let mut bits = Bits { rest: data, buffer: 0, left_in_buffer: 0 };
        let transform = Transform::new();
        let mut samples = vec![0; rows * columns];
        let (mut previous_dc, mut until_restart) = (0, self.restart_interval);
        for block_row in 0..rows.div_ceil(BLOCK_SIDE) {
            for block_column in 0..columns.div_ceil(BLOCK_SIDE) {
                if self.restart_interval > 0 && until_restart == 0 {
                    bits.restart()?;
                    (previous_dc, until_restart) = (0, self.restart_interval);
                }
                until_restart = until_restart.saturating_sub(1);
                let block = transform.samples(&self.coefficients(&mut bits, &mut previous_dc)?);
                let first_column = block_column * BLOCK_SIDE;
                let width = BLOCK_SIDE.min(columns - first_column);
                let image_rows = samples.chunks_exact_mut(columns).skip(block_row * BLOCK_SIDE);
                for (row, decoded) in image_rows.zip(block.chunks_exact(BLOCK_SIDE)) {
                    row[first_column..first_column + width].copy_from_slice(&decoded[..width]);
                }
            }
        }
        Ok(samples)
    }

    /// The dequantized coefficients of one block (T.81 F.2.2).
    fn coefficients(&self, bits: &mut Bits<'_>, previous_dc: &mut i32) -> Result<[f32; BLOCK], &'static str> {
        const TOO_MANY: &str = "a block has more than 64 coefficients";
        let mut block = [0.0; BLOCK];
        let category = bits.symbol(self.dc)?;
        if category > 15 {
            return Err("a coefficient is too large");
        }
        *previous_dc = previous_dc.wrapping_add(bits.signed(category)?);
        block[0] = *previous_dc as f32 * self.quantization[0];
        let mut index = 1_usize;
        while index < BLOCK {
            let symbol = bits.symbol(self.ac)?;
            let (zeros, category) = (usize::from(symbol >> 4), symbol & 15);
            match (zeros, category) {
                (15, 0) => index += 16,
                (_, 0) => break,
                _ => {
                    index += zeros;
                    let position = usize::from(*ZIGZAG.get(index).ok_or(TOO_MANY)?);
                    block[position] = bits.signed(category)? as f32 * self.quantization[position];
                    index += 1;
                }
            }
        }
        if index > BLOCK { Err(TOO_MANY) } else { Ok(block) }
    }
}

/// Entropy-coded bits; FF00H stands for a byte FFH, any other marker ends them.
struct Bits<'a> {
    rest: &'a [u8],
    buffer: u32,
    left_in_buffer: u32,
}

impl Bits<'_> {
    fn bit(&mut self) -> Result<u32, &'static str> {
        if self.left_in_buffer == 0 {
            let (byte, length) = match *self.rest {
                [0xFF, 0x00, ..] => (0xFF, 2),
                [0xFF, ..] | [] => return Err("it is cut off"),
                [byte, ..] => (byte, 1),
            };
            self.rest = self.rest.get(length..).unwrap_or_default();
            (self.buffer, self.left_in_buffer) = (u32::from(byte), 8);
        }
        self.left_in_buffer -= 1;
        Ok(self.buffer >> self.left_in_buffer & 1)
    }

    fn symbol(&mut self, table: &HuffmanTable) -> Result<u8, &'static str> {
        const UNKNOWN: &str = "it has a code that is in no Huffman table";
        let mut code = 0;
        for &(first, count, start) in &table.lengths {
            code = code << 1 | self.bit()?;
            if let Some(index) = code.checked_sub(first).filter(|&index| index < count) {
                return table.symbols.get(start + index as usize).copied().ok_or(UNKNOWN);
            }
        }
        Err(UNKNOWN)
    }

    /// A number of `category` bits, the upper half of them positive (T.81 table F.1).
    fn signed(&mut self, category: u8) -> Result<i32, &'static str> {
        let mut value = 0;
        for _ in 0..category {
            value = value << 1 | self.bit()? as i32;
        }
        let is_negative = category > 0 && value < 1 << (category - 1);
        Ok(if is_negative { value - (1 << category) + 1 } else { value })
    }

    /// Skips the padding bits and the restart marker (T.81 F.2.1.3.1).
    fn restart(&mut self) -> Result<(), &'static str> {
        self.left_in_buffer = 0;
        match *self.rest {
            [0xFF, 0xD0..=0xD7, ..] => {
                self.rest = self.rest.get(2..).unwrap_or_default();
                Ok(())
            }
            _ => Err("a restart marker is missing"),
        }
    }
}

/// The inverse discrete cosine transform (T.81 A.3.3), one dimension after the other.
struct Transform {
    /// Factor of frequency u at position x: `cosines[x][u]`.
    cosines: [[f32; BLOCK_SIDE]; BLOCK_SIDE],
}

impl Transform {
    fn new() -> Self {
        let factor = |x: usize, u: usize| {
            let scale = if u == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
            let angle = (2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0;
            (scale * angle.cos() / 2.0) as f32
        };
        Self { cosines: array::from_fn(|x| array::from_fn(|u| factor(x, u))) }
    }

    fn samples(&self, coefficients: &[f32; BLOCK]) -> [u16; BLOCK] {
        let mut half = [0.0; BLOCK];
        for (row, frequencies) in half.chunks_exact_mut(BLOCK_SIDE).zip(coefficients.chunks_exact(BLOCK_SIDE)) {
            if frequencies.iter().all(|&frequency| frequency == 0.0) {
                continue;
            }
            for (value, cosines) in row.iter_mut().zip(&self.cosines) {
                *value = cosines.iter().zip(frequencies).map(|(cosine, frequency)| cosine * frequency).sum();
            }
        }
        array::from_fn(|position| {
            let (y, x) = (position / BLOCK_SIDE, position % BLOCK_SIDE);
            let column = half.iter().skip(x).step_by(BLOCK_SIDE);
            let value: f32 = self.cosines[y].iter().zip(column).map(|(cosine, value)| cosine * value).sum();
            (value + LEVEL_SHIFT).round().clamp(0.0, MAXIMUM_SAMPLE) as u16
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A picture of 8 × `columns` pixels whose blocks have these differences of their mean (in steps of 8 / 16 levels).
    fn picture(columns: u16, restart_interval: u16, scan: &[u8]) -> Vec<u8> {
        let mut data = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
        data.extend([16; 64]);
        data.extend([0xFF, 0xC1, 0, 11, 12, 0, 8]);
        data.extend(columns.to_be_bytes());
        data.extend([1, 1, 0x11, 0]);
        // DC: codes 0 and 10 for the categories 0 and 4. AC: code 0 for "end of block".
        data.extend([0xFF, 0xC4, 0, 21, 0x00, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        data.extend([0xFF, 0xC4, 0, 20, 0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([0xFF, 0xDD, 0, 4]);
        data.extend(restart_interval.to_be_bytes());
        data.extend([0xFF, 0xDA, 0, 8, 1, 1, 0x00, 0, 63, 0]);
        data.extend(scan);
        data.extend([0xFF, 0xD9]);
        data
    }

    #[test]
    fn means_differences_and_restarts_are_decoded() {
        // Block 1: category 4 (10), value 15 (1111), end of block (0), then category 0 (0), end (0).
        // 15 * 16 / 8 = 30 above the middle.
        let plain = decode(&picture(10, 0, &[0b1011_1100, 0b0111_1111]), 8, 10).unwrap();
        assert!(plain.iter().all(|&sample| sample == 2078), "{plain:?}");
        assert_eq!(plain.len(), 80);
        // After a restart the difference counts from the middle again.
        let restarted = decode(&picture(16, 1, &[0b1011_1101, 0xFF, 0xD0, 0b0011_1111]), 8, 16).unwrap();
        assert_eq!((restarted[0], restarted[8]), (2078, 2048));
    }

    #[test]
    fn damage_is_an_error() {
        let good = picture(16, 0, &[0b1011_1100, 0b0111_1111]);
        assert!(decode(&good, 8, 16).is_ok());
        assert_eq!(
            decode(&good, 8, 15),
            Err("its frame header does not announce one component of 12 bits and the image's size")
        );
        assert_eq!(decode(&picture(80, 0, &[0b1011_1100]), 8, 80), Err("it is cut off"));
        assert_eq!(decode(&picture(16, 1, &[0b1011_1101, 0]), 8, 16), Err("a restart marker is missing"));
        assert_eq!(decode(b"", 8, 8), Err("it has no start of image"));
        for end in 0..good.len() - 3 {
            assert!(decode(&good[..end], 8, 16).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn damaged_pictures_never_panic(at in 0usize..300, byte: u8, scan in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut data = picture(40, 2, &scan);
            let length = data.len();
            data[at % length] = byte;
            let _ = decode(&data, 8, 40);
        }
    }
}
