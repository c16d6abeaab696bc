//! Text in pictures: vendored fonts, drawn with ab_glyph, wrapped to a width.
//!
//! DejaVu Sans has Latin, Greek and Cyrillic letters; what it lacks is taken from a font of Chinese characters, kana and
//! JIS level 1 kanji, then from one of Hangul. What all lack is a box, so that nobody takes it for a space.

use std::collections::BTreeSet;

use ab_glyph::{Font, FontRef, Glyph, GlyphId, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

static MAIN_FONT_DATA: &[u8] = include_bytes!("fonts/DejaVuSans.ttf");
static CJK_FONT_DATA: &[u8] = include_bytes!("fonts/CjkFallback.ttf");
static HANGUL_FONT_DATA: &[u8] = include_bytes!("fonts/HangulFallback.ttf");

/// Which of the fonts draws a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    Main,
    Cjk,
    Hangul,
}

/// The fonts of all text in pictures.
pub struct TextFont {
    main: FontRef<'static>,
    cjk: FontRef<'static>,
    hangul: FontRef<'static>,
}

impl TextFont {
    /// `None` when a vendored font is damaged.
    #[must_use]
    pub fn load() -> Option<Self> {
        let load = |data| FontRef::try_from_slice(data).ok();
        Some(Self { main: load(MAIN_FONT_DATA)?, cjk: load(CJK_FONT_DATA)?, hangul: load(HANGUL_FONT_DATA)? })
    }

    /// Height of a line in pixels at a font size in pixels.
    pub(super) fn line_height(&self, size: f32) -> u32 {
        let scaled = self.main.as_scaled(PxScale::from(size));
        (scaled.height() + scaled.line_gap()).ceil() as u32
    }

    /// The characters of `text` that lines cannot show: those that no font has, and those of scripts that run from right to
    /// left and join their letters, for lines are laid out letter by letter from left to right.
    #[must_use]
    pub fn unwritable(&self, text: &str) -> BTreeSet<char> {
        let shown = |character| self.face(character).is_some() && !runs_leftwards(character);
        text.chars().filter(|character| !character.is_control() && !shown(*character)).collect()
    }

    /// Width of one line in pixels.
    #[must_use]
    pub fn width(&self, text: &str, size: f32) -> u32 {
        self.layout(text, size).1.ceil() as u32
    }

