//! Writes tar files (POSIX ustar), as the `webdataset` package of Python writes them: the same
//! heads, with the time 0.

use std::io::{self, Write};

/// The unit of a tar file, in bytes.
const BLOCK: usize = 512;
/// A tar file is a whole number of records of this many bytes.
const RECORD: u64 = 10_240;
/// The longest name that a head holds, in bytes.
const NAME: usize = 100;
/// The longest member: eleven octal digits of bytes.
const MEMBER: u64 = 1 << 33;

/// A tar file that is being written.
pub(super) struct Tar<W> {
    out: W,
    written: u64,
}

impl<W: Write> Tar<W> {
    /// An empty one.
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0 }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.written
    }

    /// Adds a member.
    ///
    /// # Errors
    /// What the system says; `InvalidInput` for a name or content that is too long.
    pub(super) fn append(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.write(&head(name, data.len() as u64)?)?;
        self.write(data)?;
        self.write(&[0; BLOCK][..data.len().next_multiple_of(BLOCK) - data.len()])
    }

    /// Writes the end mark.
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

fn head(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
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
    // The checksum counts as spaces in its own sum.
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
    fn the_head_is_the_one_that_python_writes() {
        // tarfile.TarInfo("000000000.jpg") with size 700, mode 0o444, uname and gname "bigdata",
        // mtime 0, as USTAR: its sum.
        let head = head("000000000.jpg", 700).unwrap();
        assert_eq!(&head[148..156], b"012240\0 ");
        assert_eq!(&head[..14], b"000000000.jpg\0");
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
