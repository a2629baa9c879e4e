//! `preprocessor_config.json`: how images are prepared, in the words of transformers'
//! CLIPImageProcessor. This program writes it beside its own models too, with two keys more:
//! `crop_origin` and `image_modes`.

use super::table::{Table, read_json};
use crate::error::Result;
use serde_json::{Value, json};
use std::path::Path;
use twinlens_image::{CropOrigin, Filter, ImageModes, Preprocess, ResizeRule};

/// The files that may hold it, the first that does counts: newer versions of transformers nest it
/// in the file of the processor.
pub(crate) const FILES: [&str; 2] = ["processor_config.json", FILE];
/// The file that is written.
pub const FILE: &str = "preprocessor_config.json";

/// Keys that describe files, or how a batch is passed on.
const HARMLESS: [&str; 11] = [
    "_commit_hash",
    "_processor_class",
    "_valid_processor_keys",
    "data_format",
    "device",
    "disable_grouping",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "use_fast",
];
/// Pillow's numbers of its filters.
const FILTERS: [(u64, Filter); 4] =
    [(1, Filter::Lanczos), (2, Filter::Bilinear), (3, Filter::Bicubic), (4, Filter::Box)];
const ORIGINS: [(&str, CropOrigin); 2] = [("round", CropOrigin::Round), ("floor", CropOrigin::Floor)];
const MODES: [(&str, ImageModes); 2] = [("white", ImageModes::White), ("open_clip", ImageModes::OpenClip)];

/// Reads how images are prepared from the directory of a model whose image tower sees squares of
/// `size` pixels. `default` is the preparation if no file says it, and its `crop_origin` and
/// `image_modes` apply if the file does not.
pub(super) fn read(dir: &Path, size: u32, default: Preprocess) -> Result<Preprocess> {
    for file in FILES {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        let mut table = Table::new(&path, read_json(&path)?);
        if file == FILE {
            return parse(table, size, &default);
        }
        if let Some(table) = table.optional_table("image_processor")? {
            return parse(table, size, &default);
        }
    }
    Ok(default)
}

fn parse(mut table: Table<'_>, size: u32, default: &Preprocess) -> Result<Preprocess> {
    for key in ["image_processor_type", "feature_extractor_type"] {
        let known =
            ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];
        if let Some(other) = table.take(key).filter(|kind| !known.iter().any(|known| kind == known)) {
            return Err(table.wrong(key, &format!("is {other}; only \"CLIPImageProcessor\" is supported")));
        }
    }
    table.only("do_resize", &json!(true))?;
    table.only("do_pad", &json!(false))?;
    table.only("use_square_size", &json!(false))?;
    table.ignore(&["pad_size", "size_divisor"]);
    // An image that is RGB already is the same with and without.
    table.flag("do_convert_rgb", true)?;
    let (resize, filter) = (resize_rule(&mut table, size)?, filter(&mut table)?);
    let (mean, std) = normalization(&mut table)?;
    let crop_origin = table.word("crop_origin", default.crop_origin, &ORIGINS)?;
    let modes = table.word("image_modes", default.modes, &MODES)?;
    table.ignore(&HARMLESS);
    table.end()?;
    Ok(Preprocess { size, resize, filter, crop_origin, modes, mean, std })
}

fn filter(table: &mut Table<'_>) -> Result<Filter> {
    let Some(given) = table.take("resample") else { return Ok(Filter::Bicubic) };
    let filter = FILTERS.iter().find(|(number, _)| given == *number).map(|(_, filter)| *filter);
    let wrong = || table.wrong("resample", &format!("is {given}; only 1 to 4 are supported"));
    filter.ok_or_else(wrong)
}

/// What `size` and `crop_size` hold.
enum Size {
    Shortest(u32),
    Square(u32),
}

/// Takes a size: `{ "shortest_edge": 224 }`, `{ "height": 224, "width": 224 }`, or a number, which
/// means the first or, if `square`, the second.
fn take_size(table: &mut Table<'_>, key: &str, square: bool) -> Result<Option<Size>> {
    match table.take(key) {
        None => Ok(None),
        Some(Value::Object(map)) => {
            let number = |key: &str| u32::try_from(map.get(key)?.as_u64()?).ok();
            match (map.len(), number("shortest_edge"), number("height"), number("width")) {
                (1, Some(side), ..) => Ok(Some(Size::Shortest(side))),
                (2, _, Some(height), Some(width)) if height == width => Ok(Some(Size::Square(height))),
                _ => Err(table.wrong(
                    key,
                    &format!(
                        "is {}; only a shortest_edge, or equal height and width, are supported",
                        Value::Object(map)
                    ),
                )),
            }
        }
        Some(given) => {
            let side = given.as_u64().and_then(|side| u32::try_from(side).ok());
            let side = side.ok_or_else(|| table.wrong(key, &format!("is {given}, not a size")))?;
            Ok(Some(if square { Size::Square(side) } else { Size::Shortest(side) }))
        }
    }
}

