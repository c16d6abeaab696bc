//! The outlines of the pixels of one label, as polygons.

/// A point between pixels: columns from the left and rows from the top, the corner of the first pixel is 0, 0.
pub type Corner = [u32; 2];

/// The outlines of all pixels with `label` among `labels` (row after row, `columns` each): of each piece, pixels that touch
/// by their sides, and of each hole. They run along the sides of the pixels; pieces have their pixels at the right hand.
/// Every outline ends with the point that it begins with.
#[must_use]
pub fn outlines(labels: &[u8], columns: usize, label: u8) -> Vec<Vec<Corner>> {
    let grid = Grid { labels, columns, rows: labels.len().checked_div(columns).unwrap_or(0), label };
    // Each outline has a pixel whose upper side it runs along to the right.
    let mut has_run = vec![false; labels.len()];
    let mut found = Vec::new();
    for row in 0..grid.rows {
        for column in 0..columns {
            let is_upper_side = grid.has(row, column) && !(row > 0 && grid.has(row - 1, column));
            if is_upper_side && !has_run[row * columns + column] {
                found.push(grid.follow([column, row], &mut has_run));
            }
        }
    }
    found
}

struct Grid<'a> {
    labels: &'a [u8],
    columns: usize,
    rows: usize,
    label: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Heading {
    Right,
    Down,
    Left,
    Up,
}

impl Heading {
    const fn to_the_right(self) -> Self {
        match self {
            Self::Right => Self::Down,
            Self::Down => Self::Left,
            Self::Left => Self::Up,
            Self::Up => Self::Right,
        }
    }

    const fn to_the_left(self) -> Self {
        match self {
            Self::Right => Self::Up,
            Self::Up => Self::Left,
            Self::Left => Self::Down,
            Self::Down => Self::Right,
        }
    }
}

impl Grid<'_> {
    fn has(&self, row: usize, column: usize) -> bool {
        row < self.rows && column < self.columns && self.labels.get(row * self.columns + column) == Some(&self.label)
    }

    /// Whether the pixel whose lower right corner is `column`, `row` has the label; 0 is before the first.
    fn has_before(&self, row: usize, column: usize) -> bool {
        row.checked_sub(1).zip(column.checked_sub(1)).is_some_and(|(row, column)| self.has(row, column))
    }

    /// The pixels ahead of who comes to this corner: at the right hand, which is that of the piece, and at the left.
    fn ahead(&self, [x, y]: [usize; 2], heading: Heading) -> (bool, bool) {
        let upper_left = self.has_before(y, x);
        let upper_right = self.has_before(y, x + 1);
        let lower_left = self.has_before(y + 1, x);
        let lower_right = self.has_before(y + 1, x + 1);
        match heading {
            Heading::Right => (lower_right, upper_right),
            Heading::Down => (lower_left, lower_right),
            Heading::Left => (upper_left, lower_left),
            Heading::Up => (upper_right, upper_left),
        }
    }

    /// Goes around from the upper left corner of a pixel, to the right first, and notes the upper sides that are passed.
    fn follow(&self, start: [usize; 2], has_run: &mut [bool]) -> Vec<Corner> {
        let corner = |[x, y]: [usize; 2]| [x as u32, y as u32];
        let mut outline = vec![corner(start)];
        let (mut at, mut heading) = (start, Heading::Right);
        loop {
            if heading == Heading::Right
                && let Some(has_run) = has_run.get_mut(at[1] * self.columns + at[0])
            {
                *has_run = true;
            }
            match heading {
                Heading::Right => at[0] += 1,
                Heading::Down => at[1] += 1,
                Heading::Left => at[0] -= 1,
                Heading::Up => at[1] -= 1,
            }
            let turned = match self.ahead(at, heading) {
                (false, _) => heading.to_the_right(),
                (true, true) => heading.to_the_left(),
                (true, false) => heading,
            };
            if turned != heading {
                outline.push(corner(at));
                heading = turned;
            }
            if at == start && heading == Heading::Right {
                return outline;
            }
        }
    }
}

/// Leaves out what no point of the outline is farther from than `tolerance`, in pixels (Douglas and Peucker, 1973). A closed
/// outline stays closed.
#[must_use]
pub fn simplified(outline: &[Corner], tolerance: f64) -> Vec<Corner> {
    let Some(last) = outline.len().checked_sub(1).filter(|last| *last >= 2) else { return outline.to_vec() };
    let mut kept = vec![false; outline.len()];
    kept[0] = true;
    kept[last] = true;
    let mut open = if outline[0] == outline[last] {
        // A ring has no ends: it is cut where it is farthest from its beginning.
        let farthest = farthest(outline, 0, last).map_or(0, |(idx, _)| idx);
        kept[farthest] = true;
        vec![(0, farthest), (farthest, last)]
    } else {
        vec![(0, last)]
    };
    while let Some((first, last)) = open.pop() {
        if let Some((idx, distance)) = farthest(outline, first, last)
            && distance > tolerance
        {
            kept[idx] = true;
            open.extend([(first, idx), (idx, last)]);
        }
    }
    outline.iter().zip(kept).filter_map(|(corner, is_kept)| is_kept.then_some(*corner)).collect()
}

