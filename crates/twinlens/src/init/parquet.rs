//! Parquet files with images: those of the Hugging Face Hub, of img2dataset, and of this program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use twinlens_crawl::stages::CAPTION_NAMES;
use twinlens_dataset::{MAIN, types};
use twinlens_pipeline::ColumnType;
use twinlens_pipeline::suggest::{did_you_mean, list_names};

use super::found::{Count, Found, Material, Pairs, Source, quoted};
use super::listing::Listing;
use super::{classes, tables};
use crate::errors::Failure;
use crate::syntax::identifier;

/// Usual names of columns of images, and of labels.
const IMAGES: [&str; 6] = ["image", "img", "jpg", "png", "webp", "picture"];
const LABELS: [&str; 4] = ["label", "fine_label", "class_name", "class"];
/// Names of splits for training, and for the evaluation.
const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&str; 5] = ["test", "validation", "valid", "val", "dev"];
/// Most rows that are read.
const MOST: u64 = 20_000;

/// The inputs of pipelines: files to train on and, if there are any, for the evaluation.
struct Inputs {
    train: String,
    test: Option<String>,
}

pub(super) fn file(source: &Source<'_>, path: &Path) -> Result<Found, Failure> {
    let inputs = Inputs { train: source.written(path), test: None };
    recognise(source, &inputs, Some(path), &[path.into()])
}

/// A dataset of a run or an export.
pub(super) fn dataset(source: &Source<'_>, root: &Path) -> Result<Found, Failure> {
    recognise(source, &Inputs { train: source.written(root), test: None }, Some(root), &[])
}

pub(super) fn directory(source: &Source<'_>, listing: &Listing) -> Result<Found, Failure> {
    let files: Vec<String> = listing.with_extension(&["parquet"]).cloned().collect();
    let root = source.written(&listing.root);
    let inputs = inputs(&root, &files)?;
    let paths: Vec<PathBuf> = files.iter().map(|file| listing.root.join(file)).collect();
    recognise(source, &inputs, Some(&listing.root), &paths)
}

pub(super) fn of_hub(source: &Source<'_>) -> Result<Found, Failure> {
    let address = source.data.trim_end_matches('/');
    let found = source.files.hub.files(address)?;
    let names: Vec<String> = found
        .iter()
        .map(|path| {
            let path = path.to_string_lossy().replace('\\', "/");
            let below = path.split_once("/snapshots/").and_then(|(_, below)| below.split_once('/'));
            below.map_or(path.clone(), |(_, name)| name.to_string())
        })
        .filter(|name| name.ends_with(".parquet"))
        .collect();
    if names.is_empty() {
        return Err(Failure::user(format!("{address} has no Parquet files"))
            .hint("download its files, and give their directory"));
    }
    recognise(source, &inputs(address, &names)?, None, &[])
}

/// Groups files by the split in their names; `root` is how the pipeline names their directory.
fn inputs(root: &str, files: &[String]) -> Result<Inputs, Failure> {
    let mut groups: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for file in files {
        groups.entry(split_of(file).unwrap_or_default()).or_default().push(file);
    }
    let find =
        |names: &'static [&'static str]| names.iter().find_map(|name| Some((*name, groups.get(*name)?)));
    let pattern = |(split, files): (&str, &Vec<&String>)| pattern(root, split, files);
    match (find(&TRAIN), find(&TEST)) {
        (Some(train), test) => Ok(Inputs { train: pattern(train), test: test.map(pattern) }),
        (None, Some(only)) if groups.len() == 1 => Ok(Inputs { train: pattern(only), test: None }),
        (None, _) if groups.len() == 1 => {
            let all: Vec<&String> = files.iter().collect();
            Ok(Inputs { train: self::pattern(root, "", &all), test: None })
        }
        _ => {
            let names =
                list_names(groups.keys().map(|name| if name.is_empty() { "others" } else { name.as_str() }));
            Err(Failure::user(format!(
                "{root} has Parquet files of several splits, but none to train on: {names}"
            ))
            .hint("give one of the files"))
        }
    }
}

/// The split in the name of a file, or of its directory.
fn split_of(file: &str) -> Option<String> {
    let mut parts = file.rsplit('/');
    let name = parts.next().unwrap_or_default();
    let known = |text: &str| {
        let first = text.split(['-', '_', '.']).next().unwrap_or_default().to_ascii_lowercase();
        TRAIN.iter().chain(&TEST).find(|split| **split == first).map(ToString::to_string)
    };
    known(name).or_else(|| parts.find_map(known))
}