/// How images are resized, so that the crop after it is `size` pixels wide and high. A size that is
/// not given can only be that of the tower.
fn resize_rule(table: &mut Table<'_>, size: u32) -> Result<ResizeRule> {
    let square = table.flag("default_to_square", false)?;
    let resize = match take_size(table, "size", square)? {
        None => ResizeRule::Shortest(size),
        Some(Size::Shortest(side)) => ResizeRule::Shortest(side),
        Some(Size::Square(side)) => ResizeRule::Squash(side),
    };
    let (ResizeRule::Shortest(side) | ResizeRule::Squash(side)) = resize;
    if side < size {
        let problem = format!("gives {side} pixels, fewer than the {size} that the image tower sees");
        return Err(table.wrong("size", &problem));
    }
    if table.flag("do_center_crop", true)? {
        let crop = take_size(table, "crop_size", true)?;
        if let Some(Size::Shortest(side) | Size::Square(side)) = crop
            && side != size
        {
            let problem = format!("gives {side} pixels, not the {size} that the image tower sees");
            return Err(table.wrong("crop_size", &problem));
        }
    } else {
        table.ignore(&["crop_size"]);
        if resize != ResizeRule::Squash(size) {
            let problem = format!("is false, so the images are not squares of {size} pixels");
            return Err(table.wrong("do_center_crop", &problem));
        }
    }
    Ok(resize)
}

/// Mean and standard deviation of channels in 0..1. Another `rescale_factor` goes into both:
/// `(v f - m) / s` is `(v / 255 - m / 255 f) / (s / 255 f)`.
fn normalization(table: &mut Table<'_>) -> Result<([f32; 3], [f32; 3])> {
    let clip = Preprocess::clip(1);
    let rescale = table.flag("do_rescale", true)?;
    let factor = table.float("rescale_factor")?.unwrap_or(1.0 / 255.0);
    let scale = if rescale { 255.0 * factor } else { 255.0 };
    let normalize = table.flag("do_normalize", true)?;
    let mean = table.channels("image_mean")?.unwrap_or(clip.mean.map(f64::from));
    let std = table.channels("image_std")?.unwrap_or(clip.std.map(f64::from));
    let (mean, std) = if normalize { (mean, std) } else { ([0.0; 3], [1.0; 3]) };
    for (key, value) in [("rescale_factor", scale), ("image_std", std[0] * std[1] * std[2])] {
        if value == 0.0 || !value.is_finite() {
            return Err(table.wrong(key, "must be neither 0 nor infinite"));
        }
    }
    let scaled = |values: [f64; 3]| {
        // Unscaled values stay what they are in every bit.
        if (scale - 1.0).abs() < 1e-9 { values.map(|v| v as f32) } else { values.map(|v| (v / scale) as f32) }
    };
    Ok((scaled(mean), scaled(std)))
}

/// The `preprocessor_config.json` of a model.
pub(super) fn to_json(preprocess: &Preprocess) -> Value {
    let Preprocess { size, resize, filter, crop_origin, modes, mean, std } = preprocess;
    let (ResizeRule::Shortest(side) | ResizeRule::Squash(side)) = resize;
    let resize = match resize {
        ResizeRule::Shortest(_) => json!({ "shortest_edge": side }),
        ResizeRule::Squash(_) => json!({ "height": side, "width": side }),
    };
    let name = |word: Option<&'static str>| word.unwrap_or_default();
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": true,
        "do_resize": true, "size": resize,
        "resample": FILTERS.iter().find(|(_, known)| known == filter).map(|(number, _)| number),
        "do_center_crop": true, "crop_size": { "height": size, "width": size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": decimals(mean), "image_std": decimals(std),
        "crop_origin": name(ORIGINS.iter().find(|(_, known)| known == crop_origin).map(|(word, _)| *word)),
        "image_modes": name(MODES.iter().find(|(_, known)| known == modes).map(|(word, _)| *word)),
    })
}

