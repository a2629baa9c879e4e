//! What files are in a sample, by their names.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::DatasetError;

/// Longest file of a sample other than the image, in bytes.
pub(super) const MAX_TEXT: u64 = 1 << 20;
/// Code: a file is longer than its limit.
pub const TOO_MANY_BYTES: &str = "too_many_bytes";
/// Code: a file that is not part of a sample.
pub const UNREAD: &str = "unread_file";
/// File extensions of images, in lower case. Formats that cannot be decoded are refused later, by
/// content.
const IMAGES: &[&str] = &[
    "jpg", "jpeg", "jpe", "jfif", "jif", "pjpeg", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
    "avif", "heic", "heif", "jxl", "jp2", "j2k", "jpx", "ico", "tga", "ppm", "pgm", "pbm", "pnm", "psd",
    "svg",
];

/// What a file of a sample holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The encoded image.
    Image,
    /// `txt`, `text` or `caption`: the caption, or captions, one per line.
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
            "txt" | "text" | "caption" => Some(Self::Text),
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

/// Why a sample is refused: a code (`damaged_archive`, `truncated_archive`, `too_many_bytes`,
/// `unread_file`) and details.
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
    /// The class label: of a tar file, the text of the `cls` file.
    pub class: Part,
    /// What metadata files say about the image, one for each of their rows.
    pub metadata: Vec<Result<serde_json::Map<String, serde_json::Value>, Refusal>>,
}

/// The files that form one sample; `P` is where the content of a file is.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<P = (u64, u64)> {
    /// The common name of its files, up to the last dot.
    pub key: String,
    /// Full name of the image.
    pub path: String,
    /// The image.
    pub image: Option<Result<P, Refusal>>,
    /// The text.
    pub text: Option<Result<P, Refusal>>,
    /// The JSON.
    pub json: Option<Result<P, Refusal>>,
    /// The class label.
    pub class: Option<Result<P, Refusal>>,
    /// The vector of labels.
    pub vector: Option<Result<P, Refusal>>,
}

impl<P> Entry<P> {
    fn new(key: &str) -> Self {
        let (image, text, json, class, vector) = (None, None, None, None, None);
        Self { key: key.into(), path: String::new(), image, text, json, class, vector }
    }
}

/// A file that is not part of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Where it is, to be appended to the name of the archive or directory: `/README.md`,
    /// ` byte 512`.
    pub place: String,
    /// Why.
    pub refusal: Refusal,
}

/// Groups files into samples. Each file becomes a part of an entry, or is unread.
#[derive(Debug)]
pub(super) struct Groups<P> {
    /// Ordered by their first file.
    pub(super) entries: Vec<Entry<P>>,
    pub(super) unread: Vec<Unread>,
    keys: HashMap<String, usize>,
}

impl<P> Groups<P> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), unread: Vec::new(), keys: HashMap::new() }
    }

    /// Adds a file by its name, which may contain directories; `part` says where its content is.
    pub(super) fn add(&mut self, name: &str, roles: &[Role], part: impl FnOnce(Role) -> Result<P, Refusal>) {
        let base = name.rsplit('/').next().unwrap_or_default();
        let (stem, extension) = match base.rsplit_once('.') {
            Some(("", _)) | None => return self.refuse(name, "its name has no extension"),
            Some(_) if base.starts_with('.') => return self.refuse(name, "a hidden file"),
            Some(parts) => parts,
        };
        let Some(role) = Role::of_extension(extension) else {
            return self.refuse(name, &format!("files `.{extension}` are not read"));
        };
        if !roles.contains(&role) {
            return self.refuse(name, &format!("files `.{extension}` are not used here"));
        }
        let key = &name[..name.len() - base.len() + stem.len()];
        let place = match self.keys.get(key) {
            Some(place) => *place,
            None => {
                self.keys.insert(key.to_string(), self.entries.len());
                self.entries.push(Entry::new(key));
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[place];
        let slot = match role {
            Role::Image => &mut entry.image,
            Role::Text => &mut entry.text,
            Role::Json => &mut entry.json,
            Role::Class => &mut entry.class,
            Role::Vector => &mut entry.vector,
        };
        if slot.is_some() {
            return self.refuse(name, "there is another file of this name and kind");
        }
        *slot = Some(part(role));
        if role == Role::Image {
            entry.path = name.to_string();
        }
    }

    pub(super) fn refuse(&mut self, name: &str, why: &str) {
        self.unread.push(Unread { place: format!("/{name}"), refusal: (UNREAD, why.into()) });
    }
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
