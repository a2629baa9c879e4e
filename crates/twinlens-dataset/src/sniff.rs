//! What a file is, by its first bytes: names lie. For all readers of files that others wrote.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Bytes from the start of a file that [`FileKind::of`] looks at.
pub const SNIFF_BYTES: usize = 1024;

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// No bytes at all.
    Empty,
    /// Data compressed by a format that [`crate::unpack`] reads.
    Compressed(Compression),
    /// An archive or compressed format that is not read.
    Unsupported(Unsupported),
    /// A tar archive: `ustar` at byte 257, or a valid checksum of the older format.
    Tar,
    /// A Parquet file.
    Parquet,
    /// An Arrow IPC file; Feather 2.
    ArrowFile,
    /// An Arrow IPC stream.
    ArrowStream,
    /// A web archive of the WARC format.
    Warc,
    /// A web archive of the older ARC format.
    Arc,
    /// An image: JPEG, PNG, GIF or WebP.
    Image,
    /// The pointer that Git LFS stores instead of the file.
    LfsPointer,
    /// A page of a web server, mostly an error page.
    Html,
    /// XML, mostly an error of an object store.
    Xml,
    /// UTF-16 text with a little-endian byte order mark.
    Utf16Le,
    /// UTF-16 text with a big-endian byte order mark.
    Utf16Be,
    /// UTF-8 text with a byte order mark.
    Utf8Bom,
    /// Bytes without control characters: text in UTF-8 or an 8-bit encoding.
    Text,
    /// Anything else.
    Binary,
}

/// A compression format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard, of one or more frames.
    Zstd,
    /// bzip2, of one or more streams.
    Bzip2,
    /// xz, of one or more streams.
    Xz,
}

/// A format that is recognised but not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the formats' own")]
pub enum Unsupported {
    Lz4,
    Zip,
    SevenZip,
    Rar,
    Pdf,
    Feather1,
    EncryptedParquet,
    Utf32,
    NumPy,
    Sqlite,
}

use Compression::{Bzip2, Gzip, Xz, Zstd};
use FileKind::*;

/// Magic bytes at the start of a file; longer ones before their prefixes.
const MAGIC: &[(&[u8], FileKind)] = &[
    (b"\x1f\x8b\x08", Compressed(Gzip)),
    (b"\x28\xb5\x2f\xfd", Compressed(Zstd)),
    (b"PAR1", Parquet),
    (b"ARROW1", ArrowFile),
    (b"\xff\xff\xff\xff", ArrowStream),
    (b"WARC/", Warc),
    (b"filedesc://", Arc),
    (b"\xff\xd8\xff", Image),
    (b"\x89PNG\r\n\x1a\n", Image),
    (b"GIF87a", Image),
    (b"GIF89a", Image),
    (b"version https://git-lfs.github.com/spec/", LfsPointer),
    (b"\xfd7zXZ\0", Compressed(Xz)),
    (b"\x04\x22\x4d\x18", Unsupported(Unsupported::Lz4)),
    (b"PK\x03\x04", Unsupported(Unsupported::Zip)),
    (b"PK\x05\x06", Unsupported(Unsupported::Zip)),
    (b"7z\xbc\xaf\x27\x1c", Unsupported(Unsupported::SevenZip)),
    (b"Rar!\x1a\x07", Unsupported(Unsupported::Rar)),
    (b"%PDF-", Unsupported(Unsupported::Pdf)),
    (b"FEA1", Unsupported(Unsupported::Feather1)),
    (b"PARE", Unsupported(Unsupported::EncryptedParquet)),
    (b"\xff\xfe\0\0", Unsupported(Unsupported::Utf32)),
    (b"\0\0\xfe\xff", Unsupported(Unsupported::Utf32)),
    (b"\x93NUMPY", Unsupported(Unsupported::NumPy)),
    (b"SQLite format 3\0", Unsupported(Unsupported::Sqlite)),
    (b"\xff\xfe", Utf16Le),
    (b"\xfe\xff", Utf16Be),
];

