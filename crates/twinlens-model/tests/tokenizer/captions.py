"""Captions as the web has them, and worse: what the tokenizer is compared on."""

import random
import unicodedata

from open_clip.tokenizer import basic_clean

ALPHABETS = [
    "a photo of a cat", "the quick brown fox jumps over the lazy dog", "it's John's dog & they're happy, we'll see; I'd've",
    "São Paulo à noite: coração, às três", "Ärger über Öl, größer als Maß", "l’été à la plage, où ça ? — «très bien»",
    "Zażółć gęślą jaźń", "Příliš žluťoučký kůň úpěl ďábelské ódy", "İstanbul'da ılık bir gün, ŞİŞLİ", "ĳsberg ﬁne ﬂower ǆep ŉ",
    "Съешь же ещё этих мягких французских булок", "Київ — столиця України, їжак і ґанок", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, ΟΔΟΣ ΣΟΦΙΑΣ",
    "القط الأسود على الحائط", "חתול שחור על הקיר", "काली बिल्ली दीवार पर", "แมวดำบนกำแพง", "검은 고양이가 벽 위에 있다", "壁の上の黒い猫です。",
    "黑猫在墙上，２０２４年", "ＬＯＵＤ　ＮＯＩＳＥＳ ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ", "👩‍👩‍👧‍👦 family 🇩🇪🇫🇷 ❤️ 👍🏽 ☺ 🤷‍♀️", "E=mc² ½ ¼ №5 €100 £20 ¥300 25°C ±3 µm × ÷ √2 ≈ ∞",
    "Nike™ Coca-Cola® ©2021 … “quoted” ‘single’ „low‟ ‹a› «b»", "x̂ é ñ q̃ Å", "ЗДРАВСТВУЙТЕ, МИР! naïve café Straße ẞ", "ΑΣ ΣΑΣ Ὀδυσσεύς",
    "tab\tand\nnew\r\nline\u2028sep\u00a0nbsp\u200bzwsp\ufeffbom\u00adshy", "\x1b[31mred\x1b[0m bell\x07 nul\x00 del\x7f \x85next \x93quote\x94",
    "<p>Fish &amp;amp; chips&nbsp;&lt;b&gt;</p>", "Fish &amp; chips &copy; 2020 &euro;5 &#8364; &#x2019;s &hellip;", "&notit; &amp &ampx &NTILDE; &EACUTE;t&eacute; &#128; &#0; &bogus; &;",
    "AT&T R&D Q&A this&not that a&b&c &#39;quoted&#39; &quot;x&quot;", "C:\\path\\file_name-01.JPG 1920x1080px #tag @user http://example.org/?a=1&b=2",
    "√†¬†Äôs ‚Äúquoted‚Äù", "ãƒãƒ æ–‡å—", "Ã la mode Ã  la carte fÃ cil Ãquele", "voilÃ le travail â€œ like this â€�", "Â£100 Â©2020 cafÃ© naÃ¯ve â€™s â€” â€¦",
    "Ð¡ÑŠÐµÑˆÑŒ Ð¶Ðµ ÐµÑ‰Ñ‘", "РЎСЉРµС€СЊ Р¶Рµ РµС‰С‘", "Î‘Î¸Î®Î½Î±", "ï¿½ ï»¿start Ã\xa0 perturber", "IL Y MARQUÉ… Hôtel â‚¬5", "¯\\_(ツ)_/¯ (ง'⌣')ง (╯°□°）╯︵ ┻━┻",
    "à² \u200c_à² \u200c", "ØªØµÙ…ÙŠÙ… Ø§Ù„Ù…ÙˆÙ‚Ø¹", "RÃƒÂ©sumÃƒÂ© ÃƒÆ’Ã‚Â©", "", " ", "!!! ... ??? --- ***", "ǅ ﷺ ℡ ㎏ Ⅷ ⅷ ①", "ſt 'ſ 'S 'T 'LL K Å ϐ ς",
]
WRONG = ["latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso-8859-2", "mac_roman", "cp437", "utf-8"]
ENTITIES = ["&amp;", "&lt;", "&#39;", "&quot;", "&nbsp;", "&eacute;", "&#x1F600;", "&hellip", "&mdash;", "&copy", "&AMP;", "&Uuml;", "&rarr;"]
ODD = ["\u00a0", "\u3000", "\t", "\u200b", "\u2028", "\ufeff", "\x1f", "\x96", "\x9d", "\u0301", "\ufffd", "’", "“", "…", "🐈", "猫", "ﬁ", "Ａ", "İ", "Σ", "'s", "<", "1", "½"]


def mistaken(rng, text):
    """UTF-8 that was read as something else, perhaps with losses."""
    wrong = rng.choice(WRONG)
    data = text.encode("utf-8")
    if wrong == "utf-8":  # Two surrogates of three bytes each for what lies beyond 16 bits.
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass").encode("utf-8")
        wrong = "latin-1"
    how = rng.choice(["replace", "ignore", "sloppy"])
    if how != "sloppy":
        return data.decode(wrong, how)
    out = []
    for byte in data:
        try:
            out.append(bytes([byte]).decode(wrong))
        except UnicodeDecodeError:
            out.append(chr(byte))
    return "".join(out)


def captions(n, seed=7):
    """`n` captions: the list above, and random distortions of pieces of it."""
    rng = random.Random(seed)
    made = list(ALPHABETS)
    while len(made) < n:
        words = []
        for _ in range(rng.randint(1, 4)):
            pieces = rng.choice(ALPHABETS).split(" ")
            start = rng.randrange(len(pieces))
            words += pieces[start : start + rng.randint(1, 5)]
        text = rng.choice([" ", " ", " ", "  ", ", ", ""]).join(words)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            kind = rng.randrange(6)
            at = rng.randint(0, len(text))
            if kind <= 1:
                text = mistaken(rng, text)
            elif kind == 2:
                text = text[:at] + rng.choice(ENTITIES) + text[at:]
            elif kind == 3:
                text = text[:at] + rng.choice(ODD) + text[at:]
            elif kind == 4:
                text = rng.choice([str.upper, str.title, str.swapcase])(text)
            else:  # Half of it was mistaken.
                text = text[:at] + mistaken(rng, text[at:])
        # Code points that Python's older Unicode knows nothing of, the newer tables of both
        # programs may tell apart.
        if all(unicodedata.category(c) != "Cn" for c in basic_clean(text)):
            made.append(text)
    return made[:n]
