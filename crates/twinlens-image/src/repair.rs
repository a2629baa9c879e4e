//! Makes files whole whose pixels are complete, but whose container is damaged.

use crate::header::lacks_end;
use crate::sniff::{Format, sniff};

/// A file that decoders accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The bytes with an end marker and right checksums.
    pub bytes: Vec<u8>,
    /// What was wrong: `no_end_marker`, `checksum`, or both.
    pub damage: String,
}

/// Repairs a JPEG without an end marker, and a PNG without one or with wrong checksums of its
/// pixels. `None` if nothing is wrong of this kind, or the pixels are cut off in a PNG. Whether
/// those of a JPEG are complete is seen when it is decoded.
pub fn repair(bytes: &[u8]) -> Option<Repaired> {
    match sniff(bytes)? {
        Format::Png => repair_png(bytes),
        Format::Jpeg if lacks_end(bytes) => {
            let bytes = [bytes, &[0xff, 0xd9]].concat();
            Some(Repaired { bytes, damage: "no_end_marker".to_owned() })
        }
        _ => None,
    }
}

fn repair_png(bytes: &[u8]) -> Option<Repaired> {
    let mut repaired = bytes.to_vec();
    let (mut at, mut damage) = (8, Vec::new());
    while at < bytes.len() {
        let length = bytes.get(at..at + 4)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let (kind, end) = (bytes.get(at + 4..at + 8)?, at + 8 + length);
        let checksum = bytes.get(end..end + 4)?;
        let expected = crc32fast::hash(&bytes[at + 4..end]).to_be_bytes();
        if kind == b"IDAT" && checksum != expected {
            repaired[end..end + 4].copy_from_slice(&expected);
            damage = vec!["checksum"];
        }
        if kind == b"IEND" {
            let damage = damage.concat();
            return (!damage.is_empty()).then_some(Repaired { bytes: repaired, damage });
        }
        at = end + 4;
    }
    repaired.extend(b"\0\0\0\0IEND\xae\x42\x60\x82");
    damage.push("no_end_marker");
    Some(Repaired { bytes: repaired, damage: damage.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::encode;
    use crate::rgb::Rgb;

    #[test]
    fn what_is_damaged_is_repaired_and_named() {
        let image = Rgb::new(40, 30, (0..3600).map(|at| (at % 251) as u8).collect()).unwrap();
        let png = encode(&image, Format::Png, None).unwrap();
        let jpeg = encode(&image, Format::Jpeg, None).unwrap();
        let end = |bytes: &[u8], cut: usize| bytes[..bytes.len() - cut].to_vec();
        // The checksum of the last IDAT lies before the twelve bytes of IEND.
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = png.len() - 13;
            bytes[at] ^= 1;
            bytes
        };
        type Repaired<'a> = Option<(&'a [u8], &'a str)>;
        let cases: [(Vec<u8>, Repaired<'_>); 8] = [
            (png.clone(), None),
            (jpeg.clone(), None),
            (end(&png, 12), Some((&png, "no_end_marker"))),
            (flipped(&png), Some((&png, "checksum"))),
            (flipped(&end(&png, 12)), Some((&png, "checksum, no_end_marker"))),
            (end(&png, 13), None),
            (end(&jpeg, 2), Some((&jpeg, "no_end_marker"))),
            (b"GIF89a".to_vec(), None),
        ];
        for (index, (bytes, expected)) in cases.into_iter().enumerate() {
            let found = repair(&bytes);
            let found = found.as_ref().map(|repaired| (repaired.bytes.as_slice(), repaired.damage.as_str()));
            assert_eq!(found, expected, "case {index}");
        }
    }
}
