//! Lets a program decode images in processes of their own, whose death is the end of one image.
//!
//! Both sides are here, but for the processes: what is asked, and the answer as bytes. The answer
//! of a process that strangers' bytes have taken over is held to what was asked.

use std::io::{self, Read, Write};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::decode::here::{DecodedImage, decode_here};
use crate::error::ImageError;
use crate::header::probe;
use crate::limits::Limits;
use crate::modes::ImageModes;
use crate::rgb::Rgb;
use crate::sniff::Format;

/// The longest head of an answer, in bytes. EXIF tags as JSON are much shorter.
const MAX_HEAD: usize = 16 << 20;

/// An image to be decoded. Its header has passed the caller's limits.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRequest<'a> {
    /// The encoded bytes.
    pub bytes: &'a [u8],
    /// The rule for images that are not plain RGB.
    pub modes: ImageModes,
    /// 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size.
    pub reduction: u32,
}

/// Decodes in other processes.
pub trait RemoteDecoder: Send + Sync {
    /// Decodes an image.
    ///
    /// # Errors
    /// Those of [`crate::decode`], or [`ImageError::KilledTheProcess`].
    fn decode(&self, request: DecodeRequest<'_>) -> Result<DecodedImage, ImageError>;
}

/// Where images are decoded is a matter of the process as a whole, as [`crate::watch_decoders`].
static REMOTE: RwLock<Option<Arc<dyn RemoteDecoder>>> = RwLock::new(None);

/// Sets who decodes the images of this process; `None` for the process itself. Only programs should
/// call it.
pub fn decode_remotely(decoder: Option<Arc<dyn RemoteDecoder>>) {
    *REMOTE.write().unwrap_or_else(PoisonError::into_inner) = decoder;
}

pub(crate) fn remote_decoder() -> Option<Arc<dyn RemoteDecoder>> {
    REMOTE.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl DecodeRequest<'_> {
    /// Decodes in this process, without limits: they were checked by who asks.
    ///
    /// # Errors
    /// Those of [`crate::decode`].
    pub fn decode(self) -> Result<DecodedImage, ImageError> {
        let header = probe(self.bytes, &Limits::none())?;
        decode_here(self.bytes, &header, self.modes, self.reduction)
    }

    /// Writes the request.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let is_white = u8::from(self.modes == ImageModes::White);
        let mut head = vec![is_white, self.reduction as u8];
        head.extend((self.bytes.len() as u64).to_le_bytes());
        out.write_all(&head)?;
        out.write_all(self.bytes)?;
        out.flush()
    }

    /// Reads a request, whose bytes go to `bytes`; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of the reader; `UnexpectedEof` within a request.
    pub fn read<'a>(input: &mut impl Read, bytes: &'a mut Vec<u8>) -> io::Result<Option<DecodeRequest<'a>>> {
        let mut head = [0; 10];
        if input.read(&mut head[..1])? == 0 {
            return Ok(None);
        }
        input.read_exact(&mut head[1..])?;
        let [modes, reduction, length @ ..] = head;
        let length = u64::from_le_bytes(length);
        bytes.clear();
        if input.take(length).read_to_end(bytes)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let modes = if modes == 1 { ImageModes::White } else { ImageModes::OpenClip };
        Ok(Some(DecodeRequest { bytes, modes, reduction: reduction.into() }))
    }

    /// Reads the answer to this request. The inner error is that of the image.
    ///
    /// # Errors
    /// Those of the reader; `InvalidData` if it answers no such request.
    pub fn read_answer(&self, input: &mut impl Read) -> io::Result<Result<DecodedImage, ImageError>> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_HEAD {
            return Err(wrong("an answer of too many bytes"));
        }
        let mut head = vec![0; length];
        input.read_exact(&mut head)?;
        let head: Answer = serde_json::from_slice(&head)?;
        let head = match head {
            Answer::Failed(error) => return Ok(Err(error)),
            Answer::Decoded(head) => head,
        };
        let header = probe(self.bytes, &Limits::none()).map_err(|_| wrong("pixels of no image"))?;
        let (declared, pixels) = (
            u64::from(header.width) * u64::from(header.height),
            u64::from(head.width) * u64::from(head.height),
        );
        if pixels > declared || head.format != header.format {
            return Err(wrong("pixels of another image"));
        }
        let mut values = vec![0; pixels as usize * 3];
        input.read_exact(&mut values)?;
        Ok(Rgb::new(head.width, head.height, values).map(|rgb| DecodedImage {
            rgb,
            original_width: head.original_width,
            original_height: head.original_height,
            format: head.format,
            reoriented: head.reoriented,
            exif: head.exif,
        }))
    }
}

