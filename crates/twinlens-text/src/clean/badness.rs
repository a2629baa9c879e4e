//! Detects mojibake: UTF-8 that was decoded in another encoding.
//!
//! The heuristic of ftfy 6.3 (Robyn Speer, Apache License 2.0; `ftfy.badness`): such mistakes
//! produce a few hundred characters, some of which are hardly ever adjacent in correct text. The
//! character classes and patterns are ftfy's, so the same text is detected.

use regex::Regex;
use std::sync::LazyLock;

// Contents of regular-expression character classes.
const COMMON: &str = "\u{a0}\u{ad}·´–—―…’";
const C1: &str = "\u{80}-\u{9f}";
const BAD: &str = "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº";
const LAW: &str = "¶§";
const CURRENCY: &str = "¢£¥₧€";
const START_PUNCTUATION: &str = "¡«¿©΄΅‘‚“„•‹\u{f8ff}";
const END_PUNCTUATION: &str = "®»˝”›™";
const NUMERIC: &str = "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№";
const KAOMOJI: &str = "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°";
const UPPER_ACCENTED: &str = "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";
const LOWER_ACCENTED: &str = "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ";
const UPPER_COMMON: &str = "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я";
const LOWER_COMMON: &str = "α-ωάέήίΰа-џ";
const BOX: &str = "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓";

/// Character sequences that hardly ever occur in correct text. Names in braces stand for the
/// classes above.
const MOJIBAKE_PATTERNS: [&str; 37] = [
    "[{c1}]",
    "[{bad}{lower}{upper}{box}{start}{end}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{lower_common}{upper_common}][{bad}]",
    "[{bad}][{lower}{upper}{box}{start}{end}{currency}{numeric}{law}]",
    "[{lower}{lower_common}{box}{end}{currency}{numeric}][{upper}]",
    "[{box}{end}{currency}{numeric}][{lower}]",
    "[{lower}{box}{end}][{currency}]",
    "[{space}][{upper}][{currency}]",
    "[{upper}{box}][{numeric}{law}]",
    "[{lower}{upper}{box}{currency}{end}][{start}][{numeric}]",
    "[{lower}{upper}{currency}{numeric}{box}{law}][{end}][{start}]",
    "[{currency}{numeric}{box}][{start}]",
    "[a-z][{upper}][{start}{currency}]",
    "[{box}][{kaomoji}]",
    "[{lower}{upper}{currency}{numeric}{start}{end}{law}][{box}]",
    "[{box}][{end}]",
    r"[{lower}{upper}][{start}{end}][\p{L}\p{N}_]",
    "[Œœ][^A-Za-z]",
    "[{upper}]°",
    // Two-character mojibake from Windows-1252.
    r"[ÂÃÎÐ][€œŠš¢£Ÿž\xa0\xad®©°·»{start}{end}–—´]",
    "×[²³]",
    // Arabic decoded as Windows-1252; four characters are required.
    "[ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»][ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»]",
    // South Asian scripts decoded as Windows-1252.
    "à[²µ¹¼½¾]",
    // Decoded as Mac OS Roman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Punctuation decoded as Windows-1251.
    "вЂ",
    // Latin and Cyrillic letters decoded as Windows-1251.
    "[ВГРС][{c1}{bad}{start}{end}{currency}°µ][ВГРС]",
    r"ГўВЂВ.[A-Za-z\x20]",
    // The letters à and á and the no-break space decoded as Windows-1252.
    r"Ã[\xa0¡]",
    r"[a-z][{space}]?[ÃÂ]\x20",
    r"\A[ÃÂ]\x20",
    r"[a-z.,?!{end}]Â[\x20{start}{end}]",
    // Punctuation decoded as Windows-1253.
    r"β€[™\xa0Ά\xad®°]",
    // Latin and Greek letters decoded as Windows-1253.
    "[ΒΓΞΟ][{c1}{bad}{start}{end}{currency}°][ΒΓΞΟ]",
    // Punctuation decoded as Windows-1257.
    "ā€",
];

#[expect(clippy::expect_used, reason = "a constant pattern, compiled by every test")]
static MOJIBAKE: LazyLock<Regex> = LazyLock::new(|| {
    let classes = [
        // Python's white space also includes the four ASCII separators.
        ("{space}", r"\s\x1c-\x1f"),
        ("{common}", COMMON),
        ("{c1}", C1),
        ("{bad}", BAD),
        ("{law}", LAW),
        ("{currency}", CURRENCY),
        ("{start}", START_PUNCTUATION),
        ("{end}", END_PUNCTUATION),
        ("{numeric}", NUMERIC),
        ("{kaomoji}", KAOMOJI),
        ("{upper}", UPPER_ACCENTED),
        ("{lower}", LOWER_ACCENTED),
        ("{upper_common}", UPPER_COMMON),
        ("{lower_common}", LOWER_COMMON),
        ("{box}", BOX),
    ];
    let patterns = MOJIBAKE_PATTERNS.map(|pattern| {
        classes.iter().fold(pattern.to_owned(), |pattern, (name, class)| pattern.replace(name, class))
    });
    Regex::new(&patterns.join("|")).expect("a valid pattern")
});

/// Whether any part of the text looks like mojibake.
pub(super) fn is_bad(text: &str) -> bool {
    MOJIBAKE.is_match(text)
}
