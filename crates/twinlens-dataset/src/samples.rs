//! Samples: images with their captions, metadata and labels, from tar files (WebDataset) and
//! directories. Which file is what follows from its extension alone ([`Role`]).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::DatasetError;
use crate::tar::{BLOCK, Member, TarItem, TarReader};
pub use crate::tar::{DAMAGED, TRUNCATED};

/// Longest file of a sample other than the image, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// Code: a file is longer than its limit.
pub const TOO_MANY_BYTES: &str = "too_many_bytes";
/// File extensions of images, in lower case. Formats that cannot be decoded are refused later, by
/// content.
const IMAGES: &[&str] =
    &["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "ppm"];

/// What a file of a sample holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The encoded image.
    Image,
    /// `txt`: the caption, or captions, one per line.
    Text,
    /// `json`: metadata, possibly with the caption.
    Json,
    /// `cls`: a class label.
    Class,
    /// `npy`: a vector of labels.
    Vector,
}

impl Role {
    /// The roles of image-text pairs.
    pub const PAIR: &[Self] = &[Self::Image, Self::Text, Self::Json];

    /// The role of files with an extension, in any case.
    fn of_extension(extension: &str) -> Option<Self> {
        match extension.to_ascii_lowercase().as_str() {
            "txt" => Some(Self::Text),
            "json" => Some(Self::Json),
            "cls" => Some(Self::Class),
            "npy" => Some(Self::Vector),
            image if IMAGES.contains(&image) => Some(Self::Image),
            _ => None,
        }
    }
}

/// Whether a file is an image by its extension.
pub fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.and_then(Role::of_extension) == Some(Role::Image)
}

/// Why a sample is refused: a code (`damaged_archive`, `truncated_archive`, `too_many_bytes`) and
/// details.
pub type Refusal = (&'static str, String);
/// Offset and length of a member's content in bytes, or why it cannot be read.
pub type Span = Result<(u64, u64), Refusal>;
/// A part of a sample: its bytes, or why it is refused; `None` if it is missing.
pub type Part = Option<Result<Vec<u8>, Refusal>>;

/// An image-text pair as it is stored.
#[derive(Debug, Default)]
pub struct Sample {
    /// Where it is: `00000.tar/000000012`.
    pub location: String,
    /// Name of the image file.
    pub path: String,
    /// The encoded image.
    pub image: Part,
    /// The text file.
    pub text: Part,
    /// The JSON file.
    pub json: Part,
}

/// The members of a tar file that form one sample.
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
    /// The class label.
    pub class: Option<Span>,
    /// The vector of labels.
    pub vector: Option<Span>,
}

impl Entry {
    /// Total length of its image, text and JSON in bytes.
    pub fn bytes(&self) -> u64 {
        let length = |span: &Option<Span>| match span {
            Some(Ok((_, length))) => *length,
            _ => 0,
        };
        length(&self.image) + length(&self.text) + length(&self.json)
    }
}

/// The samples of a tar file.
#[derive(Debug, Default)]
pub struct Index {
    /// Samples, ordered by their first member.
    pub entries: Vec<Entry>,
    /// Ranges that cannot be read: the offset in bytes, and why.
    pub damage: Vec<(u64, Refusal)>,
    keys: HashMap<String, usize>,
}

impl Index {
    /// Reads the headers of a tar file of `length` bytes. `max_image` is the longest image, in
    /// bytes; members with other roles than `roles` are ignored.
    ///
    /// # Errors
    /// Only I/O errors; damage is part of the result.
    pub fn read<R: BufRead + Seek>(
        input: R,
        length: u64,
        max_image: u64,
        roles: &[Role],
    ) -> io::Result<Self> {
        let mut index = Self::default();
        for item in TarReader::new(input, length) {
            match item? {
                TarItem::Member(member) => index.add(&member, max_image, roles),
                TarItem::Damage(damage) => index.damage.push((damage.offset, (damage.code, damage.detail))),
            }
        }
        Ok(index)
    }

