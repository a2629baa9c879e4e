//! Writes tar files (POSIX ustar) with the headers of Python's `webdataset` package and time 0.

use std::io::{self, Write};

/// Size of a tar block, in bytes.
const BLOCK: usize = 512;
/// The length of a tar file is a multiple of this, in bytes.
const RECORD: u64 = 10_240;
/// The longest name that a header holds, in bytes.
const NAME: usize = 100;
/// The longest member, in bytes: eleven octal digits.
const MEMBER: u64 = 1 << 33;

/// A tar file open for writing.
pub(super) struct Tar<W> {
    out: W,
    written: u64,
}

impl<W: Write> Tar<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0 }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.written
    }

    /// Adds a member.
    ///
    /// # Errors
    /// I/O errors; `InvalidInput` for a name or content that is too long.
    pub(super) fn append(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.write(&header(name, data.len() as u64)?)?;
        self.write(data)?;
        self.write(&[0; BLOCK][..data.len().next_multiple_of(BLOCK) - data.len()])
    }

    /// Writes the end marker.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let end = (self.written + 2 * BLOCK as u64).next_multiple_of(RECORD);
        self.write(&vec![0; (end - self.written) as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

fn header(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
    if name.len() > NAME || size >= MEMBER {
        let why = format!("{name}: too long for a member of a tar file ({size} bytes)");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000444\0");
    // User and group, by number.
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // The checksum field counts as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    put(265, "bigdata");
    put(297, "bigdata");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_equal_those_of_python() {
        // tarfile.TarInfo("000000000.jpg") with size 700, mode 0o444, uname and gname "bigdata",
        // mtime 0, as USTAR: its sum.
        let header = header("000000000.jpg", 700).unwrap();
        assert_eq!(&header[148..156], b"012240\0 ");
        assert_eq!(&header[..14], b"000000000.jpg\0");
    }

    #[test]
    fn members_are_padded_and_the_file_ends_on_a_record() {
        let mut tar = Tar::new(Vec::new());
        tar.append("a.txt", b"abc").unwrap();
        tar.append("b.txt", &[7; 512]).unwrap();
        assert_eq!(tar.bytes(), 4 * 512);
        let bytes = tar.finish().unwrap();
        assert_eq!(bytes.len() as u64, RECORD);
        assert_eq!((&bytes[512..516], &bytes[1536..1539]), (&b"abc\0"[..], &[7; 3][..]));
        assert!(bytes[2048..].iter().all(|byte| *byte == 0));
        let mut tar = Tar::new(Vec::new());
        assert!(tar.append(&"x".repeat(101), b"").is_err());
    }
}