/// What pages of web servers start with, in lower case.
const HTML: &[&[u8]] = &[b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title"];
/// What XML documents start with; S3 and its like answer errors with `<Error>`.
const XML: &[&[u8]] = &[b"<?xml", b"<error>"];

/// Of text, at most one byte in so many is a control character: captions of the web have some, and
/// one of them does not make a file binary.
const MAX_CONTROL: usize = 20;

impl FileKind {
    /// The kind of a file that starts with these bytes: [`SNIFF_BYTES`] of them, or all that it
    /// has.
    pub fn of(start: &[u8]) -> Self {
        if start.is_empty() {
            return Empty;
        }
        // A tar file starts with the name of its first member, which may look like anything.
        if crate::tar::is_header(start) {
            return Tar;
        }
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
            return *kind;
        }
        if is_bzip2(start) {
            return Compressed(Bzip2);
        }
        if is_zstd_skippable(start) {
            return Compressed(Zstd);
        }
        if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP") {
            return Image;
        }
        Self::of_text(start)
    }

    /// The kind and the length of a file, which is left at its start.
    pub(crate) fn of_file(file: &mut File) -> io::Result<(Self, u64)> {
        let mut start = Vec::new();
        file.by_ref().take(SNIFF_BYTES as u64).read_to_end(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        Ok((Self::of(&start), file.metadata()?.len()))
    }

    fn of_text(start: &[u8]) -> Self {
        let unmarked = start.strip_prefix(b"\xef\xbb\xbf");
        let text = unmarked.unwrap_or(start);
        let tag = text.trim_ascii_start();
        let starts = |tags: &[&[u8]]| {
            tags.iter()
                .any(|name| tag.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name)))
        };
        let is_control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b);
        if starts(HTML) {
            Html
        } else if starts(XML) {
            Xml
        } else if MAX_CONTROL * text.iter().filter(|byte| is_control(byte)).count() > text.len() {
            Binary
        } else if unmarked.is_some() {
            Utf8Bom
        } else {
            Text
        }
    }

    /// Whether lines of text may be read from it.
    pub fn is_text(self) -> bool {
        matches!(self, Text | Utf8Bom | Utf16Le | Utf16Be)
    }

    /// What to do with a file of this kind that was expected to be another.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Compressed(_) => "decompress it first",
            LfsPointer => "run `git lfs pull` in its repository to fetch the file itself",
            Html | Xml => {
                "the server sent a page instead of the file (a log-in, an error): download it again"
            }
            Empty => "the download or copy failed: get the file again",
            Arc => "convert it to WARC, for instance with `warcio recompress`",
            Unsupported(Unsupported::Lz4) => "decompress it with `lz4 -d`",
            Unsupported(Unsupported::Zip) => "extract it with `unzip`",
            Unsupported(Unsupported::SevenZip) => "extract it with `7z x`",
            Unsupported(Unsupported::Rar) => "extract it with `unrar x`",
            Unsupported(Unsupported::Feather1) => "write it again as Feather 2 or Parquet",
            Unsupported(Unsupported::Utf32) => "convert it with `iconv -f UTF-32 -t UTF-8`",
            _ => return None,
        })
    }
}

/// `BZh`, the block size, and the magic of a block or of the end.
fn is_bzip2(start: &[u8]) -> bool {
    let block = start.get(4..10);
    start.starts_with(b"BZh")
        && matches!(start.get(3), Some(b'1'..=b'9'))
        && (block == Some(b"1AY&SY") || block == Some(b"\x17\x72\x45\x38\x50\x90"))
}

/// Parallel compressors start with a skippable frame.
fn is_zstd_skippable(start: &[u8]) -> bool {
    matches!(start.first(), Some(0x50..=0x5f)) && start.get(1..4) == Some(b"\x2a\x4d\x18")
}

