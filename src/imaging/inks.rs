//! The colours of pictures: one scale for heat, one ink for each thing that is outlined or filled.
//!
//! Chosen for every eye: with red or green cones missing the scale still rises in lightness from end to end, and no two
//! inks look alike. The tests simulate both (Machado, Oliveira, Fernandes, IEEE TVCG 2009;15:1291-1298, full severity).

use image::Rgb;

use super::heat::HOT;

pub(super) const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
pub(super) const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
pub(super) const GREY: Rgb<u8> = Rgb([190, 190, 190]);
pub(super) const AMBER: Rgb<u8> = Rgb([255, 191, 0]);

pub(super) const RIGHT_LUNG_INK: Rgb<u8> = Rgb([120, 220, 255]);
pub(super) const LEFT_LUNG_INK: Rgb<u8> = Rgb([255, 255, 120]);
pub(super) const AIRWAY_INK: Rgb<u8> = Rgb([60, 90, 255]);
pub(super) const OPACITY_INK: Rgb<u8> = Rgb([230, 159, 0]);
pub(super) const CONSOLIDATION_INK: Rgb<u8> = Rgb([200, 40, 0]);
pub(super) const HEAT_INK: Rgb<u8> = Rgb([204, 121, 167]);

/// Heat, relative to the maximum, below which nothing of a radiograph is coloured.
pub const FAINTEST_HEAT: f32 = 0.3;
/// The part of the colour map that is used: neither so dark that it vanishes over air nor so light that it does over bone.
const PART_OF_MAP: (f32, f32) = (0.1, 0.95);
/// Share of colour over grey where the heat is faintest and where it is strongest: anatomy stays visible below it.
const OPACITY: (f32, f32) = (0.25, 0.55);
/// Share of the ink of a filled area over grey.
const FILL_SHARE: f32 = 0.45;

/// The colour of a heat from [`FAINTEST_HEAT`] to 1.
pub(super) fn heat_ink(heat: f32) -> Rgb<u8> {
    let at = PART_OF_MAP.0 + (PART_OF_MAP.1 - PART_OF_MAP.0) * above_faintest(heat);
    let colour = colorous::PLASMA.eval_continuous(f64::from(at));
    Rgb([colour.r, colour.g, colour.b])
}

/// The line where the heat is half its maximum: the lightest colour, opaque, so that it shows over what the colours below it
/// happen to match in grey.
pub(super) fn hot_line_ink() -> Rgb<u8> {
    heat_ink(1.0)
}

/// Colour over grey: nothing below [`FAINTEST_HEAT`], from there more opaque with the heat.
pub(super) fn heated(grey: u8, heat: f32) -> Rgb<u8> {
    if heat < FAINTEST_HEAT {
        return Rgb([grey; 3]);
    }
    let share = OPACITY.0 + (OPACITY.1 - OPACITY.0) * above_faintest(heat);
    mixed(grey, heat_ink(heat), share)
}

/// The ink of a filled area over grey.
pub(super) fn filled(grey: u8, ink: Rgb<u8>) -> Rgb<u8> {
    mixed(grey, ink, FILL_SHARE)
}

fn above_faintest(heat: f32) -> f32 {
    ((heat - FAINTEST_HEAT) / (1.0 - FAINTEST_HEAT)).clamp(0.0, 1.0)
}

fn mixed(grey: u8, ink: Rgb<u8>, share: f32) -> Rgb<u8> {
    Rgb(ink.0.map(|channel| (f32::from(grey) * (1.0 - share) + f32::from(channel) * share).round() as u8))
}

/// The line at half the maximum lies within what is coloured.
const _: () = assert!(HOT > FAINTEST_HEAT);

#[cfg(test)]
mod tests {
    use super::*;