    /// Breaks `text` between words, and anywhere between Chinese or Japanese characters, so that no line is wider than
    /// `max_width`. No line begins with a closing sign or ends with an opening one. What has no such place and is wider is broken
    /// anywhere.
    pub(super) fn wrap(&self, text: &str, size: f32, max_width: u32) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = String::new();
        for (piece, follows_space) in pieces(text) {
            let joint = if follows_space && !line.is_empty() { " " } else { "" };
            let longer = format!("{line}{joint}{piece}");
            if self.width(&longer, size) <= max_width {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for character in piece.chars() {
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
        let ascent = self.main.as_scaled(PxScale::from(size)).ascent();
        for (face, mut glyph) in glyphs {
            glyph.position = point(glyph.position.x + x as f32, y as f32 + ascent);
            let Some(outline) = self.font(face).outline_glyph(glyph) else { continue };
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

    const fn font(&self, face: Face) -> &FontRef<'static> {
        match face {
            Face::Main => &self.main,
            Face::Cjk => &self.cjk,
            Face::Hangul => &self.hangul,
        }
    }

    /// `None`: no font has the character.
    fn face(&self, character: char) -> Option<Face> {
        [Face::Main, Face::Cjk, Face::Hangul]
            .into_iter()
            .find(|face| self.font(*face).glyph_id(character) != GlyphId(0))
    }

    /// At a font size, the fonts' ems are as large as one another.
    fn scale(&self, face: Face, size: f32) -> PxScale {
        let ems = |font: &FontRef<'static>| font.height_unscaled() / font.units_per_em().unwrap_or(1.0);
        PxScale::from(size * ems(self.font(face)) / ems(&self.main))
    }

    /// Glyphs on a baseline at 0, and the advance width of the whole line.
    fn layout(&self, text: &str, size: f32) -> (Vec<(Face, Glyph)>, f32) {
        let mut caret = 0.0;
        let mut previous: Option<(Face, GlyphId)> = None;
        let mut glyphs = Vec::with_capacity(text.len());
        for character in text.chars() {
            let face = self.face(character).unwrap_or(Face::Main); // whose glyph 0 is a box
            let scale = self.scale(face, size);
            let scaled = self.font(face).as_scaled(scale);
            let id = scaled.glyph_id(character);
            if let Some((_, before)) = previous.filter(|(of, _)| *of == face) {
                caret += scaled.kern(before, id);
            }
            glyphs.push((face, id.with_scale_and_position(scale, point(caret, 0.0))));
            caret += scaled.h_advance(id);
            previous = Some((face, id));
        }
        (glyphs, caret)
    }
}

/// The parts of a text between which a line may break, and whether white space is before them.
fn pieces(text: &str) -> Vec<(String, bool)> {
    let mut pieces: Vec<(String, bool)> = Vec::new();
    for word in text.split_whitespace() {
        let mut piece = String::new();
        let mut follows_space = true;
        if word.starts_with(|first| CLOSING.contains(first))
            && let Some((before, of_before)) = pieces.pop()
        {
            piece = before + " ";
            follows_space = of_before;
        }
        for character in word.chars() {
            if piece.chars().next_back().is_some_and(|before| may_break(before, character)) {
                pieces.push((std::mem::take(&mut piece), follows_space));
                follows_space = false;
            }
            piece.push(character);
        }
        pieces.push((piece, follows_space));
    }
    pieces
}

fn may_break(before: char, after: char) -> bool {
    (is_ideographic(before) || is_ideographic(after)) && !OPENING.contains(before) && !CLOSING.contains(after)
}

/// Characters of scripts that are written without spaces, and their punctuation.
const fn is_ideographic(character: char) -> bool {
    matches!(character, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{3ffff}')
}

/// Hebrew, Arabic and the scripts beside them.
const fn runs_leftwards(character: char) -> bool {
    matches!(character, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}' | '\u{10800}'..='\u{10fff}')
}

/// Signs that stay with what follows.
const OPENING: &str = "([{（［｛「『【〔〈《“‘〖";
/// Signs, and small kana, that stay with what is before.
const CLOSING: &str =
    ")]}）］｝」』】〕〉》”’〗、。，．,.：:；;！!？?％%‰℃°·・…—～ー々ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ";

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
    fn chinese_breaks_between_any_characters_but_not_before_closing_signs() {
        let font = TextFont::load().unwrap();
        let text = "热图显示影响输出的区域，而不是病灶轮廓（见说明）。输出低于阈值 50.0 % 并不排除感染，仅供研究使用。";
        for width in [60, 90, 133, 200] {
            let lines = font.wrap(text, 14.0, width);
            assert!(lines.len() > 2 && lines.iter().all(|line| font.width(line, 14.0) <= width), "{width}: {lines:?}");
            assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
            for line in &lines {
                assert!(!line.starts_with(|first| CLOSING.contains(first)), "{width}: {lines:?}");
                assert!(!line.ends_with(|last| OPENING.contains(last)), "{width}: {lines:?}");
            }
            // A line is filled: it holds more than a character less than what fits.
            assert!(lines[..lines.len() - 1].iter().all(|line| font.width(line, 14.0) + 60 > width), "{lines:?}");
        }
        assert_eq!(pieces("of 50.0 % ("), [("of", true), ("50.0 %", true), ("(", true)].map(owned));
        assert_eq!(
            pieces("AI 热图，50%。"),
            [("AI", true), ("热", true), ("图，", false), ("50%。", false)].map(owned)
        );
    }

    fn owned((piece, follows_space): (&str, bool)) -> (String, bool) {
        (piece.to_owned(), follows_space)
    }

    #[test]
    fn every_character_of_a_line_has_ink_and_what_no_font_has_is_a_box() {
        let font = TextFont::load().unwrap();
        let ink = |text: &str| {
            let mut picture = RgbImage::new(40, 40);
            font.draw(&mut picture, text, (4, 4), 24.0, Rgb([255; 3]));
            picture
        };
        for (text, face) in [
            ("a", Some(Face::Main)),
            ("Ж", Some(Face::Main)),
            ("诚", Some(Face::Cjk)),
            ("誠", Some(Face::Cjk)),
            ("カ", Some(Face::Cjk)),
            ("가", Some(Face::Hangul)),
            ("똠", Some(Face::Hangul)),
            ("힣", Some(Face::Hangul)),
            ("ㅎ", Some(Face::Hangul)),
            ("क", None),
        ] {
            assert_eq!(font.face(text.chars().next().unwrap()), face, "{text}");
            let inked = ink(text).pixels().filter(|pixel| pixel.0[0] > 128).count();
            assert!(inked > 20, "{text} has {inked} pixels");
        }
        assert_eq!(font.unwritable("Ünïcode Ж 诚 カ 가, שלום क\n").into_iter().collect::<String>(), "ולםשक");
        assert_ne!(ink("诚"), ink("诊"));
        assert_ne!(ink("가"), ink("나"));
        assert_eq!(ink("क"), ink("ख"), "one box for all that is missing");
        // A Chinese or Korean character is about as wide as its em and does not stand out of the line.
        for text in ["诚", "힣"] {
            let picture = ink(text);
            let rows: Vec<u32> =
                picture.enumerate_pixels().filter(|(_, _, p)| p.0[0] > 128).map(|(_, y, _)| y).collect();
            let (top, bottom) = (rows.iter().min().unwrap(), rows.iter().max().unwrap());
            assert!(*top >= 4 && *bottom < 4 + font.line_height(24.0), "{text}: {top} to {bottom}");
            assert!((15..=25).contains(&font.width(text, 24.0)), "{text}: {}", font.width(text, 24.0));
        }
    }

    /// A sentence that the fonts cannot write would be boxes on every picture.
    #[test]
    fn the_fonts_have_every_character_of_the_built_in_texts() {
        let font = TextFont::load().unwrap();
        let texts = [
            include_str!("../report/texts/en/picture.ftl"),
            include_str!("../report/texts/en/report.ftl"),
            include_str!("../report/texts/zh/picture.ftl"),
            include_str!("../report/texts/zh/report.ftl"),
        ];
        assert_eq!(font.unwritable(&texts.concat()), BTreeSet::new());
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
