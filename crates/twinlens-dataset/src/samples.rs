//! The samples of a WebDataset tar file: which members share a key, and where their bytes are.

use std::collections::HashMap;
use std::io::{self, BufRead, Seek};

use crate::tar::{BLOCK, DAMAGED, Member, TRUNCATED, TarItem, TarReader};

/// Longest text or JSON member, in bytes.
pub const MAX_TEXT: u64 = 1 << 20;
/// File extensions of images, in lower case. Formats that cannot be decoded are refused later, by
/// content.
pub const IMAGES: &[&str] =
    &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "ppm"];

/// Why a sample is refused: a code (`damaged_archive`, `truncated_archive`, `too_many_bytes`) and
/// details.
pub type Refusal = (&'static str, String);
/// Offset and length of a member's content in bytes, or why it cannot be read.
pub type Span = Result<(u64, u64), Refusal>;

/// One sample: the members that share a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The common name of its members, up to the first dot.
    pub key: String,
    /// Full name of the image member.
    pub path: String,
    /// The image.
    pub image: Option<Span>,
    /// The text.
    pub text: Option<Span>,
    /// The JSON.
    pub json: Option<Span>,
}

/// The contents of a tar file.
#[derive(Debug, Default)]
pub struct Index {
    /// Samples, ordered by their first member.
    pub entries: Vec<Entry>,
    /// Ranges that cannot be read: the offset in bytes, and why.
    pub damage: Vec<(u64, Refusal)>,
    keys: HashMap<String, usize>,
}

/// Reads the headers of a tar file of `length` bytes. `max_image` is the longest image, in bytes.
///
/// # Errors
/// Only I/O errors; damage is part of the result.
pub fn index<R: BufRead + Seek>(input: &mut R, length: u64, max_image: u64) -> io::Result<Index> {
    let mut index = Index::default();
    for item in TarReader::new(input, length) {
        match item? {
            TarItem::Member(member) => index.add(&member, max_image),
            TarItem::Damage(damage) => index.damage.push((damage.offset, (damage.code, damage.detail))),
        }
    }
    Ok(index)
}

impl Index {
    fn add(&mut self, member: &Member, max_image: u64) {
        let (name, offset, size) = (member.name.as_str(), member.offset, member.size);
        let base = name.rsplit('/').next().unwrap_or_default();
        // As in webdataset: the key ends at the first dot after the last `/`.
        let Some((stem, ending)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { return };
        let key = &name[..name.len() - base.len() + stem.len()];
        let ending = ending.to_ascii_lowercase();
        let image = IMAGES.contains(&ending.as_str());
        if !image && ending != "txt" && ending != "json" {
            return;
        }
        let limit = if image { max_image } else { MAX_TEXT };
        let span = if !member.is_complete {
            Err((TRUNCATED, format!("the file ends within {name}")))
        } else if size > limit {
            Err(("too_many_bytes", format!("{name}: {size} bytes are more than the limit of {limit}")))
        } else {
            Ok((offset, size))
        };
        let place = *self.keys.entry(key.to_string()).or_insert_with(|| {
            self.entries.push(Entry { key: key.to_string(), ..Entry::default() });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[place];
        let part = match ending.as_str() {
            "txt" => &mut entry.text,
            "json" => &mut entry.json,
            _ => &mut entry.image,
        };
        if part.is_some() {
            let detail = format!("{name}: {key} already has a member of this kind");
            self.damage.push((offset - BLOCK, (DAMAGED, detail)));
            return;
        }
        *part = Some(span);
        if image {
            entry.path = name.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use twinlens_testkit::tar::{END, member, typed};

    use super::*;

    fn read(bytes: &[u8]) -> Index {
        index(&mut io::BufReader::new(Cursor::new(bytes)), bytes.len() as u64, 1000).unwrap()
    }

    /// Each key, and which of image, text and JSON can be read.
    fn keys(index: &Index) -> Vec<(&str, [bool; 3])> {
        let is_readable = |part: &Option<Span>| matches!(part, Some(Ok(_)));
        let parts = |entry: &Entry| [&entry.image, &entry.text, &entry.json].map(is_readable);
        index.entries.iter().map(|entry| (entry.key.as_str(), parts(entry))).collect()
    }

    #[test]
    fn members_with_one_key_form_one_sample_in_any_order() {
        let bytes = [
            member("./d/1.jpg", b"one"),
            member("d/2.txt", b"two"),
            typed("d", b'5', b""),
            member("d/1.json", b"{}"),
            member("d/2.JPG", &[0; 600]),
            member("d/1.txt", b"text"),
            member("d/.hidden.txt", b""),
            member("d/3.cls", b"7"),
            typed("././@LongLink", b'L', format!("{}/4.png\0", "long".repeat(60)).as_bytes()),
            member("cut", b"four"),
            typed("pax", b'x', b"11 size=12\n17 path=p/5.webp\n"),
            member("cut", b"five"),
            END.to_vec(),
        ];
        let index = read(&bytes.concat());
        let long = format!("{}/4", "long".repeat(60));
        let expected = [
            ("d/1", [true; 3]),
            ("d/2", [true, true, false]),
            (&long, [true, false, false]),
            ("p/5", [true, false, false]),
        ];
        assert_eq!(keys(&index), expected);
        assert_eq!(
            (index.entries[1].path.as_str(), &index.entries[1].image),
            ("d/2.JPG", &Some(Ok((4096, 600))))
        );
        assert_eq!(index.damage, []);
    }

    #[test]
    fn damage_loses_only_its_own_member() {
        let parts =
            [member("1.jpg", b"one"), member("2.jpg", &[7; 600]), member("3.jpg", b"x"), END.to_vec()];
        let mut bytes = parts.concat();
        bytes[1024 + 3] ^= 1;
        let index = read(&bytes);
        assert_eq!(keys(&index).iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(
            (index.damage.len(), index.damage[0].0, index.damage[0].1.0),
            (1, 1024, "damaged_archive")
        );

        let whole = parts.concat();
        let cut = read(&whole[..1024 + 512 + 100]);
        assert!(matches!(&cut.entries[1].image, Some(Err(("truncated_archive", _)))), "{cut:?}");
        assert_eq!(read(&whole[..1024]).damage[0].1.0, "truncated_archive");
        let long = [member("1.jpg", &[0; 1001]), member("2.txt", b"t"), member("2.txt", b"u"), END.to_vec()]
            .concat();
        let index = read(&long);
        assert!(matches!(&index.entries[0].image, Some(Err(("too_many_bytes", _)))));
        assert_eq!((index.damage.len(), index.damage[0].1.0), (1, "damaged_archive"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1500), at in 0usize..1600, flip: u8) {
            read(&bytes);
            let mut near = [member("1.jpg", b"one"), member("2.txt", b"two"), END.to_vec()].concat();
            let length = near.len();
            near[at % length] ^= flip;
            near.truncate(length - bytes.len());
            read(&near);
        }
    }
}