    fn add(&mut self, member: &Member, max_image: u64, roles: &[Role]) {
        let (name, offset, size) = (member.name.as_str(), member.offset, member.size);
        let base = name.rsplit('/').next().unwrap_or_default();
        // As in webdataset: the key ends at the first dot after the last `/`.
        let Some((stem, extension)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else {
            return;
        };
        let key = &name[..name.len() - base.len() + stem.len()];
        let Some(role) = Role::of_extension(extension).filter(|role| roles.contains(role)) else { return };
        let limit = if role == Role::Image { max_image } else { MAX_TEXT };
        let span = if !member.is_complete {
            Err((TRUNCATED, format!("the file ends within {name}")))
        } else if size > limit {
            Err((TOO_MANY_BYTES, format!("{name}: {size} bytes are more than the limit of {limit}")))
        } else {
            Ok((offset, size))
        };
        let place = *self.keys.entry(key.to_string()).or_insert_with(|| {
            self.entries.push(Entry { key: key.to_string(), ..Entry::default() });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[place];
        let part = match role {
            Role::Image => &mut entry.image,
            Role::Text => &mut entry.text,
            Role::Json => &mut entry.json,
            Role::Class => &mut entry.class,
            Role::Vector => &mut entry.vector,
        };
        if part.is_some() {
            let detail = format!("{name}: {key} already has a member of this kind");
            self.damage.push((offset - BLOCK, (DAMAGED, detail)));
            return;
        }
        *part = Some(span);
        if role == Role::Image {
            entry.path = name.to_string();
        }
    }
}

/// An open tar file of samples.
#[derive(Debug)]
pub struct TarSamples {
    path: PathBuf,
    file: File,
}

impl TarSamples {
    /// Opens a tar file.
    ///
    /// # Errors
    /// I/O errors with the path, as from all methods.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let file = File::open(path).map_err(|error| DatasetError::io(path, error))?;
        Ok(Self { path: path.into(), file })
    }

    /// The samples of the file; see [`Index::read`].
    pub fn index(&mut self, max_image: u64, roles: &[Role]) -> Result<Index, DatasetError> {
        let length = self.file.metadata().map(|metadata| metadata.len());
        let index =
            length.and_then(|length| Index::read(BufReader::new(&mut self.file), length, max_image, roles));
        index.map_err(|error| DatasetError::io(&self.path, error))
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

    /// Reads the image, text and JSON of a sample; `name` is the name of the file.
    pub fn sample(&mut self, name: &str, entry: Entry) -> Result<Sample, DatasetError> {
        Ok(Sample {
            location: format!("{name}/{}", entry.key),
            path: entry.path,
            image: self.part(entry.image)?,
            text: self.part(entry.text)?,
            json: self.part(entry.json)?,
        })
    }
}

/// The paths of all images below a directory, ordered by name, the files of a directory before its
/// subdirectories. Symbolic links to directories are not followed: they may form cycles.
///
/// # Errors
/// I/O errors with the path.
pub fn list_images(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let mut images = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let io = |error| DatasetError::io(&folder, error);
        let mut entries = fs::read_dir(&folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut folders = Vec::new();
        for entry in entries {
            let path = entry.path();
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(path);
            } else if is_image(&path) {
                images.push(path);
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(images)
}

/// Reads an image file, with the text and JSON files of the same name; `name` is its location.
///
/// # Errors
/// I/O errors with the path.
pub fn read_sample(image: &Path, name: &str, max_image: u64) -> Result<Sample, DatasetError> {
    let deleted = || Err(("no_image", "the file was deleted during the run".into()));
    Ok(Sample {
        location: name.into(),
        path: name.into(),
        image: Some(read_part(image, max_image)?.unwrap_or_else(deleted)),
        text: read_part(&image.with_extension("txt"), MAX_TEXT)?,
        json: read_part(&image.with_extension("json"), MAX_TEXT)?,
    })
}

/// Reads a file of a sample of at most `limit` bytes; `None` if it does not exist.
///
/// # Errors
/// I/O errors with the path.
pub fn read_part(path: &Path, limit: u64) -> Result<Part, DatasetError> {
    let io = |error| DatasetError::io(path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Ok(Some(Err((TOO_MANY_BYTES, format!("longer than {limit} bytes")))));
    }
    Ok(Some(Ok(bytes)))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use twinlens_testkit::tar::{END, member, typed};

    use super::*;

    fn read(bytes: &[u8]) -> Index {
        Index::read(Cursor::new(bytes), bytes.len() as u64, 1000, Role::PAIR).unwrap()
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
