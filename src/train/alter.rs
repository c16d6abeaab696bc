//! Pictures altered so that they show what a classifier looks at (models with shortcuts keep their answers when the lungs
//! are gone; DeGrave, Janizek and Lee, Nat Mach Intell 2021;3:610-619).

use crate::{
    imaging::{
        Plane,
        lungs::{BACKGROUND, LEFT_LUNG, Lungs, RIGHT_LUNG},
    },
    infer::Examination,
    types::Placement,
};

/// Side of each blackened corner, as a share of the picture's shorter side.
const CORNER: f64 = 0.125;
/// Grey from which a pixel outside the lungs may be a marker: letters of lead are the brightest that there is.
const MARKER_GREY: f32 = 0.98;
/// Margin around the lungs' box, as a share of the canvas.
const BOX_MARGIN: f64 = 0.05;

/// One way to alter a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alteration {
    /// The lungs are black.
    BackgroundOnly,
    /// White lungs on black: their shape is all that is left.
    MaskOnly,
    /// The corners, where markers and texts are, are black.
    CornersHidden,
    /// The brightest pixels outside the lungs are black.
    MarkersHidden,
    /// Everything outside the lungs' box is black.
    OutsideHidden,
    /// Left and right are exchanged, of picture and lungs.
    Flipped,
}

impl Alteration {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::BackgroundOnly,
        Self::MaskOnly,
        Self::CornersHidden,
        Self::MarkersHidden,
        Self::OutsideHidden,
        Self::Flipped,
    ];

    /// As reports name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BackgroundOnly => "background_only",
            Self::MaskOnly => "mask_only",
            Self::CornersHidden => "corners_hidden",
            Self::MarkersHidden => "markers_hidden",
            Self::OutsideHidden => "outside_hidden",
            Self::Flipped => "flipped",
        }
    }

    /// What was done, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::BackgroundOnly => "lungs blackened, background only",
            Self::MaskOnly => "white lungs on black, mask only",
            Self::CornersHidden => "corners blackened",
            Self::MarkersHidden => "brightest pixels outside the lungs blackened",
            Self::OutsideHidden => "everything outside the lungs' box blackened",
            Self::Flipped => "left and right exchanged",
        }
    }

    /// Whether the lungs' texture is gone, so that nothing should be left to tell classes apart.
    #[must_use]
    pub const fn leaves_nothing(self) -> bool {
        matches!(self, Self::BackgroundOnly | Self::MaskOnly)
    }

    /// The altered picture, its place on the canvas, and the lungs that belong to it.
    #[must_use]
    pub fn apply(self, seen: &Examination) -> (Plane, Placement, Lungs) {
        let mut canvas = seen.canvas.clone();
        let is_lung = |row: usize, column: usize| label_at(&seen.lungs, &seen.canvas, row, column) != BACKGROUND;
        match self {
            Self::BackgroundOnly => black(&mut canvas, |row, column, _| is_lung(row, column)),
            Self::MaskOnly => {
                let columns = canvas.columns;
                for (idx, value) in canvas.values.iter_mut().enumerate() {
                    *value = f32::from(u8::from(is_lung(idx / columns, idx % columns)));
                }
            }
            Self::CornersHidden => {
                let Placement { source_rows, source_columns, pad_top, pad_left, .. } = seen.placement;
                let [rows, columns, top, left] =
                    [source_rows, source_columns, pad_top, pad_left].map(|pixels| pixels as usize);
                let side = (rows.min(columns) as f64 * CORNER).round() as usize;
                let near = |place: usize, start: usize, length: usize| {
                    (start..start + side).contains(&place) || (start + length - side..start + length).contains(&place)
                };
                black(&mut canvas, |row, column, _| near(row, top, rows) && near(column, left, columns));
            }
            Self::MarkersHidden => {
                black(&mut canvas, |row, column, value| value >= MARKER_GREY && !is_lung(row, column));
            }
            Self::OutsideHidden => {
                if let Some((first_row, last_row, first_column, last_column)) = seen.lungs.bounds() {
                    let side = seen.lungs.side as f64;
                    let inside = |place: usize, length: usize, first: usize, last: usize| {
                        let place = (place as f64 + 0.5) / length as f64;
                        (first as f64 / side - BOX_MARGIN..(last + 1) as f64 / side + BOX_MARGIN).contains(&place)
                    };
                    let (rows, columns) = (canvas.rows, canvas.columns);
                    black(&mut canvas, |row, column, _| {
                        !(inside(row, rows, first_row, last_row) && inside(column, columns, first_column, last_column))
                    });
                }
            }
            Self::Flipped => return flipped(seen),
        }
        (canvas, seen.placement, seen.lungs.clone())
    }
}

