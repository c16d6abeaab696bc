//! Text in pictures: one vendored font, drawn with ab_glyph, wrapped to a width.

use ab_glyph::{Font, FontRef, Glyph, GlyphId, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

static FONT_DATA: &[u8] = include_bytes!("fonts/DejaVuSans.ttf");

/// The font of all text in pictures.
pub struct TextFont {
    font: FontRef<'static>,
}

impl TextFont {
    /// `None` when the vendored font is damaged.
    #[must_use]
    pub fn load() -> Option<Self> {
        FontRef::try_from_slice(FONT_DATA).ok().map(|font| Self { font })
    }

    /// Height of a line in pixels at a font size in pixels.
    pub(super) fn line_height(&self, size: f32) -> u32 {
        let scaled = self.font.as_scaled(PxScale::from(size));
        (scaled.height() + scaled.line_gap()).ceil() as u32
    }

    /// Width of one line in pixels.
    #[must_use]
    pub fn width(&self, text: &str, size: f32) -> u32 {
        self.layout(text, size).1.ceil() as u32
    }

    /// Breaks `text` between words so that no line is wider than `max_width`; a single word that is wider is broken
    /// anywhere.
    pub(super) fn wrap(&self, text: &str, size: f32, max_width: u32) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        for word in text.split_whitespace() {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer, size) <= max_width {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for character in word.chars() {
                let longer = format!("{line}{character}");
                if line.is_empty() || self.width(&longer, size) <= max_width {
                    line = longer;
                } else {
                    lines.push(std::mem::replace(&mut line, character.to_string()));
                }
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
        lines
    }

    /// Draws one line with its top left corner at `x`, `y`; what lies outside of the picture is cut.
    pub fn draw(&self, picture: &mut RgbImage, text: &str, (x, y): (u32, u32), size: f32, colour: Rgb<u8>) {
        let (glyphs, _) = self.layout(text, size);
        let ascent = self.font.as_scaled(PxScale::from(size)).ascent();
        for mut glyph in glyphs {
            glyph.position = point(glyph.position.x + x as f32, y as f32 + ascent);
            let Some(outline) = self.font.outline_glyph(glyph) else { continue };
            let (left, top) = (outline.px_bounds().min.x, outline.px_bounds().min.y);
            outline.draw(|column, row, coverage| {
                let (px, py) = (left + column as f32, top + row as f32);
                if px < 0.0 || py < 0.0 {
                    return;
                }
                if let Some(pixel) = picture.get_pixel_mut_checked(px as u32, py as u32) {
                    let share = coverage.clamp(0.0, 1.0);
                    for (channel, ink) in pixel.0.iter_mut().zip(colour.0) {
                        *channel = (f32::from(*channel) * (1.0 - share) + f32::from(ink) * share).round() as u8;
                    }
                }
            });
        }
    }

    /// Glyphs on a baseline at 0, and the advance width of the whole line.
    fn layout(&self, text: &str, size: f32) -> (Vec<Glyph>, f32) {
        let scaled = self.font.as_scaled(PxScale::from(size));
        let mut caret = 0.0;
        let mut previous: Option<GlyphId> = None;
        let mut glyphs = Vec::with_capacity(text.len());
        for character in text.chars() {
            let id = scaled.glyph_id(character);
            if let Some(previous) = previous {
                caret += scaled.kern(previous, id);
            }
            glyphs.push(id.with_scale_and_position(PxScale::from(size), point(caret, 0.0)));
            caret += scaled.h_advance(id);
            previous = Some(id);
        }
        (glyphs, caret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_every_line_within_the_width() {
        let font = TextFont::load().unwrap();
        let text = "AI heat map  COVID-19 87.3 %  NOT FOR DIAGNOSTIC USE Donaudampfschifffahrtsgesellschaftskapitaen";
        for width in [60, 120, 300, 2000] {
            let lines = font.wrap(text, 14.0, width);
            assert!(lines.iter().all(|line| font.width(line, 14.0) <= width), "{width}: {lines:?}");
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(letters(&lines.concat()), letters(text));
        }
        assert!(font.wrap("   ", 14.0, 100).is_empty());
    }

    #[test]
    fn text_is_drawn_inside_its_line_and_cut_at_the_border() {
        let font = TextFont::load().unwrap();
        let mut picture = RgbImage::new(200, 60);
        font.draw(&mut picture, "Hgy", (10, 20), 20.0, Rgb([255, 255, 255]));
        let inked: Vec<_> =
            picture.enumerate_pixels().filter(|(_, _, p)| p.0[0] > 128).map(|(x, y, _)| (x, y)).collect();
        assert!(inked.len() > 50);
        let bottom = 20 + font.line_height(20.0);
        assert!(inked.iter().all(|&(x, y)| x >= 10 && x < 10 + font.width("Hgy", 20.0) && y >= 20 && y < bottom));
        font.draw(&mut picture, "WWWW", (190, 50), 40.0, Rgb([255, 0, 0]));
    }
}