/// The shortest decimals that are read back as the same numbers.
pub(super) fn decimals(values: &[f32; 3]) -> [f64; 3] {
    values.map(|value| value.to_string().parse().unwrap_or(f64::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(file: &str, text: &str, size: u32) -> std::result::Result<Preprocess, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        read(dir.path(), size, Preprocess::clip(size)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_used_or_harmless_or_refused_by_name() {
        use ResizeRule::{Shortest, Squash};
        let clip = Preprocess::clip(16);
        let resized = |resize| Preprocess { resize, ..clip.clone() };
        let normalized = |mean, std| Preprocess { mean, std, ..clip.clone() };
        let cases: [(&str, std::result::Result<Preprocess, &str>); 36] = [
            ("{}", Ok(clip.clone())),
            ("\u{feff}{}", Ok(clip.clone())),
            (r#"{ "size": 16, "crop_size": 16 }"#, Ok(clip.clone())),
            (
                r#"{ "size": { "shortest_edge": 16 }, "crop_size": { "height": 16, "width": 16 } }"#,
                Ok(clip.clone()),
            ),
            (r#"{ "size": { "shortest_edge": 20 } }"#, Ok(resized(Shortest(20)))),
            (r#"{ "size": 20 }"#, Ok(resized(Shortest(20)))),
            (r#"{ "size": 20, "default_to_square": true }"#, Ok(resized(Squash(20)))),
            (
                r#"{ "size": { "height": 16, "width": 16 }, "do_center_crop": false }"#,
                Ok(resized(Squash(16))),
            ),
            (r#"{ "size": { "height": 18, "width": 18 } }"#, Ok(resized(Squash(18)))),
            (r#"{ "size": { "height": 16, "width": 20 } }"#, Err("size is {\"height\":16")),
            (r#"{ "size": { "shortest_edge": 16, "longest_edge": 32 } }"#, Err("size is")),
            (r#"{ "size": 12 }"#, Err("size gives 12 pixels, fewer than the 16")),
            (r#"{ "crop_size": 20, "size": 24 }"#, Err("crop_size gives 20 pixels, not the 16")),
            (r#"{ "do_center_crop": false }"#, Err("do_center_crop is false")),
            (r#"{ "do_resize": false }"#, Err("do_resize is false; only true")),
            (r#"{ "do_pad": true }"#, Err("do_pad is true")),
            (r#"{ "resample": 2 }"#, Ok(Preprocess { filter: Filter::Bilinear, ..clip.clone() })),
            (r#"{ "resample": 1 }"#, Ok(Preprocess { filter: Filter::Lanczos, ..clip.clone() })),
            (r#"{ "resample": 3 }"#, Ok(clip.clone())),
            (r#"{ "resample": 0 }"#, Err("resample is 0")),
            (r#"{ "image_mean": [0.5, 0.25, 0.125] }"#, Ok(normalized([0.5, 0.25, 0.125], clip.std))),
            (r#"{ "image_mean": 0.5, "image_std": 0.5 }"#, Ok(normalized([0.5; 3], [0.5; 3]))),
            (r#"{ "image_mean": [0.5] }"#, Err("image_mean is [0.5], not three numbers")),
            (r#"{ "image_std": [0.5, 0, 0.5] }"#, Err("image_std must be neither 0")),
            (r#"{ "do_normalize": false }"#, Ok(normalized([0.0; 3], [1.0; 3]))),
            (
                r#"{ "rescale_factor": 0.00784313725490196, "image_mean": 1, "image_std": 1 }"#,
                Ok(normalized([0.5; 3], [0.5; 3])),
            ),
            (
                r#"{ "do_rescale": false, "image_mean": 127.5, "image_std": 127.5 }"#,
                Ok(normalized([0.5; 3], [0.5; 3])),
            ),
            (r#"{ "rescale_factor": 0.00392156862745098 }"#, Ok(clip.clone())),
            (
                r#"{ "rescale_factor": [0.5, 0.25, 0.125] }"#,
                Err("rescale_factor is [0.5,0.25,0.125], not a number"),
            ),
            (r#"{ "do_convert_rgb": false, "processor_class": "CLIPProcessor" }"#, Ok(clip.clone())),
            (
                r#"{ "crop_origin": "floor" }"#,
                Ok(Preprocess { crop_origin: CropOrigin::Floor, ..clip.clone() }),
            ),
            (
                r#"{ "image_modes": "open_clip" }"#,
                Ok(Preprocess { modes: ImageModes::OpenClip, ..clip.clone() }),
            ),
            (r#"{ "image_modes": "black" }"#, Err("only \"white\" or \"open_clip\"")),
            (r#"{ "image_processor_type": "SiglipImageProcessor" }"#, Err("\"SiglipImageProcessor\"")),
            (r#"{ "do_thumbnail": true }"#, Err("do_thumbnail is true, but this key is unknown")),
            ("{", Err("preprocessor_config.json")),
        ];
        for (text, expected) in cases {
            match (read_text(FILE, text, 16), expected) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        // Nested in the file of a processor.
        let nested = r#"{ "image_processor": { "image_mean": 0.5 }, "processor_class": "CLIPProcessor" }"#;
        assert_eq!(read_text(FILES[0], nested, 16).unwrap(), normalized([0.5; 3], clip.std));
        let error = read_text(FILES[0], r#"{ "image_processor": { "do_flip": 1 } }"#, 16).unwrap_err();
        assert!(error.contains("image_processor.do_flip"), "{error}");
        assert_eq!(read_text(FILES[0], r#"{ "processor_class": "CLIPProcessor" }"#, 16).unwrap(), clip);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let clip = Preprocess::clip(16);
        for preprocess in [
            clip.clone(),
            Preprocess { resize: ResizeRule::Squash(16), filter: Filter::Bilinear, ..clip.clone() },
            Preprocess {
                resize: ResizeRule::Shortest(18),
                mean: [0.1, 0.7, 0.3],
                std: [0.2; 3],
                ..clip.clone()
            },
            Preprocess { crop_origin: CropOrigin::Floor, modes: ImageModes::OpenClip, ..clip },
        ] {
            assert_eq!(read_text(FILE, &to_json(&preprocess).to_string(), 16).unwrap(), preprocess);
        }
    }
}
