//! Converts pixels with an ICC profile to sRGB.
//!
//! A bad profile never rejects an image: if it is damaged, too long, or for another colour space
//! than the pixels, it is ignored and the values are read as sRGB, as without a profile. A profile
//! that means sRGB (most do) costs only its parsing.

use moxcms::{ColorProfile, DataColorSpace, Layout, TransformOptions};

use crate::raw::ColourModel;

/// Longer profiles are ignored, in bytes. Real profiles with tables have up to about 3 MB.
const MAX_PROFILE: usize = 4 << 20;
/// A profile that changes no value by more than this is sRGB: writers round its curve differently.
const MAX_SRGB_DIFFERENCE: u8 = 2;

/// Converts RGB pixels, of shape `[pixels, 3]`, from the profile's colours to sRGB.
pub(crate) fn to_srgb(pixels: Vec<u8>, profile: &[u8], model: ColourModel) -> Vec<u8> {
    if profile.len() > MAX_PROFILE {
        return pixels;
    }
    let converted = match model {
        ColourModel::Cmyk => None,
        ColourModel::Rgb => convert_rgb(&pixels, profile),
        // Grey images with an RGB profile are common: scanners and editors always write one.
        ColourModel::Grey => grey_curve(profile)
            .map(|curve| map_grey(&pixels, &curve))
            .or_else(|| convert_rgb(&pixels, profile)),
    };
    converted.unwrap_or(pixels)
}

/// Converts RGB values. `None` if the profile is for another colour space or is sRGB.
fn convert_rgb(pixels: &[u8], profile: &[u8]) -> Option<Vec<u8>> {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    if profile.color_space != DataColorSpace::Rgb {
        return None;
    }
    let srgb = ColorProfile::new_srgb();
    let transform =
        profile.create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, TransformOptions::default()).ok()?;
    let probes = probes();
    let mut seen = vec![0; probes.len()];
    transform.transform(&probes, &mut seen).ok()?;
    if probes.iter().zip(&seen).all(|(a, b)| a.abs_diff(*b) <= MAX_SRGB_DIFFERENCE) {
        return None;
    }
    let mut converted = vec![0; pixels.len()];
    transform.transform(pixels, &mut converted).ok()?;
    Some(converted)
}

/// A grid of colours over the RGB cube.
fn probes() -> Vec<u8> {
    let steps = || (0..=8_u16).map(|step| (step * 255 / 8) as u8);
    steps().flat_map(|r| steps().flat_map(move |g| steps().flat_map(move |b| [r, g, b]))).collect()
}

/// The value of each of the 256 greys in sRGB, for a grey profile.
fn grey_curve(profile: &[u8]) -> Option<[u8; 256]> {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    if profile.color_space != DataColorSpace::Gray {
        return None;
    }
    let srgb = ColorProfile::new_srgb();
    let transform =
        profile.create_transform_8bit(Layout::Gray, &srgb, Layout::Rgb, TransformOptions::default()).ok()?;
    let greys: Vec<u8> = (0..=255).collect();
    let mut seen = vec![0; 256 * 3];
    transform.transform(&greys, &mut seen).ok()?;
    // The three channels are equal.
    Some(std::array::from_fn(|grey| seen[3 * grey + 1]))
}

fn map_grey(pixels: &[u8], curve: &[u8; 256]) -> Vec<u8> {
    pixels.iter().map(|value| curve[usize::from(*value)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(profile: &ColorProfile) -> Vec<u8> {
        profile.encode().unwrap()
    }

    #[test]
    fn wide_gamuts_are_converted_and_srgb_is_unchanged() {
        let pixels = vec![255, 0, 0, 0, 255, 0, 128, 128, 128, 255, 255, 255];
        assert_eq!(to_srgb(pixels.clone(), &encoded(&ColorProfile::new_srgb()), ColourModel::Rgb), pixels);
        let p3 = encoded(&ColorProfile::new_display_p3());
        // Inside both gamuts: by the matrices of the standards, (180, 100, 60) is (192.5, 94.7,
        // 48.9).
        let seen = to_srgb(vec![180, 100, 60, 128, 128, 128, 255, 255, 255], &p3, ColourModel::Rgb);
        for (value, expected) in seen.iter().zip([193_u8, 95, 49, 128, 128, 128, 255, 255, 255]) {
            assert!(value.abs_diff(expected) <= 1, "{seen:?}");
        }
        assert_eq!(to_srgb(pixels.clone(), &p3, ColourModel::Cmyk), pixels, "CMYK is already converted");
    }

    #[test]
    fn a_grey_profile_is_a_curve() {
        let linear = encoded(&ColorProfile::new_gray_with_gamma(1.0));
        let seen = to_srgb(vec![0, 0, 0, 55, 55, 55, 255, 255, 255], &linear, ColourModel::Grey);
        // sRGB of 55/255 of the light: 1.055 x^(1/2.4) - 0.055 = 0.507.
        assert!(seen[3].abs_diff(129) <= 2 && seen[3] == seen[4] && seen[4] == seen[5], "{seen:?}");
        assert_eq!((seen[0], seen[6]), (0, 255));
    }

    #[test]
    fn an_invalid_profile_is_ignored() {
        let pixels = vec![10, 200, 30];
        let p3 = encoded(&ColorProfile::new_display_p3());
        let cases = [vec![], vec![0; 200], p3[..p3.len() / 2].to_vec(), vec![0xff; MAX_PROFILE + 1]];
        for profile in cases {
            assert_eq!(
                to_srgb(pixels.clone(), &profile, ColourModel::Rgb),
                pixels,
                "{} bytes",
                profile.len()
            );
        }
    }
}
