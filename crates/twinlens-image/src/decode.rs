//! Decodes encoded bytes to 8-bit RGB, by the rules in the crate's documentation.

mod avif;
mod bmp;
mod formats;
mod frames;
pub(crate) mod here;
mod ico;
mod library;
mod tiff;

pub use self::here::DecodedImage;
use self::here::decode_here;
use crate::error::ImageError;
use crate::header::{Header, probe};
use crate::limits::Limits;
use crate::modes::ImageModes;
use crate::remote::{DecodeRequest, remote_decoder};

/// Decodes an image by [`ImageModes::White`] after checking its header against the limits
/// ([`probe`]).
///
/// # Errors
/// Those of [`probe`]; then `unsupported_format` (a feature that the decoder does not support),
/// `decode_failed`, `decoder_panicked` (see [`crate::silence_decoder_panics`]).
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<DecodedImage, ImageError> {
    decode_as(bytes, limits, ImageModes::White)
}

/// Like [`decode`], by either rule.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_as(bytes: &[u8], limits: &Limits, modes: ImageModes) -> Result<DecodedImage, ImageError> {
    decode_probed(bytes, &probe(bytes, limits)?, modes, 1)
}

/// Like [`decode`], but at 1/`by` of the size if the format is JPEG. `by` is 1, 2, 4 or 8; sides
/// are rounded up.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_reduced(bytes: &[u8], limits: &Limits, by: u32) -> Result<DecodedImage, ImageError> {
    decode_probed(bytes, &probe(bytes, limits)?, ImageModes::White, by)
}

/// Decodes an image that [`probe`] accepted.
pub(crate) fn decode_probed(
    bytes: &[u8],
    header: &Header,
    modes: ImageModes,
    by: u32,
) -> Result<DecodedImage, ImageError> {
    match remote_decoder() {
        Some(remote) => remote.decode(DecodeRequest { bytes, modes, reduction: by }),
        None => decode_here(bytes, header, modes, by),
    }
}
