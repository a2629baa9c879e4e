//! Decodes AVIF to the values that Pillow shows, which are those of libavif 1.4 with libyuv.

mod av1;
mod fixed;
mod float;
mod planes;

use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};

use self::av1::failed;
use self::fixed::Coefficients;
use self::float::Formula;
use self::planes::Planes;
use crate::error::ImageError;
use crate::header::Header;
use crate::header::avif::{Avif, Colours, Layout, read};
use crate::modes::ImageModes;
use crate::raw::{ColourModel, RawImage};
use crate::sniff::Format;

/// Decodes an image that [`crate::probe`] accepted.
pub(super) fn decode(bytes: &[u8], header: &Header, modes: ImageModes) -> Result<RawImage, ImageError> {
    let avif = read(bytes).map_err(|fault| fault.into_error(Format::Avif))?;
    let conversion = Conversion::new(avif.colours, avif.colour.sequence.layout)?;
    let planes = planes::decode(&avif.colour)?;
    let alpha = avif.alpha.as_ref().map(planes::decode_alpha).transpose()?;
    let image = to_rgb(&planes, alpha.as_deref(), &avif, conversion);
    drop((planes, alpha));
    let grey = avif.colour.sequence.layout == Layout::Grey;
    let image = image.filter(|image| (image.width(), image.height()) == (header.width, header.height));
    let image = image.ok_or_else(|| failed("the planes have another size than the header"))?;
    Ok(RawImage {
        width: header.width,
        height: header.height,
        pixels: modes.convert(image),
        colour_model: if grey { ColourModel::Grey } else { ColourModel::Rgb },
        icc: avif.icc.map(<[u8]>::to_vec),
        exif: avif.exif.map(|exif| exif.into_owned()),
        orientation: avif.orientation,
    })
}

/// The arithmetic by which libavif makes RGB of planes: libyuv's where it has the coefficients.
#[derive(Clone, Copy)]
enum Conversion {
    Fixed(&'static Coefficients),
    Float(Formula),
}

impl Conversion {
    fn new(colours: Colours, layout: Layout) -> Result<Self, ImageError> {
        let Colours { primaries, matrix, full_range } = colours;
        let grey = layout == Layout::Grey;
        // Chromaticity-derived coefficients are those of the primaries.
        let matrix = match (matrix, primaries) {
            (12, 1 | 2) => 1,
            (12, 5 | 6) => 6,
            (12, 9) => 9,
            // Values without a matrix: libavif takes BT.601 for grey ones.
            (0, _) if grey => 6,
            (matrix, _) => matrix,
        };
        if let Some(coefficients) = fixed::coefficients(matrix, full_range) {
            return Ok(Self::Fixed(coefficients));
        }
        let formula = match matrix {
            0 if layout == Layout::Yuv444 => Formula::Identity,
            4 => Formula::matrix(0.30, 0.11),
            7 => Formula::matrix(0.212, 0.087),
            8 if full_range => Formula::YCgCo,
            _ => {
                return Err(ImageError::UnsupportedFormat(format!("AVIF with matrix coefficients {matrix}")));
            }
        };
        Ok(Self::Float(formula))
    }
}

fn to_rgb(
    planes: &Planes,
    alpha: Option<&[u16]>,
    avif: &Avif<'_>,
    conversion: Conversion,
) -> Option<DynamicImage> {
    let (width, height) = (planes.width, planes.height);
    let range = avif.colours.full_range;
    let Some(alpha) = alpha else {
        if planes.layout == Layout::Grey {
            return GrayImage::from_raw(width, height, float::grey(planes, range)).map(Into::into);
        }
        let pixels = match conversion {
            Conversion::Fixed(coefficients) => fixed::to_rgb::<3>(planes, &[], coefficients),
            Conversion::Float(formula) => float::to_rgb::<3>(planes, None, formula, range),
        };
        return RgbImage::from_raw(width, height, pixels).map(Into::into);
    };
    let mut pixels = match conversion {
        Conversion::Fixed(coefficients) => fixed::to_rgb::<4>(planes, alpha, coefficients),
        Conversion::Float(formula) => {
            let alpha = float::Alpha { values: alpha, premultiplied: avif.premultiplied };
            float::to_rgb::<4>(planes, Some(alpha), formula, range)
        }
    };
    let divided = matches!(conversion, Conversion::Float(formula) if formula.divides_alpha(planes, range));
    if avif.premultiplied && !divided {
        fixed::divide_alpha(&mut pixels);
    }
    RgbaImage::from_raw(width, height, pixels).map(Into::into)
}