impl Display for FileKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Empty => "an empty file",
            Compressed(Gzip) => "a gzip file",
            Compressed(Zstd) => "a Zstandard file",
            Compressed(Bzip2) => "a bzip2 file",
            Compressed(Xz) => "an xz file",
            Unsupported(Unsupported::Lz4) => "an LZ4 file",
            Unsupported(Unsupported::Zip) => "a zip archive",
            Unsupported(Unsupported::SevenZip) => "a 7-Zip archive",
            Unsupported(Unsupported::Rar) => "a RAR archive",
            Unsupported(Unsupported::Pdf) => "a PDF document",
            Unsupported(Unsupported::Feather1) => "a file of the old Feather 1 format",
            Unsupported(Unsupported::EncryptedParquet) => "an encrypted Parquet file",
            Unsupported(Unsupported::Utf32) => "UTF-32 text",
            Unsupported(Unsupported::NumPy) => "a NumPy array",
            Unsupported(Unsupported::Sqlite) => "a SQLite database",
            Tar => "a tar archive",
            Parquet => "a Parquet file",
            ArrowFile => "an Arrow file",
            ArrowStream => "an Arrow stream",
            Warc => "a WARC file",
            Arc => "an ARC file",
            Image => "an image",
            LfsPointer => "a Git LFS pointer",
            Html => "an HTML page",
            Xml => "an XML document",
            Utf16Le | Utf16Be => "UTF-16 text",
            Utf8Bom | Text => "plain text",
            Binary => "binary data of an unknown format",
        })
    }
}

#[cfg(test)]
mod tests {
    use twinlens_testkit::tar::{END, member};

    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        let tar = [member("PAR1", b"x"), END.to_vec()].concat();
        let mut old = tar.clone();
        // The format before POSIX has no magic; its checksum is right.
        old[257..265].fill(0);
        let sum: u32 = old[..512].iter().map(|byte| u32::from(*byte)).sum::<u32>()
            - old[148..156].iter().map(|byte| u32::from(*byte)).sum::<u32>()
            + 8 * 32;
        old[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut damaged = tar.clone();
        damaged[0] ^= 1;
        let cases: &[(&[u8], &str)] = &[
            (b"", "an empty file"),
            (b"\x1f\x8b\x08\0", "a gzip file"),
            (b"\x28\xb5\x2f\xfd\x04", "a Zstandard file"),
            (b"\x50\x2a\x4d\x18\x04\0\0\0", "a Zstandard file"),
            (b"BZh91AY&SY", "a bzip2 file"),
            (b"BZh are my initials", "plain text"),
            (b"\xfd7zXZ\0\0", "an xz file"),
            (b"PK\x03\x04\x14", "a zip archive"),
            (&tar, "a tar archive"),
            (&old, "a tar archive"),
            (&damaged, "a tar archive"),
            (&[0; 1024], "binary data of an unknown format"),
            (b"PAR1\x15", "a Parquet file"),
            (b"ARROW1\0\0", "an Arrow file"),
            (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream"),
            (b"WARC/1.1\r\n", "a WARC file"),
            (b"filedesc://x.arc 0.0.0.0", "an ARC file"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
            (b"\xef\xbb\xbf\r\n <!DOCTYPE HTML>", "an HTML page"),
            (b"<html lang=en>", "an HTML page"),
            (b"<?xml version='1.0'?><Error>", "an XML document"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "an image"),
            (b"\xff\xfeu\0r\0l\0", "UTF-16 text"),
            (b"\xfe\xff\0u\0r", "UTF-16 text"),
            (b"\xef\xbb\xbfurl,caption", "plain text"),
            (b"url\tcaf\xe9\n", "plain text"),
            (b"{\"url\": 1}", "plain text"),
            (b"\x80\x02}q\0", "binary data of an unknown format"),
            (b"url\tcaption\nhttp://a.b/1.png\ta\0b\n", "plain text"),
            (b"u\0r\0l\0\n\0", "binary data of an unknown format"),
        ];
        for (start, expected) in cases {
            let shown = FileKind::of(&start[..start.len().min(SNIFF_BYTES)]).to_string();
            assert_eq!(shown, *expected, "{:?}", String::from_utf8_lossy(&start[..start.len().min(40)]));
        }
    }
}
