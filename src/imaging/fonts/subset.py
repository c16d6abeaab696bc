"""Makes CjkFallback.ttf and HangulFallback.ttf from two fonts of Debian:

    fonts-droid-fallback 1:6.0.1r16-1.1   usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf
    fonts-nanum 20200506-1                usr/share/fonts/truetype/nanum/NanumGothic.ttf

    pip install fonttools==4.68.0
    python subset.py DroidSansFallbackFull.ttf NanumGothic.ttf

CjkFallback.ttf keeps the characters of GB 2312 (levels 1 and 2), of JIS X 0208 up to level 1, kana, CJK punctuation,
full-width forms, and every character of the built-in catalogues of texts. HangulFallback.ttf keeps every syllable and the
compatibility jamo, and no name of its source, as its licence asks for.
"""

import pathlib
import sys

from fontTools import subset

OPEN_FONT_LICENCE = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
OPEN_FONT_PAGE = "https://openfontlicense.org"


def decodable(codec, leads):
    """Characters of a set of 94 x 94, by its rows."""
    for lead in leads:
        for trail in range(0xA1, 0xFF):
            text = bytes([lead, trail]).decode(codec, errors="ignore")
            if len(text) == 1:
                yield ord(text)


def write(source, target, characters, own_name=None):
    options = subset.Options()
    options.hinting = False
    options.layout_features = []
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "BASE", "vhea", "vmtx"]
    options.notdef_outline = True
    if own_name:
        options.name_IDs = [0]  # copyright
    font = subset.load_font(source, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    if own_name:
        names = {1: own_name, 2: "Regular", 4: own_name, 6: own_name.replace(" ", ""), 13: OPEN_FONT_LICENCE, 14: OPEN_FONT_PAGE}
        for name_id, text in names.items():
            font["name"].setName(text, name_id, 3, 1, 0x409)
    subset.save_font(font, target, options)


chinese, korean = sys.argv[1:]
here = pathlib.Path(__file__).parent
texts = here.parents[1] / "report" / "texts"
characters = {ord(character) for file in texts.rglob("*.ftl") for character in file.read_text(encoding="utf-8")}
characters.update(decodable("gb2312", range(0xA1, 0xF8)))
characters.update(decodable("euc_jp", range(0xA1, 0xD0)))
characters.update(range(0x3000, 0x3100), range(0xFF00, 0xFFF0))
write(chinese, here / "CjkFallback.ttf", characters)
write(korean, here / "HangulFallback.ttf", {*range(0x3131, 0x318F), *range(0xAC00, 0xD7A4)}, own_name="Hangul Fallback")
