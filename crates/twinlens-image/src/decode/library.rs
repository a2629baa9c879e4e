//! Decodes files by the crate `image`.

use std::io::{Cursor, ErrorKind};

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageDecoder};

use crate::error::ImageError;
use crate::header::Header;
use crate::header::other::open;
use crate::raw::ColourModel;
use crate::sniff::Format;

/// Pixels as the library gives them, and their metadata.
pub(super) struct Decoded {
    pub(super) image: DynamicImage,
    pub(super) colour_model: ColourModel,
    pub(super) metadata: Metadata,
}

pub(super) struct Metadata {
    pub(super) icc: Option<Vec<u8>>,
    pub(super) exif: Option<Vec<u8>>,
    pub(super) orientation: Orientation,
}

/// Decodes a file of one image.
pub(super) fn read(bytes: &[u8], header: &Header) -> Result<Decoded, ImageError> {
    let failed = |error| decoder_error(header.format, error);
    let bounds = limits(header);
    let decoder: Box<dyn ImageDecoder + '_> = match header.format {
        // It reads chunks of text and profiles at once: these count against the limits.
        Format::Png => Box::new(PngDecoder::with_limits(Cursor::new(bytes), bounds).map_err(failed)?),
        format => open(bytes, format).map_err(failed)?,
    };
    read_from(decoder, header)
}

/// Decodes what a decoder that has read its header announces.
pub(super) fn read_from(
    mut decoder: Box<dyn ImageDecoder + '_>,
    header: &Header,
) -> Result<Decoded, ImageError> {
    let failed = |error| decoder_error(header.format, error);
    if decoder.dimensions() != (header.width, header.height) {
        let reason = format!("the decoder sees {:?} pixels, the header says otherwise", decoder.dimensions());
        return Err(ImageError::DecodeFailed { format: header.format, reason });
    }
    decoder.set_limits(limits(header)).map_err(failed)?;
    let metadata = metadata(&mut *decoder);
    let colour_model = match decoder.original_color_type() {
        ExtendedColorType::L1
        | ExtendedColorType::L2
        | ExtendedColorType::L4
        | ExtendedColorType::L8
        | ExtendedColorType::L16
        | ExtendedColorType::La8
        | ExtendedColorType::La16 => ColourModel::Grey,
        ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16 => ColourModel::Cmyk,
        _ => ColourModel::Rgb,
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    if header.format == Format::Pnm && matches!(image, DynamicImage::ImageRgb16(_)) {
        // The one format of which Pillow too rounds deep colours.
        image = image.into_rgb8().into();
    }
    Ok(Decoded { image, colour_model, metadata })
}

/// What a file says beside its pixels. Damaged metadata must not reject good pixels.
pub(super) fn metadata(decoder: &mut dyn ImageDecoder) -> Metadata {
    Metadata {
        icc: decoder.icc_profile().ok().flatten(),
        exif: decoder.exif_metadata().ok().flatten(),
        orientation: decoder.orientation().unwrap_or(Orientation::NoTransforms),
    }
}

/// Limits for the decoder itself, in case it reads the header differently than [`crate::probe`].
fn limits(header: &Header) -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    // Text and profile chunks also count against it.
    limits.max_alloc = Some(header.decode_bytes.saturating_add(16 << 20));
    limits
}

pub(super) fn decoder_error(format: Format, error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(error) => ImageError::UnsupportedFormat(error.to_string()),
        image::ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated(format)
        }
        error => ImageError::DecodeFailed { format, reason: error.to_string() },
    }
}