/// A pattern of files of a split.
fn pattern(root: &str, split: &str, files: &[&String]) -> String {
    let root = root.trim_end_matches('/');
    if let [one] = files {
        return format!("{root}/{one}");
    }
    let folder = |file: &str| file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let first = folder(files[0]);
    let is_flat = files.iter().all(|file| folder(file) == first);
    let starts = files.iter().all(|file| {
        file[folder(file).len()..].to_ascii_lowercase().starts_with(split)
            && file[folder(file).len()..].starts_with(split)
    });
    let name = if starts { format!("{split}*.parquet") } else { "*.parquet".into() };
    if is_flat { format!("{root}/{first}{name}") } else { format!("{root}/**/{name}") }
}

/// What the columns are for.
struct Columns {
    image: Option<String>,
    caption: Option<String>,
    has_lists: bool,
    label: bool,
}

impl Columns {
    fn of(source: &Source<'_>, schema: &Schema) -> Result<Self, Failure> {
        let names = || schema.fields().iter().map(|field| field.name().as_str());
        let named = |name: &str, what: &str| match schema.field_with_name(name) {
            Ok(_) => Ok(name.to_string()),
            Err(_) => {
                let hint = did_you_mean(name, names())
                    .unwrap_or_else(|| format!("the columns are {}", list_names(names())));
                Err(Failure::user(format!("{} has no column `{name}` of {what}", source.data)).hint(hint))
            }
        };
        let images: Vec<&str> = (schema.fields().iter())
            .filter(|field| ColumnType::EncodedImage.accepts(field.data_type()))
            .map(|field| field.name().as_str())
            .collect();
        let image = match (source.image, IMAGES.iter().find(|usual| images.contains(usual)), &images[..]) {
            (Some(name), _, _) => Some(named(name, "images")?),
            (None, Some(usual), _) => Some(usual.to_string()),
            (None, None, []) => None,
            (None, None, [one]) => Some(one.to_string()),
            (None, None, several) => {
                let message = format!(
                    "{} has several columns of images: {}",
                    source.data,
                    list_names(several.iter().copied())
                );
                return Err(Failure::user(message).hint("choose one with `--image COLUMN`"));
            }
        };
        let is_caption = |name: &&&str| {
            schema.field_with_name(name).is_ok_and(|field| is_text(field) || is_text_list(field))
        };
        let caption = match source.caption {
            Some(name) => Some(named(name, "captions")?),
            None => CAPTION_NAMES
                .iter()
                .chain(&["captions", "sentences", "txt"])
                .find(is_caption)
                .map(ToString::to_string),
        };
        let field = caption.as_ref().and_then(|name| schema.field_with_name(name).ok());
        let has_lists = field.is_some_and(is_text_list);
        let label = LABELS.iter().any(|name| schema.field_with_name(name).is_ok());
        Ok(Self { image, caption, has_lists, label })
    }
}

fn is_text(field: &Field) -> bool {
    types::is_text(field.data_type())
}

fn is_text_list(field: &Field) -> bool {
    match field.data_type() {
        DataType::List(item) | DataType::LargeList(item) => is_text(item),
        _ => false,
    }
}

