//! Samples of tar files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::group::{Entry, Groups, MAX_TEXT, Part, Role, Sample, Span, TOO_MANY_BYTES, UNREAD, Unread};
use crate::error::DatasetError;
use crate::sniff::FileKind;
use crate::tar::{Member, TRUNCATED, TarItem, TarReader};
use crate::unpack::{self, PlainFile};

/// The samples of a tar file.
#[derive(Debug)]
pub struct Index {
    /// Samples, ordered by their first member.
    pub entries: Vec<Entry>,
    /// Members that are not part of a sample, and ranges that cannot be read.
    pub unread: Vec<Unread>,
}

impl Index {
    /// Reads the headers of a tar file of `length` bytes. `max_image` is the longest image, in
    /// bytes; members with other roles than `roles` are unread.
    ///
    /// # Errors
    /// Only I/O errors; damage is part of the result.
    pub fn read<R: BufRead + Seek>(
        input: R,
        length: u64,
        max_image: u64,
        roles: &[Role],
    ) -> io::Result<Self> {
        let mut groups = Groups::new();
        for item in TarReader::new(input, length) {
            match item? {
                TarItem::Member(member) => {
                    groups.add(&member.name, roles, |role| span(&member, role, max_image));
                }
                TarItem::Other(name, what) => groups.refuse(&name, what),
                TarItem::Damage(damage) => groups.unread.push(Unread {
                    place: format!(" byte {}", damage.offset),
                    refusal: (damage.code, damage.detail),
                }),
            }
        }
        Ok(Self { entries: groups.entries, unread: groups.unread })
    }
}

fn span(member: &Member, role: Role, max_image: u64) -> Span {
    let (name, size) = (&member.name, member.size);
    let limit = if role == Role::Image { max_image } else { MAX_TEXT };
    if !member.is_complete {
        Err((TRUNCATED, format!("the file ends within {name}")))
    } else if size > limit {
        Err((TOO_MANY_BYTES, format!("{name}: {size} bytes are more than the limit of {limit}")))
    } else {
        Ok((member.offset, size))
    }
}

impl Entry {
    /// Total length of its parts in bytes.
    pub fn bytes(&self) -> u64 {
        let length = |span: &Option<Span>| match span {
            Some(Ok((_, length))) => *length,
            _ => 0,
        };
        [&self.image, &self.text, &self.json, &self.class].into_iter().map(length).sum()
    }
}

/// An open tar file of samples.
#[derive(Debug)]
pub struct TarSamples {
    path: PathBuf,
    file: File,
    length: u64,
    /// Why a compressed file could only be read in part.
    damage: Option<String>,
}

impl TarSamples {
    /// Opens a tar file. A compressed one is decompressed into `scratch` first, and refused without
    /// it.
    ///
    /// # Errors
    /// `WrongKind` if it is something else; I/O errors with the path, as from all methods.
    pub fn open(path: &Path, scratch: Option<&Path>) -> Result<Self, DatasetError> {
        let wrong = |kind| DatasetError::WrongKind { path: path.into(), kind, expected: "a tar archive" };
        let scratch = match (scratch, unpack::open(path)?.layers.first()) {
            (None, Some(compression)) => return Err(wrong(FileKind::Compressed(*compression))),
            (scratch, _) => scratch.unwrap_or(path),
        };
        let PlainFile { kind, file, length, damage, .. } = PlainFile::open(path, scratch)?;
        match kind {
            // An archive whose first header is damaged, or that has only the end marker.
            FileKind::Tar | FileKind::Binary => Ok(Self { path: path.into(), file, length, damage }),
            kind => Err(wrong(kind)),
        }
    }

    /// The samples of the file; see [`Index::read`].
    ///
    /// # Errors
    /// `DamagedInput` if nothing in the file is a member of a tar archive.
    pub fn index(&mut self, max_image: u64, roles: &[Role]) -> Result<Index, DatasetError> {
        let index = (self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| Index::read(BufReader::new(&mut self.file), self.length, max_image, roles));
        let mut index = index.map_err(|error| DatasetError::io(&self.path, error))?;
        let has_members =
            !index.entries.is_empty() || index.unread.iter().any(|unread| unread.refusal.0 == UNREAD);
        if let Some(first) = index.unread.first().filter(|_| !has_members) {
            let why = format!("not a tar archive: {}", first.refusal.1);
            return Err(DatasetError::DamagedInput { path: self.path.clone(), why });
        }
        if let Some(why) = &self.damage {
            let refusal = (TRUNCATED, format!("the compressed data are damaged: {why}"));
            index.unread.push(Unread { place: format!(" byte {}", self.length), refusal });
        }
        Ok(index)
    }