/// What stands before the pixels.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Decoded(Head),
    Failed(ImageError),
}

/// A decoded image but for its pixels.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    width: u32,
    height: u32,
    original_width: u32,
    original_height: u32,
    format: Format,
    reoriented: bool,
    exif: Option<String>,
}

/// Writes the answer to a request.
///
/// # Errors
/// Those of the writer.
pub fn write_answer(out: &mut impl Write, decoded: Result<DecodedImage, ImageError>) -> io::Result<()> {
    let (answer, pixels) = match decoded {
        Err(error) => (Answer::Failed(error), Vec::new()),
        Ok(image) => {
            let DecodedImage { rgb, original_width, original_height, format, reoriented, exif } = image;
            let (width, height) = (rgb.width(), rgb.height());
            let head = Head { width, height, original_width, original_height, format, reoriented, exif };
            (Answer::Decoded(head), rgb.into_pixels())
        }
    };
    let head = serde_json::to_vec(&answer)?;
    out.write_all(&(head.len() as u32).to_le_bytes())?;
    out.write_all(&head)?;
    out.write_all(&pixels)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Encode, Encoding, encode};

    fn png(width: u32, height: u32) -> Vec<u8> {
        let pixels = (0..width * height * 3).map(|value| value as u8).collect();
        let target = Encode { format: Encoding::Png, ..Encode::default() }.target(Format::Png);
        encode(&Rgb::new(width, height, pixels).unwrap(), target, None).unwrap()
    }

    /// As another process would answer.
    fn answer(request: DecodeRequest<'_>) -> Vec<u8> {
        let (mut asked, mut answer, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        request.write(&mut asked).unwrap();
        let mut asked = &asked[..];
        let request = DecodeRequest::read(&mut asked, &mut bytes).unwrap().unwrap();
        write_answer(&mut answer, request.decode()).unwrap();
        assert!(DecodeRequest::read(&mut asked, &mut Vec::new()).unwrap().is_none());
        answer
    }

    #[test]
    fn an_answer_is_what_this_process_would_decode() {
        let (whole, mut damaged) = (png(7, 5), png(7, 5));
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        for bytes in [whole, damaged, b"\x89PNG\r\n\x1a\n".to_vec(), b"<html>".to_vec()] {
            for modes in [ImageModes::White, ImageModes::OpenClip] {
                let request = DecodeRequest { bytes: &bytes, modes, reduction: 1 };
                assert_eq!(request.read_answer(&mut &answer(request)[..]).unwrap(), request.decode());
            }
        }
    }

    #[test]
    fn an_answer_to_something_else_is_refused() {
        let (small, large) = (png(7, 5), png(70, 50));
        let ask = |bytes| DecodeRequest { bytes, modes: ImageModes::White, reduction: 1 };
        let (small, large) = (ask(&small), ask(&large));
        let answered = answer(large);
        assert!(small.read_answer(&mut &answered[..]).is_err(), "more pixels than were declared");
        assert!(large.read_answer(&mut &answered[..answered.len() - 1]).is_err(), "cut off");
        assert!(small.read_answer(&mut &[255u8; 64][..]).is_err(), "a head without end");
    }
}
