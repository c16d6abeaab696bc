"""Makes CjkFallback.ttf from DroidSansFallbackFull.ttf (Debian package fonts-droid-fallback 1:6.0.1r16-1.1).

    pip install fonttools==4.68.0
    python subset_cjk.py /usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf CjkFallback.ttf

Kept are the characters of GB 2312 (levels 1 and 2), of JIS X 0208 up to level 1, kana, CJK punctuation, full-width forms, and
every character of the built-in catalogues of texts. The source has no Hangul.
"""

import pathlib
import sys

from fontTools import subset


def decodable(codec, leads):
    """Characters of a set of 94 x 94, by its rows."""
    for lead in leads:
        for trail in range(0xA1, 0xFF):
            text = bytes([lead, trail]).decode(codec, errors="ignore")
            if len(text) == 1:
                yield ord(text)


source, target = sys.argv[1:]
texts = pathlib.Path(__file__).parents[2] / "report" / "texts"
characters = {ord(character) for file in texts.rglob("*.ftl") for character in file.read_text(encoding="utf-8")}
characters.update(decodable("gb2312", range(0xA1, 0xF8)))
characters.update(decodable("euc_jp", range(0xA1, 0xD0)))
characters.update(range(0x3000, 0x3100), range(0xFF00, 0xFFF0))

options = subset.Options()
options.hinting = False
options.layout_features = []
options.drop_tables += ["GSUB", "GPOS", "GDEF", "BASE", "vhea", "vmtx"]
options.notdef_outline = True
font = subset.load_font(source, options)
subsetter = subset.Subsetter(options)
subsetter.populate(unicodes=characters)
subsetter.subset(font)
subset.save_font(font, target, options)