    /// Reads the content at an offset.
    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, DatasetError> {
        let mut bytes = vec![0; length as usize];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| DatasetError::io(&self.path, error))?;
        Ok(bytes)
    }

    /// Reads a part of a sample.
    pub fn part(&mut self, span: Option<Span>) -> Result<Part, DatasetError> {
        match span {
            None => Ok(None),
            Some(Err(refusal)) => Ok(Some(Err(refusal))),
            Some(Ok((offset, length))) => Ok(Some(Ok(self.read(offset, length)?))),
        }
    }

    /// Reads a sample; `name` is the name of the file.
    pub fn sample(&mut self, name: &str, entry: Entry) -> Result<Sample, DatasetError> {
        Ok(Sample {
            location: format!("{name}/{}", entry.key),
            path: entry.path,
            image: self.part(entry.image)?,
            text: self.part(entry.text)?,
            json: self.part(entry.json)?,
            class: self.part(entry.class)?,
            metadata: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use twinlens_testkit::tar::{END, member, typed};

    use super::*;
    use crate::tar::DAMAGED;

    fn read(bytes: &[u8]) -> Index {
        Index::read(Cursor::new(bytes), bytes.len() as u64, 1000, Role::PAIR).unwrap()
    }

    /// Each key, and which of image, text and JSON can be read.
    fn keys(index: &Index) -> Vec<(&str, [bool; 3])> {
        let is_readable = |part: &Option<Span>| matches!(part, Some(Ok(_)));
        let parts = |entry: &Entry| [&entry.image, &entry.text, &entry.json].map(is_readable);
        index.entries.iter().map(|entry| (entry.key.as_str(), parts(entry))).collect()
    }

    /// Where unread members are, and why.
    fn unread(index: &Index) -> Vec<(&str, &str)> {
        index.unread.iter().map(|unread| (unread.place.as_str(), unread.refusal.0)).collect()
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
            typed("pax", b'x', b"10 size=4\n17 path=p/5.webp\n"),
            member("cut", b"five"),
            member("photo.2020.01.jfif", b"six"),
            member("photo.2020.01.Caption", b"text"),
            member("photo.2020.02.jpe", b"seven"),
            member("photo.2020.02.png", b"eight"),
            member("README", b"words"),
            member("6.img", b"nine"),
            typed("7.jpg", b'2', b""),
            typed("pax", b'x', b"22 GNU.sparse.major=1\n"),
            member("8.jpg", b"ten"),
            END.to_vec(),
        ];
        let index = read(&bytes.concat());
        let long = format!("{}/4", "long".repeat(60));
        let expected = [
            ("d/1", [true; 3]),
            ("d/2", [true, true, false]),
            (&long, [true, false, false]),
            ("p/5", [true, false, false]),
            ("photo.2020.01", [true, true, false]),
            ("photo.2020.02", [true, false, false]),
        ];
        assert_eq!(keys(&index), expected);
        assert_eq!(
            (index.entries[1].path.as_str(), &index.entries[1].image),
            ("d/2.JPG", &Some(Ok((4096, 600))))
        );
        let places =
            ["/d/.hidden.txt", "/d/3.cls", "/photo.2020.02.png", "/README", "/6.img", "/7.jpg", "/8.jpg"];
        assert_eq!(unread(&index), places.map(|place| (place, UNREAD)));
    }

    #[test]
    fn damage_loses_only_its_own_member() {
        let parts =
            [member("1.jpg", b"one"), member("2.jpg", &[7; 600]), member("3.jpg", b"x"), END.to_vec()];
        let mut bytes = parts.concat();
        bytes[1024 + 3] ^= 1;
        let index = read(&bytes);
        assert_eq!(keys(&index).iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(unread(&index), [(" byte 1024", DAMAGED)]);

        let whole = parts.concat();
        let cut = read(&whole[..1024 + 512 + 100]);
        assert!(matches!(&cut.entries[1].image, Some(Err(("truncated_archive", _)))), "{cut:?}");
        assert_eq!(unread(&read(&whole[..1024])), [(" byte 1024", TRUNCATED)]);
        let long = [member("1.jpg", &[0; 1001]), member("2.txt", b"t"), member("2.txt", b"u"), END.to_vec()]
            .concat();
        let index = read(&long);
        assert!(matches!(&index.entries[0].image, Some(Err(("too_many_bytes", _)))));
        assert_eq!(unread(&index), [("/2.txt", UNREAD)]);
    }

    #[test]
    fn an_archive_is_read_through_compression_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, scratch) = (folder.path().join("a.tar"), folder.path().join("scratch"));
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut file = TarSamples::open(&path, Some(&scratch))?;
            let index = file.index(1000, Role::PAIR)?;
            let image = index.entries.first().and_then(|entry| entry.image.clone());
            Ok::<_, DatasetError>((file.part(image)?, index.unread.len()))
        };
        let tar = [member("1.jpg", b"one"), member("1.txt", b"text"), END.to_vec()].concat();
        let zstd = zstd::stream::encode_all(&tar[..], 1).unwrap();
        for bytes in [&tar, &zstd] {
            assert_eq!(open(bytes).unwrap(), (Some(Ok(b"one".to_vec())), 0));
        }
        assert_eq!(open(&END).unwrap(), (None, 0), "an archive without members");
        let cases: [(&[u8], &str); 5] = [
            (b"", "is an empty file, not a tar archive"),
            (b"<html>", "is an HTML page, not a tar archive"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not a tar archive"),
            (&zstd::stream::encode_all(&b"url,caption"[..], 1).unwrap(), "is plain text, not a tar archive"),
            (&[1; 2000], "damaged: not a tar archive"),
        ];
        for (bytes, expected) in cases {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("a.tar"), "{error}");
        }
    }

    proptest! {
        /// Whatever the names, each file is a part of a sample or unread.
        #[test]
        fn every_member_is_a_part_or_unread(
            names in proptest::collection::vec("[ab./ é_]{0,6}[.]?(jpg|TXT|json|Png|cls|x y|)", 1..12),
            kinds in proptest::collection::vec(prop_oneof![8 => Just(b'0'), 1 => Just(b'2'), 1 => Just(b'S')], 12),
        ) {
            let files = names.iter().zip(&kinds).map(|(name, kind)| typed(name, *kind, b"x"));
            let bytes = [files.collect::<Vec<_>>().concat(), END.to_vec()].concat();
            let index = read(&bytes);
            let parts = |entry: &Entry| {
                let all = [&entry.image, &entry.text, &entry.json, &entry.class, &entry.vector];
                all.into_iter().flatten().count()
            };
            let read = index.entries.iter().map(parts).sum::<usize>() + index.unread.len();
            prop_assert_eq!(read, names.len(), "{:?}", index);
        }
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