/// The lung label of a pixel of the canvas.
pub(super) fn label_at(lungs: &Lungs, canvas: &Plane, row: usize, column: usize) -> u8 {
    let cell = |place: usize, length: usize| ((place as f64 + 0.5) / length as f64 * lungs.side as f64) as usize;
    let (row, column) = (cell(row, canvas.rows), cell(column, canvas.columns));
    lungs.labels.get(row * lungs.side + column).copied().unwrap_or(BACKGROUND)
}

fn black(canvas: &mut Plane, is_hidden: impl Fn(usize, usize, f32) -> bool) {
    let columns = canvas.columns;
    for (idx, value) in canvas.values.iter_mut().enumerate() {
        if is_hidden(idx / columns, idx % columns, *value) {
            *value = 0.0;
        }
    }
}

fn flipped(seen: &Examination) -> (Plane, Placement, Lungs) {
    let (mut canvas, mut lungs, placement) = (seen.canvas.clone(), seen.lungs.clone(), seen.placement);
    canvas.values.chunks_exact_mut(canvas.columns.max(1)).for_each(<[f32]>::reverse);
    lungs.labels.chunks_exact_mut(lungs.side.max(1)).for_each(<[u8]>::reverse);
    for label in &mut lungs.labels {
        *label = match *label {
            RIGHT_LUNG => LEFT_LUNG,
            LEFT_LUNG => RIGHT_LUNG,
            other => other,
        };
    }
    let pad_left = placement.side - placement.source_columns - placement.pad_left;
    (canvas, Placement { pad_left, ..placement }, lungs)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "black is 0 and what is left alone keeps its bits")]
mod tests {
    use super::*;
    use crate::imaging::canvas;

    /// 40 rows and 61 columns; two lungs, a marker at the top right, everything else grey.
    fn seen() -> Examination {
        let mut picture = Plane::filled(40, 61, 0.5);
        picture.values[2 * 61 + 57] = 1.0;
        let (canvas, placement) = canvas::pad_to_square(&picture).unwrap();
        let mut probabilities = Plane::filled(61, 61, 0.0);
        for row in 20..40 {
            for column in (10..25).chain(35..50) {
                probabilities.values[row * 61 + column] = 1.0;
            }
        }
        let lungs = Lungs::from_probabilities(&probabilities, &placement);
        Examination { gates: Vec::new(), placement, canvas, lungs }
    }

    fn altered(alteration: Alteration) -> (Examination, Plane) {
        let seen = seen();
        let (canvas, _, _) = alteration.apply(&seen);
        assert_eq!((canvas.rows, canvas.columns), (61, 61));
        (seen, canvas)
    }

    #[test]
    fn lungs_and_background_go_in_turn() {
        let (seen, background) = altered(Alteration::BackgroundOnly);
        let (_, mask) = altered(Alteration::MaskOnly);
        let lung = 30 * 61 + 15;
        assert!(background.values[lung] == 0.0 && mask.values[lung] == 1.0);
        let between = 30 * 61 + 30;
        assert!(background.values[between] == 0.5 && mask.values[between] == 0.0);
        let lungs = mask.values.iter().sum::<f32>() as usize;
        assert_eq!(lungs, seen.lungs.labels.iter().filter(|label| **label != BACKGROUND).count());
    }

    #[test]
    fn corners_markers_and_surroundings_are_hidden() {
        let (seen, corners) = altered(Alteration::CornersHidden);
        let top = seen.placement.pad_top as usize;
        // 12.5 % of 40 rows: 5 pixels.
        assert!(corners.values[(top + 4) * 61 + 4] == 0.0 && corners.values[(top + 4) * 61 + 5] == 0.5);
        assert!(corners.values[(top + 39) * 61 + 60] == 0.0 && corners.values[(top + 20) * 61] == 0.5);
        let marker = (top + 2) * 61 + 57;
        let (_, markers) = altered(Alteration::MarkersHidden);
        assert_eq!(markers.values.iter().zip(&seen.canvas.values).filter(|(a, b)| a != b).count(), 1);
        assert!(seen.canvas.values[marker] == 1.0 && markers.values[marker] == 0.0);
        let (_, outside) = altered(Alteration::OutsideHidden);
        assert!(outside.values[marker] == 0.0 && outside.values[30 * 61 + 30] == 0.5);
    }

    #[test]
    fn flipping_twice_changes_nothing() {
        let seen = seen();
        let (canvas, placement, lungs) = Alteration::Flipped.apply(&seen);
        assert_ne!(canvas, seen.canvas);
        assert_eq!(lungs.labels[30 * 61 + 61 - 1 - 15], LEFT_LUNG, "the right lung, seen in a mirror");
        let again = Examination { canvas, placement, lungs, gates: Vec::new() };
        let (canvas, placement, lungs) = Alteration::Flipped.apply(&again);
        assert_eq!((canvas, placement, lungs), (seen.canvas, seen.placement, seen.lungs));
    }
}
