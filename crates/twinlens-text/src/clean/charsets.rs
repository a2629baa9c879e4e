//! The single-byte encodings that UTF-8 is mistaken for.
//!
//! The tables are those of Python's codecs. The Windows ones are "sloppy": an undefined byte
//! decodes to the control character of the same number, as in browsers, and byte 0x1a stands for
//! the replacement character, which careless programs write for such bytes.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A single-byte encoding.
pub(super) struct Charset {
    /// Whether byte 0x1a is the replacement character.
    pub(super) is_sloppy: bool,
    /// Whether a space may have been byte 0xa0. Not in Mac OS Roman, where a dash and a space would
    /// be confused.
    pub(super) may_alter_spaces: bool,
    /// Characters of bytes 0x80 to 0xff.
    high: Vec<char>,
    bytes: HashMap<char, u8>,
}

impl Charset {
    fn new(table: &str, is_sloppy: bool) -> Self {
        let high: Vec<char> = table.chars().collect();
        let bytes = high.iter().zip(0x80..=0xff).map(|(c, byte)| (*c, byte)).collect();
        Self { is_sloppy, may_alter_spaces: true, high, bytes }
    }

    /// Encodes the text; `None` if a character has no byte here.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |c: char| match c {
            '\u{fffd}' if self.is_sloppy => Some(0x1a),
            '\u{1a}' if self.is_sloppy => None,
            c if c.is_ascii() => Some(c as u8),
            c => self.bytes.get(&c).copied(),
        };
        text.chars().map(byte).collect()
    }

    /// The character of a byte above 0x7f.
    pub(super) fn decode_high(&self, byte: u8) -> char {
        self.high[byte as usize & 0x7f]
    }
}

/// In trial order: Latin-1; Windows 1252, 1251, 1250, 1253, 1254, 1257; ISO 8859-2; Mac OS Roman;
/// code page 437.
pub(super) static CHARSETS: LazyLock<[Charset; 10]> = LazyLock::new(|| {
    let latin1: String = ('\u{80}'..='\u{ff}').collect();
    [
        Charset::new(&latin1, false),
        Charset::new(WINDOWS_1252, true),
        Charset::new(WINDOWS_1251, true),
        Charset::new(WINDOWS_1250, true),
        Charset::new(WINDOWS_1253, true),
        Charset::new(WINDOWS_1254, true),
        Charset::new(WINDOWS_1257, true),
        Charset::new(ISO_8859_2, false),
        Charset { may_alter_spaces: false, ..Charset::new(MAC_ROMAN, false) },
        Charset::new(CP437, false),
    ]
});

/// Index of Windows-1252 in [`CHARSETS`].
pub(super) const CP1252: usize = 1;
/// How many of [`CHARSETS`] have an upper half similar to Latin-1's: those before ISO 8859-2.
pub(super) const LATIN_1_LIKE: usize = 7;

// Characters of bytes 0x80 to 0xff.
const WINDOWS_1252: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼\
     ½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";
const WINDOWS_1251: &str = "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГДЕЖЗИЙКЛМНОПР\
     СТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя";
const WINDOWS_1250: &str = "€\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸ąş»Ľ\
     ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const WINDOWS_1253: &str = "€\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\u{9e}\
     \u{9f}\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζηθικλμνξο\
     πρςστυφχψωϊϋόύώÿ";
const WINDOWS_1254: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²\
     ³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ";
const WINDOWS_1257: &str = "€\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\u{a0}¡¢£¤¥¦§Ø\
     ©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙";
const ISO_8859_2: &str = "\u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\u{8f}\
     \u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}\
     \u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôő\
     ö÷řůúűüýţ˙";
const MAC_ROMAN: &str = "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄\
     €‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
     αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_complete_and_reversible() {
        for charset in CHARSETS.iter() {
            assert_eq!((charset.high.len(), charset.bytes.len()), (128, 128));
            let text: String = charset.high.iter().collect();
            assert_eq!(charset.encode(&text).unwrap(), (0x80..=0xff).collect::<Vec<u8>>());
        }
    }
}