/// The corner between two others that is farthest from the line between them, the first of several.
fn farthest(outline: &[Corner], first: usize, last: usize) -> Option<(usize, f64)> {
    let between = (first + 1..last).map(|idx| (idx, distance(outline[idx], outline[first], outline[last])));
    between.reduce(|farthest, other| if other.1 > farthest.1 { other } else { farthest })
}

/// How far a corner is from the line from `start` to `end`.
fn distance(corner: Corner, start: Corner, end: Corner) -> f64 {
    let minus = |a: Corner, b: Corner| [0, 1].map(|axis| f64::from(a[axis]) - f64::from(b[axis]));
    let ([x, y], [line_x, line_y]) = (minus(corner, start), minus(end, start));
    let squared = line_x * line_x + line_y * line_y;
    let share = if squared > 0.0 { ((x * line_x + y * line_y) / squared).clamp(0.0, 1.0) } else { 0.0 };
    (x - share * line_x).hypot(y - share * line_y)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `#` is the label.
    fn of(picture: &[&str]) -> (Vec<u8>, usize) {
        let labels = picture.iter().flat_map(|row| row.bytes()).map(|pixel| u8::from(pixel == b'#')).collect();
        (labels, picture[0].len())
    }

    #[test]
    fn outlines_run_along_the_sides_of_pixels() {
        let (labels, columns) = of(&["....", ".##.", ".#..", "...."]);
        let found = outlines(&labels, columns, 1);
        assert_eq!(found, [vec![[1, 1], [3, 1], [3, 2], [2, 2], [2, 3], [1, 3], [1, 1]]]);
        let (labels, columns) = of(&["##", "##"]);
        assert_eq!(outlines(&labels, columns, 1), [vec![[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]);
        assert!(outlines(&labels, columns, 2).is_empty());
        assert!(outlines(&[], 0, 1).is_empty());
    }

    #[test]
    fn pieces_and_holes_have_outlines_of_their_own() {
        let (labels, columns) = of(&["#####.", "#...#.", "#.#.#.", "#...#.", "#####.", ".....#"]);
        let found = outlines(&labels, columns, 1);
        let hole = [[1, 1], [1, 4], [4, 4], [4, 1], [1, 1]];
        let mut starts: Vec<Corner> = found.iter().map(|outline| outline[0]).collect();
        starts.sort_unstable();
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().any(|outline| outline.len() == hole.len() && hole.iter().all(|at| outline.contains(at))));
        assert!(starts.contains(&[2, 2]) && starts.contains(&[5, 5]), "pixels that touch by a corner are two pieces");
    }

    #[test]
    fn a_staircase_becomes_a_line_and_a_square_stays_one() {
        // A triangle of stairs of one pixel.
        let side = 40;
        let labels: Vec<u8> = (0..side * side).map(|pixel| u8::from(pixel % side <= pixel / side)).collect();
        let found = outlines(&labels, side, 1);
        assert!(found[0].len() > 2 * side);
        let simple = simplified(&found[0], 1.0);
        assert!(simple.len() <= 6, "{simple:?}");
        assert_eq!(simple.first(), simple.last());
        let square = outlines(&[1; 16], 4, 1).remove(0);
        assert_eq!(simplified(&square, 1.0), square);
        assert_eq!(simplified(&square[..2], 1.0), &square[..2]);
    }

    /// Twice the area to the right of the outline: of pieces above 0, of holes below.
    fn twice_the_area(outline: &[Corner]) -> i64 {
        let cross = |pair: &[Corner]| {
            let [[ax, ay], [bx, by]] = [pair[0].map(i64::from), pair[1].map(i64::from)];
            ax * by - bx * ay
        };
        outline.windows(2).map(cross).sum()
    }

    proptest! {
        #[test]
        fn outlines_enclose_exactly_the_pixels(
            columns in 1_usize..12,
            pixels in proptest::collection::vec(0_u8..2, 1..120),
        ) {
            let rows = pixels.len() / columns;
            let labels = &pixels[..rows * columns];
            let found = outlines(labels, columns, 1);
            let area: i64 = found.iter().map(|outline| twice_the_area(outline)).sum();
            prop_assert_eq!(area, 2 * labels.iter().map(|label| i64::from(*label == 1)).sum::<i64>());
            for outline in &found {
                prop_assert_eq!(outline.first(), outline.last());
                prop_assert!(outline.len() >= 5);
                prop_assert!(outline.iter().all(|[x, y]| *x as usize <= columns && *y as usize <= rows));
            }
        }

        #[test]
        fn nothing_is_moved_by_more_than_the_tolerance(
            columns in 1_usize..16,
            pixels in proptest::collection::vec(0_u8..2, 1..200),
        ) {
            let rows = pixels.len() / columns;
            for outline in outlines(&pixels[..rows * columns], columns, 1) {
                let simple = simplified(&outline, 1.0);
                prop_assert_eq!(simple.first(), simple.last());
                for corner in &outline {
                    let nearest = simple.windows(2).map(|line| distance(*corner, line[0], line[1])).fold(f64::MAX, f64::min);
                    prop_assert!(nearest <= 1.0);
                }
            }
        }
    }
}