    /// Of linear sRGB: nobody's, protanopia, deuteranopia.
    const EYES: [(&str, [[f64; 3]; 3]); 3] = [
        ("usual", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        (
            "protanopia",
            [
                [0.152_286, 1.052_583, -0.204_868],
                [0.114_503, 0.786_281, 0.099_216],
                [-0.003_882, -0.048_116, 1.051_998],
            ],
        ),
        (
            "deuteranopia",
            [[0.367_322, 0.860_646, -0.227_968], [0.280_085, 0.672_501, 0.047_413], [-0.011_820, 0.042_940, 0.968_881]],
        ),
    ];

    /// CIELAB (D65) of what an eye sees of a colour.
    fn seen(Rgb(colour): Rgb<u8>, eye: [[f64; 3]; 3]) -> [f64; 3] {
        let linear = colour.map(|channel| {
            let share = f64::from(channel) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        });
        let row = |weights: [f64; 3]| weights.iter().zip(linear).map(|(weight, value)| weight * value).sum::<f64>();
        let [red, green, blue] = eye.map(|weights| row(weights).clamp(0.0, 1.0));
        let [x, y, z] = [
            (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.950_47,
            0.2126 * red + 0.7152 * green + 0.0722 * blue,
            (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.088_83,
        ]
        .map(|t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 });
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    fn difference(one: Rgb<u8>, other: Rgb<u8>, eye: [[f64; 3]; 3]) -> f64 {
        let squares = seen(one, eye).into_iter().zip(seen(other, eye)).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f64>().sqrt()
    }

    #[test]
    fn the_scale_rises_in_lightness_for_every_eye() {
        for (name, eye) in EYES {
            let lightness: Vec<f64> =
                (0..=35).map(|step| seen(heat_ink(FAINTEST_HEAT + step as f32 * 0.02), eye)[0]).collect();
            for pair in lightness.windows(2) {
                assert!(pair[1] > pair[0], "{name}: {lightness:?}");
            }
            assert!(lightness[35] - lightness[0] > 55.0, "{name}: {lightness:?}");
        }
    }

    #[test]
    fn the_former_rainbow_would_fail_this() {
        let lightness: Vec<f64> = (30..=100)
            .map(|step| {
                let colour = colorous::TURBO.eval_continuous(f64::from(step) / 100.0);
                seen(Rgb([colour.r, colour.g, colour.b]), EYES[0].1)[0]
            })
            .collect();
        assert!(lightness.windows(2).any(|pair| pair[1] < pair[0]));
    }

    /// A difference of 2 is just noticeable side by side. Eyes without red or green cones see some mixture as grey whatever the
    /// map is; for them the line at half the maximum marks the place.
    #[test]
    fn heat_is_visible_over_every_grey() {
        for grey in (0..=255).step_by(5) {
            for step in 0..=14 {
                let heat = FAINTEST_HEAT + step as f32 * 0.05;
                let far = difference(heated(grey, heat), Rgb([grey; 3]), EYES[0].1);
                assert!(far > 15.0, "heat {heat} over grey {grey}: {far}");
            }
            for (name, eye) in EYES {
                let hot = heated(grey, HOT);
                let far = difference(hot_line_ink(), hot, eye);
                assert!(far > 15.0, "{name}: the line over grey {grey}: {far}");
            }
        }
    }

    #[test]
    fn no_two_inks_look_alike_to_any_eye() {
        let inks = [RIGHT_LUNG_INK, LEFT_LUNG_INK, AIRWAY_INK, OPACITY_INK, CONSOLIDATION_INK, HEAT_INK];
        for (name, eye) in EYES {
            for (number, &one) in inks.iter().enumerate() {
                for &other in &inks[..number] {
                    let far = difference(one, other, eye);
                    assert!(far > 20.0, "{name}: {one:?} and {other:?} differ by {far}");
                }
            }
            // As they are filled over the greys that they lie on: -600 HU and above, -100 HU and above in the lung window.
            for (grey, dense) in [(128, 213), (170, 255)] {
                let far = difference(filled(grey, OPACITY_INK), filled(dense, CONSOLIDATION_INK), eye);
                assert!(far > 10.0, "{name}: the fills differ by {far}");
            }
        }
    }

    #[test]
    fn below_the_faintest_all_is_grey() {
        assert_eq!(heated(77, FAINTEST_HEAT - 0.01), Rgb([77; 3]));
        assert_eq!(heated(77, 0.0), Rgb([77; 3]));
        assert_ne!(heated(77, FAINTEST_HEAT), Rgb([77; 3]));
        assert_eq!(heat_ink(2.0), heat_ink(1.0));
    }
}
