//! Guesses the charset of bytes for which none is declared.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{
    Encoding, ISO_2022_JP, ISO_8859_2, ISO_8859_4, ISO_8859_13, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1250,
    WINDOWS_1252, WINDOWS_1254, WINDOWS_1257, WINDOWS_1258,
};

/// Bytes that are searched for the zeros of UTF-16.
const UTF_16_SAMPLE: usize = 1024;
/// Bytes that the detector sees.
const MAX_SAMPLE: usize = 1 << 20;
/// Valid multi-byte characters for each invalid sequence from which a text is damaged UTF-8 and not
/// in another charset: where letters of other charsets form such characters by chance, far more are
/// invalid.
const MIN_VALID_PER_INVALID: usize = 2;

/// Charsets of the Latin script that are rarer than windows-1252 and differ from it in few letters.
const RARE_LATIN: &[&Encoding] =
    &[WINDOWS_1250, ISO_8859_2, ISO_8859_4, ISO_8859_13, WINDOWS_1254, WINDOWS_1257, WINDOWS_1258];
/// Letters beyond ASCII that make these likely where no domain does: of a word or two the detector
/// cannot tell.
const MIN_LETTERS: usize = 8;

/// The charset that the bytes look like. The last label of `host` hints at a language.
pub(super) fn detect(bytes: &[u8], host: &str) -> &'static Encoding {
    if let Some(encoding) = utf_16_without_bom(bytes) {
        return encoding;
    }
    let (mut valid, mut invalid) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        valid += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        invalid += usize::from(!chunk.invalid().is_empty());
    }
    // ISO-2022-JP is valid UTF-8 with escape characters.
    let has_escape = bytes.contains(&0x1b);
    if (invalid == 0 && !has_escape) || (invalid > 0 && valid >= MIN_VALID_PER_INVALID * invalid) {
        return UTF_8;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(&bytes[..bytes.len().min(MAX_SAMPLE)], bytes.len() <= MAX_SAMPLE);
    let label = host.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let domain = Some(label.as_bytes()).filter(|label| !label.is_empty() && label.is_ascii());
    match detector.guess(domain, Utf8Detection::Allow) {
        guess if invalid == 0 && guess != ISO_2022_JP => UTF_8,
        guess
            if RARE_LATIN.contains(&guess)
                && bytes.iter().filter(|byte| !byte.is_ascii()).nth(MIN_LETTERS).is_none()
                && !EncodingDetector::tld_may_affect_guess(domain) =>
        {
            WINDOWS_1252
        }
        guess => guess,
    }
}

/// UTF-16 without a byte order mark: of markup and of Latin text every other byte is zero.
fn utf_16_without_bom(bytes: &[u8]) -> Option<&'static Encoding> {
    let pairs = bytes[..bytes.len().min(UTF_16_SAMPLE)].chunks_exact(2);
    let (mut count, mut zeros) = (0, [0, 0]);
    for pair in pairs {
        count += 1;
        zeros[0] += usize::from(pair[0] == 0);
        zeros[1] += usize::from(pair[1] == 0);
    }
    // Half of one kind of byte, and hardly any of the other.
    let is = |many: usize, few: usize| count >= 4 && 2 * many > count && 20 * few <= count;
    match zeros {
        [high, low] if is(low, high) => Some(UTF_16LE),
        [high, low] if is(high, low) => Some(UTF_16BE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(label: &str, text: &str) -> Vec<u8> {
        match label {
            "UTF-16LE" => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            "UTF-16BE" => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            _ => Encoding::for_label(label.as_bytes()).unwrap().encode(text).0.into_owned(),
        }
    }

    #[test]
    fn undeclared_charsets_are_detected() {
        let cases = [
            ("UTF-8", "<p>plain", ""),
            ("UTF-8", "<p>naïve", ""),
            ("UTF-16LE", "<img alt='café noir'>", ""),
            ("UTF-16BE", "<img alt='красный кот' src='/images/cat.jpg'>", ""),
            ("windows-1252", "<p>naïve café", ""),
            ("windows-1251", "<p>красный кот сидит на крыше", ""),
            ("windows-1251", "<p>кот", "site.ru"),
            ("windows-1250", "<p>zażółć gęślą jaźń, czerwony kot śpi", ""),
            ("ISO-8859-2", "<p>żółw", "site.pl"),
            ("windows-1252", "<p>Straße, Größe", ""),
            ("KOI8-U", "<p>красный кот сидит на крыше", ""),
            ("Shift_JIS", "<img src=/6.jpg alt='日本の猫、公園'>", ""),
            ("EUC-JP", "<p>赤い猫が屋根の上に座っている", ""),
            ("ISO-2022-JP", "<p>赤い猫が屋根の上に座っている", ""),
            ("GBK", "<img src=/5.jpg alt='网站地图'>", ""),
            ("Big5", "<p>紅色的貓坐在屋頂上", "site.tw"),
            ("EUC-KR", "<p>빨간 고양이가 지붕 위에 앉아 있다", ""),
            ("windows-1253", "<p>η κόκκινη γάτα κάθεται στη στέγη", ""),
            ("windows-1255", "<p>החתול האדום יושב על הגג", ""),
            ("windows-874", "<p>แมวแดงนั่งอยู่บนหลังคา", ""),
        ];
        for (name, text, host) in cases {
            assert_eq!(detect(&encoded(name, text), host).name(), name, "{text}");
        }
    }

    #[test]
    fn damaged_utf_8_is_utf_8() {
        let cases: [(&[u8], &str); 5] = [
            (b"<p>bad \xff byte</p>caf\xc3\xa9 cr\xc3\xa8me", "UTF-8"),
            (b"caf\xc3\xa9 cr\xc3\xa8me, cut \xe2\x80", "UTF-8"),
            (b"caf\xe9", "windows-1252"),
            (b"caf\xc3\xa9 na\xefve", "windows-1252"),
            (b"\x1b[1mna\xc3\xafve", "UTF-8"),
        ];
        for (bytes, name) in cases {
            assert_eq!(detect(bytes, "").name(), name, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
