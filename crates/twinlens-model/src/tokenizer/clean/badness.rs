//! Whether text looks like UTF-8 that was read in another encoding.
//!
//! The heuristic of ftfy 6.3 (Robyn Speer, Apache License 2.0; `ftfy.badness`): a few hundred
//! characters come out of such mistakes, and some of them hardly ever stand side by side otherwise.
//! The same classes and the same pairs, so that the same text is found.

use regex::Regex;
use std::sync::LazyLock;

// Classes of characters, written as the inside of a regular expression's class.
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

/// Pairs and triples that are hardly ever meant. Names in braces stand for the classes above.
const SIGNS: [&str; 37] = [
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
    // Two characters out of Windows-1252.
    r"[ÂÃÎÐ][€œŠš¢£Ÿž\xa0\xad®©°·»{start}{end}–—´]",
    "×[²³]",
    // Arabic out of Windows-1252, of which four characters are asked for.
    "[ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»][ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»]",
    // South Asian alphabets out of Windows-1252.
    "à[²µ¹¼½¾]",
    // Mac OS Roman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Punctuation out of Windows-1251.
    "вЂ",
    // Latin-1 and Cyrillic out of Windows-1251.
    "[ВГРС][{c1}{bad}{start}{end}{currency}°µ][ВГРС]",
    r"ГўВЂВ.[A-Za-z\x20]",
    // The letters à and á and the no-break space out of Windows-1252.
    r"Ã[\xa0¡]",
    r"[a-z][{space}]?[ÃÂ]\x20",
    r"\A[ÃÂ]\x20",
    r"[a-z.,?!{end}]Â[\x20{start}{end}]",
    // Punctuation out of Windows-1253.
    r"β€[™\xa0Ά\xad®°]",
    // Latin-1 and Greek out of Windows-1253.
    "[ΒΓΞΟ][{c1}{bad}{start}{end}{currency}°][ΒΓΞΟ]",
    // Punctuation out of Windows-1257.
    "ā€",
];

#[expect(clippy::expect_used, reason = "a constant pattern, compiled by every test")]
static BAD_TEXT: LazyLock<Regex> = LazyLock::new(|| {
    let classes = [
        // Python's white space has the four separators of ASCII besides.
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
    let pattern = SIGNS
        .map(|sign| classes.iter().fold(sign.to_owned(), |sign, (name, class)| sign.replace(name, class)));
    Regex::new(&pattern.join("|")).expect("a valid pattern")
});

/// Whether some of the text seems to be in the wrong encoding.
pub fn is_bad(text: &str) -> bool {
    BAD_TEXT.is_match(text)
}