/// `set` is the file or directory as an evaluation set; `paths` are the files as a table.
fn recognise(
    source: &Source<'_>,
    inputs: &Inputs,
    set: Option<&Path>,
    paths: &[PathBuf],
) -> Result<Found, Failure> {
    let schema: SchemaRef = source.files.schema(&inputs.train)?;
    let columns = Columns::of(source, &schema)?;
    let rows = source.files.dataset(&inputs.train)?.rows(MAIN);
    let Some(image) = &columns.image else {
        if paths.is_empty() {
            let names = list_names(schema.fields().iter().map(|field| field.name().as_str()));
            return Err(Failure::user(format!(
                "{} has no column of images; its columns are {names}",
                source.data
            ))
            .hint("an image column is binary, or struct<bytes, path>; `--image COLUMN` names it"));
        }
        return tables::table(source, &inputs.train, paths);
    };
    let count = Count::exactly(rows);
    let Some(caption) = &columns.caption else {
        if let (Some(set), true) = (set, columns.label && !source.is_whole) {
            return classes::parquet(source, set, rows);
        }
        let names = list_names(schema.fields().iter().map(|field| field.name().as_str()));
        let what = format!("Parquet with {} in `{image}`, without captions", count.of("image"));
        let notes = vec![format!("the columns are {names}; `--caption COLUMN` names one of captions")];
        let renamed = if image == "image" {
            String::new()
        } else {
            format!("columns = {{ image = {} }}\ndrop = [{}]\n", quoted(&identifier(image)), quoted(image))
        };
        let input = quoted(&inputs.train);
        let stages = format!("[stages.images]\nkind = \"select\"\ninput = {input}\n{renamed}");
        return Ok(Found { what, count, material: Material::Images(stages), notes });
    };
    let share = (!source.is_whole && rows > MOST + MOST / 4)
        .then(|| (MOST as f64 / rows as f64 * 1000.0).ceil() / 1000.0);
    let select = Select { image, caption, has_lists: columns.has_lists, schema: &schema };
    let (mut stages, mut notes) = (String::new(), Vec::new());
    let mut input = inputs.train.as_str();
    if let Some(share) = share {
        let sampled = if columns.has_lists {
            format!("image_sha256({})", identifier(image))
        } else {
            identifier(caption)
        };
        let predicate = format!("hash_fraction({sampled}, 'sample') < ${{share}}");
        stages += &format!(
            "[stages.some]                        # a sample: raise `share` in [vars] for more\nkind = \"filter\"\ninput = {}\nwhere = {}\nrejects = \"count\"\n\n",
            quoted(input),
            quoted(&predicate)
        );
        notes.push(format!("a share of {share} is used: see `share` in the file"));
        input = "some";
    }
    stages += &select.stage("pairs", input);
    let test = inputs.test.as_ref().map(|test| select.stage("test_pairs", test));
    let splits = inputs.test.as_ref().map_or(String::new(), |test| format!("; evaluated on {test}"));
    let what = format!(
        "Parquet of {} with images in `{image}` and captions in `{caption}`{splits}",
        count.of("row")
    );
    let pairs = Pairs { stages, test, has_lists: columns.has_lists, share };
    Ok(Found { what, count, material: Material::Pairs(pairs), notes })
}

/// The stage that gives columns the names that the others ask for.
struct Select<'a> {
    image: &'a str,
    caption: &'a str,
    has_lists: bool,
    schema: &'a Schema,
}

impl Select<'_> {
    fn stage(&self, name: &str, input: &str) -> String {
        let (image, caption) = (identifier(self.image), identifier(self.caption));
        let has = |column: &str| self.schema.field_with_name(column).is_ok_and(is_text);
        let hash = format!("image_sha256({image})");
        let uid = if self.has_lists { hash.clone() } else { format!("pair_uid({hash}, {caption})") };
        let mut columns = Vec::new();
        let mut computed = |name: &str, sql: &str, is_there: bool| {
            if !is_there {
                columns.push(format!("{name} = {}\n", quoted(sql)));
            }
        };
        computed("uid", &uid, has("uid"));
        computed("sha256", &hash, has("sha256"));
        computed("caption", &caption, self.caption == "caption");
        computed("image", &image, self.image == "image");
        let kept = ["uid", "sha256", "caption", "image", "url"];
        let kept: Vec<String> = kept
            .iter()
            .filter(|name| self.schema.field_with_name(name).is_ok())
            .map(|name| quoted(name))
            .collect();
        let table = if columns.is_empty() {
            String::new()
        } else {
            format!("\n[stages.{name}.columns]\n{}", columns.concat())
        };
        format!(
            "[stages.{name}]\nkind = \"select\"\ninput = {}\nkeep = [{}]\n{table}",
            quoted(input),
            kept.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_told_from_the_names_of_files() {
        // Files, and the pattern to train on and for the evaluation.
        let cases: [(&[&str], &str, Option<&str>); 6] = [
            (&["00000.parquet"], "d/00000.parquet", None),
            (&["00000.parquet", "00001.parquet"], "d/*.parquet", None),
            (
                &[
                    "data/train-00000-of-00002.parquet",
                    "data/train-00001-of-00002.parquet",
                    "data/test-00000-of-00001.parquet",
                ],
                "d/data/train*.parquet",
                Some("d/data/test-00000-of-00001.parquet"),
            ),
            (
                &["train/0.parquet", "train/1.parquet", "val/0.parquet"],
                "d/train/*.parquet",
                Some("d/val/0.parquet"),
            ),
            (&["a/0.parquet", "b/0.parquet"], "d/**/*.parquet", None),
            (&["validation-0.parquet"], "d/validation-0.parquet", None),
        ];
        for (files, train, test) in cases {
            let files: Vec<String> = files.iter().map(ToString::to_string).collect();
            let inputs = inputs("d", &files).unwrap();
            assert_eq!((inputs.train.as_str(), inputs.test.as_deref()), (train, test), "{files:?}");
        }
        let files = ["test-0.parquet", "extra.parquet"].map(String::from);
        assert!(inputs("d", &files).is_err());
    }
}
