//! Chen et al.'s rule for a scan (Sci Rep 2020;10:19196): positive where lesions lie in the same quadrant of the image
//! on three consecutive slices.

/// In this order: upper left, upper right, lower left, lower right, of a slice on the patient's axes (the patient's right at
/// the left, the front above).
pub type Quadrants = [bool; 4];

/// How many consecutive slices the publication asks for.
pub const CONSECUTIVE_SLICES: usize = 3;

/// The quadrants of a slice that hold at least `minimum_pixels` (0 counts as 1) pixels of lesion. `mask` has `rows *
/// columns` pixels, row-major; the middle row or column of an odd side belongs to the lower or right half. A mask of
/// another length is read as far as it goes.
#[must_use]
pub fn quadrants_with_lesion(mask: &[bool], rows: usize, columns: usize, minimum_pixels: usize) -> Quadrants {
    let mut n_pixels = [0usize; 4];
    for (row_idx, row) in mask.chunks(columns.max(1)).take(rows).enumerate() {
        let (left, right) = row.split_at((columns / 2).min(row.len()));
        let count = |pixels: &[bool]| pixels.iter().filter(|is_lesion| **is_lesion).count();
        let [upper_left, upper_right, lower_left, lower_right] = &mut n_pixels;
        let (of_left, of_right) =
            if row_idx < rows / 2 { (upper_left, upper_right) } else { (lower_left, lower_right) };
        *of_left += count(left);
        *of_right += count(right);
    }
    n_pixels.map(|count| count >= minimum_pixels.max(1))
}

/// The most consecutive slices with lesions in one quadrant. `slices` as in [`consecutive_lesions`].
#[must_use]
pub fn longest_run(slices: &[Quadrants]) -> usize {
    let of_quadrant = |quadrant_idx: usize| {
        let runs = slices.split(|slice| !slice.get(quadrant_idx).copied().unwrap_or(false));
        runs.map(<[Quadrants]>::len).max().unwrap_or(0)
    };
    (0..4).map(of_quadrant).max().unwrap_or(0)
}

/// The first run of `n_consecutive` (0 counts as 1) slices with lesions in one quadrant: index of its first slice and
/// of the quadrant. `None` means that the rule does not call the scan positive. `slices` are in spatial order without
/// gaps: a slice that was left out must be there with no lesion, or its neighbours would count as consecutive.
#[must_use]
pub fn consecutive_lesions(slices: &[Quadrants], n_consecutive: usize) -> Option<(usize, usize)> {
    slices.windows(n_consecutive.max(1)).enumerate().find_map(|(first_slice_idx, window)| {
        let quadrant_idx = (0..4)
            .find(|quadrant_idx| window.iter().all(|slice| slice.get(*quadrant_idx).copied().unwrap_or(false)))?;
        Some((first_slice_idx, quadrant_idx))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Quadrants = [false; 4];

    fn only(quadrant_idx: usize) -> Quadrants {
        let mut quadrants = NONE;
        quadrants[quadrant_idx] = true;
        quadrants
    }

    #[test]
    fn three_slices_in_one_quadrant_are_positive_and_less_is_not() {
        assert_eq!(consecutive_lesions(&[NONE, only(2), only(2), only(2)], 3), Some((1, 2)));
        assert_eq!(consecutive_lesions(&[[true; 4], only(3), [true, false, false, true]], 3), Some((0, 3)));
        // Two, a gap, two; and three slices in three quadrants.
        assert_eq!(consecutive_lesions(&[only(1), only(1), NONE, only(1), only(1)], 3), None);
        assert_eq!(consecutive_lesions(&[only(0), only(1), only(2)], 3), None);
        assert_eq!(consecutive_lesions(&[only(0), only(0)], 3), None);
        assert_eq!(consecutive_lesions(&[], 3), None);
        assert_eq!(consecutive_lesions(&[NONE, only(0)], 0), Some((1, 0)));
    }

    #[test]
    fn the_longest_run_is_of_one_quadrant() {
        assert_eq!(longest_run(&[]), 0);
        assert_eq!(longest_run(&[NONE, NONE]), 0);
        assert_eq!(longest_run(&[only(0), only(1), only(1), NONE, only(1)]), 2);
        assert_eq!(longest_run(&[[true; 4], only(3), [false, false, true, true], only(2)]), 3);
    }

    #[test]
    fn pixels_belong_to_quadrants_and_specks_do_not_count() {
        // 3 rows, 5 columns: the middle row is lower, the middle column right.
        let with = |pixels: &[usize], minimum_pixels| {
            let mut mask = [false; 15];
            for pixel in pixels {
                mask[*pixel] = true;
            }
            quadrants_with_lesion(&mask, 3, 5, minimum_pixels)
        };
        assert_eq!(with(&[0, 1], 1), only(0));
        assert_eq!(with(&[2], 1), only(1));
        assert_eq!(with(&[5, 6, 10], 3), only(2));
        assert_eq!(with(&[7, 14, 0], 2), only(3));
        assert_eq!(with(&[], 0), NONE);
    }
}
