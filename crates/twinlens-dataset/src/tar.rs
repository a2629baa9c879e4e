//! What stands where in a tar file (POSIX ustar, with the long names of pax and GNU): the heads alone are read.
//!
//! A head that is damaged is found by its checksum, and the next sound one is searched for: its member is lost, and those after it
//! are not.

use std::collections::HashMap;
use std::io::{self, BufRead, Seek, SeekFrom};

/// Longest text, and longest JSON, in bytes.
pub const MAX_TEXT: u64 = 1 << 20;
/// Endings of images, in lower case. Those that cannot be decoded are refused by what they hold.
pub const IMAGES: &[&str] =
    &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "ppm"];
/// The unit of a tar file, in bytes.
const BLOCK: u64 = 512;
/// Longest head of a long name, in bytes.
const MAX_NAME: u64 = 64 << 10;

/// Why a sample is refused: a code (`damaged_archive`, `truncated_archive`, `too_many_bytes`) and the particulars.
pub type Refusal = (&'static str, String);
/// A part of a sample: where its bytes are, as offset and length; or why they cannot be had.
pub type Span = Result<(u64, u64), Refusal>;

/// One sample: the members that share a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What its members have in common: the name up to the first dot.
    pub key: String,
    /// The image's member, whole name.
    pub path: String,
    /// The image.
    pub image: Option<Span>,
    /// The text.
    pub text: Option<Span>,
    /// The JSON.
    pub json: Option<Span>,
}

/// What is in a file.
#[derive(Debug, Default)]
pub struct Index {
    /// Samples, in the order in which their first members stand.
    pub entries: Vec<Entry>,
    /// Places that cannot be read: the byte, and why.
    pub damage: Vec<(u64, Refusal)>,
    keys: HashMap<String, usize>,
}

/// Reads the heads of a file of `length` bytes. `max_image` is the longest image, in bytes.
///
/// # Errors
/// The system's, when the file cannot be read; what is damaged is in the result.
pub fn index<R: BufRead + Seek>(input: &mut R, length: u64, max_image: u64) -> io::Result<Index> {
    let (mut index, mut at, mut ended, mut long_name) = (Index::default(), 0, false, None);
    while at < length {
        input.seek(SeekFrom::Start(at))?;
        let mut block = [0; BLOCK as usize];
        if length - at < BLOCK {
            index.damage.push((at, ("truncated_archive", "the file ends within a head".into())));
            return Ok(index);
        }
        input.read_exact(&mut block)?;
        if block == [0; BLOCK as usize] {
            (ended, at) = (true, at + BLOCK);
            continue;
        }
        ended = false;
        let Some(head) = Head::of(&block) else {
            let why = ("damaged_archive", "the head of a member is damaged".to_string());
            index.damage.push((at, why));
            (at, long_name) = (next_head(input, at + BLOCK, length)?, None);
            continue;
        };
        let data = at + BLOCK;
        let end = data.saturating_add(head.size);
        at = end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        match head.kind {
            b'x' | b'L' if head.size <= MAX_NAME && end <= length => {
                let mut text = vec![0; head.size as usize];
                input.read_exact(&mut text)?;
                long_name =
                    if head.kind == b'x' { pax_path(&text) } else { Some(c_string(&text)) }.or(long_name);
            }
            b'0' | 0 | b'7' => {
                let name = long_name.take().unwrap_or(head.name);
                index.add(&name, data, head.size, length, max_image);
            }
            _ => {}
        }
    }
    if !ended {
        // A writer that was killed: what was not written is not told.
        index.damage.push((length, ("truncated_archive", "the file ends without an end mark".into())));
    }
    Ok(index)
}

impl Index {
    fn add(&mut self, name: &str, data: u64, size: u64, length: u64, max_image: u64) {
        let name = name.trim_start_matches("./");
        let base = name.rsplit('/').next().unwrap_or_default();
        // As webdataset has it: the key ends at the first dot of the name without its folders.
        let Some((stem, ending)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { return };
        let key = &name[..name.len() - base.len() + stem.len()];
        let ending = ending.to_ascii_lowercase();
        let image = IMAGES.contains(&ending.as_str());
        if !image && ending != "txt" && ending != "json" {
            return;
        }
        let limit = if image { max_image } else { MAX_TEXT };
        let span = match data.checked_add(size).is_none_or(|end| end > length) {
            true => Err(("truncated_archive", format!("the file ends within {name}"))),
            false if size > limit => {
                Err(("too_many_bytes", format!("{name}: {size} bytes are more than the limit of {limit}")))
            }
            false => Ok((data, size)),
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
            let why = format!("{name}: {key} has a member of that kind already");
            self.damage.push((data - BLOCK, ("damaged_archive", why)));
            return;
        }
        *part = Some(span);
        if image {
            entry.path = name.to_string();
        }
    }
}

/// The head of a member.
struct Head {
    name: String,
    size: u64,
    kind: u8,
}

impl Head {
    /// `None` when the checksum is wrong.
    fn of(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum = |signed: bool| {
            block.iter().enumerate().fold(0i64, |sum, (at, byte)| {
                // The checksum itself counts as spaces.
                let byte = if (148..156).contains(&at) { b' ' } else { *byte };
                sum + if signed { i64::from(byte as i8) } else { i64::from(byte) }
            })
        };
        let told = i64::try_from(number(&block[148..156])?).ok()?;
        if told != sum(false) && told != sum(true) {
            return None;
        }
        let mut name = c_string(&block[..100]);
        let prefix = c_string(&block[345..500]);
        // GNU keeps times where ustar has the prefix.
        if &block[257..263] == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        Some(Self { name, size: number(&block[124..136])?, kind: block[156] })
    }
}

/// A number in octal; or, where the first bit is set, in base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (high, low) = field.split_at_checked(field.len().saturating_sub(8))?;
        let small = high
            .split_first()
            .is_some_and(|(first, rest)| *first == 0x80 && rest.iter().all(|byte| *byte == 0));
        return small.then(|| low.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// A text up to its zero byte.
fn c_string(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The `path` of a pax head: records of `length key=value` (POSIX.1-2017, pax).
fn pax_path(mut text: &[u8]) -> Option<String> {
    loop {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path).trim_end_matches('\n').to_string());
        }
        text = &text[length..];
    }
}

/// Where the next sound head stands, from `at` on.
fn next_head<R: BufRead + Seek>(input: &mut R, mut at: u64, length: u64) -> io::Result<u64> {
    input.seek(SeekFrom::Start(at))?;
    let mut block = [0; BLOCK as usize];
    while at + BLOCK <= length {
        input.read_exact(&mut block)?;
        // Old heads have no magic; without one, an image's bytes would be taken for a head once in a while.
        if &block[257..262] == b"ustar" && Head::of(&block).is_some() {
            return Ok(at);
        }
        at += BLOCK;
    }
    // Not the end: that the file has no end mark is told.
    Ok(length)
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

    fn keys(index: &Index) -> Vec<(&str, [bool; 3])> {
        let there = |part: &Option<Span>| matches!(part, Some(Ok(_)));
        let parts = |entry: &Entry| [&entry.image, &entry.text, &entry.json].map(there);
        index.entries.iter().map(|entry| (entry.key.as_str(), parts(entry))).collect()
    }

    #[test]
    fn members_of_a_key_are_one_sample_in_any_order() {
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
    fn damage_loses_its_own_member_alone() {
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
