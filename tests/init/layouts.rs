//! The images of the gallery in the layouts that tools and people have.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, Int64Array, Int64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::parquet::arrow::ArrowWriter;
use twinlens_gallery::Catalog;
use twinlens_testkit::tar::{END, member};

use crate::support::Place;

/// An image, its caption and its class.
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) caption: String,
    pub(crate) class: String,
    pub(crate) png: &'static [u8],
}

/// Ten images of each of three groups.
pub(crate) fn pairs() -> Vec<Pair> {
    let catalog = Catalog::load();
    let groups = catalog
        .groups
        .iter()
        .filter(|group| ["food-and-drink", "flags", "objects"].contains(&group.slug.as_str()));
    let pair = |group: &twinlens_gallery::Group, concept: &twinlens_gallery::Concept| Pair {
        name: concept.slug.clone(),
        caption: format!("a picture of {}, one of the {}", concept.name, group.title),
        class: group.slug.replace('-', "_"),
        png: concept.variants[0].png,
    };
    groups.flat_map(|group| group.concepts.iter().take(10).map(move |concept| pair(group, concept))).collect()
}

fn write(root: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn images(root: &Path, pairs: &[Pair]) {
    pairs.iter().for_each(|pair| write(root, &format!("{}.png", pair.name), pair.png));
}

fn parquet(root: &Path, name: &str, fields: Vec<Field>, columns: Vec<ArrayRef>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn column(name: &str, texts: impl Iterator<Item = String>) -> (Field, ArrayRef) {
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    (Field::new(name, DataType::Utf8, true), texts)
}

fn bytes(pairs: &[Pair]) -> BinaryArray {
    BinaryArray::from_iter_values(pairs.iter().map(|pair| pair.png))
}

/// The `Image` feature of Hugging Face's `datasets`.
fn hub_image(name: &str, pairs: &[Pair]) -> (Field, ArrayRef) {
    let paths = StringArray::from_iter_values(pairs.iter().map(|pair| format!("{}.png", pair.name)));
    let parts: Vec<(Arc<Field>, ArrayRef)> = vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), Arc::new(bytes(pairs))),
        (Arc::new(Field::new("path", DataType::Utf8, true)), Arc::new(paths)),
    ];
    let image = StructArray::from(parts);
    use datafusion::arrow::array::Array;
    (Field::new(name, image.data_type().clone(), true), Arc::new(image))
}

fn captions(pairs: &[Pair]) -> impl Iterator<Item = String> {
    pairs.iter().map(|pair| pair.caption.clone())
}

/// Hugging Face Parquet with images and captions.
fn hub_parquet(root: &Path, name: &str, pairs: &[Pair], caption: &str) {
    let (fields, columns) = [hub_image("image", pairs), column(caption, captions(pairs))].into_iter().unzip();
    parquet(root, name, fields, columns);
}

/// A layout: writes it and gives its path.
pub(crate) type Layout = fn(&Place, &[Pair]) -> String;

/// open_clip's CSV: paths and titles, separated by tabs.
pub(crate) fn open_clip_csv(place: &Place, pairs: &[Pair]) -> String {
    images(&place.path("photos"), pairs);
    let rows = pairs.iter().map(|pair| format!("photos/{}.png\t{}\n", pair.name, pair.caption));
    place.write("train.tsv", &format!("filepath\ttitle\n{}", rows.collect::<String>()));
    "train.tsv".into()
}

/// A CSV beside a directory of images, whose paths lack that directory.
pub(crate) fn captions_csv(place: &Place, pairs: &[Pair]) -> String {
    images(&place.path("flickr/Images"), pairs);
    let rows = pairs.iter().map(|pair| format!("{}.png,\"{}\"\n", pair.name, pair.caption));
    place.write("flickr/captions.csv", &format!("image,caption\n{}", rows.collect::<String>()));
    "flickr".into()
}

/// JSON lines with paths.
pub(crate) fn jsonl(place: &Place, pairs: &[Pair]) -> String {
    images(&place.path("data/images"), pairs);
    let rows = pairs.iter().map(|pair| {
        format!("{{\"image_path\": \"images/{}.png\", \"caption\": \"{}\"}}\n", pair.name, pair.caption)
    });
    place.write("data/pairs.jsonl", &rows.collect::<String>());
    "data/pairs.jsonl".into()
}

/// A Parquet file of paths.
pub(crate) fn parquet_of_paths(place: &Place, pairs: &[Pair]) -> String {
    images(&place.path("list"), pairs);
    let paths = pairs.iter().map(|pair| format!("{}.png", pair.name));
    let (fields, columns) =
        [column("image_path", paths), column("TEXT", captions(pairs))].into_iter().unzip();
    parquet(&place.path("list"), "list.parquet", fields, columns);
    "list/list.parquet".into()
}

/// One Parquet file of the Hub, with a caption column called `text`.
pub(crate) fn hub_file(place: &Place, pairs: &[Pair]) -> String {
    hub_parquet(place.folder(), "hub.parquet", pairs, "text");
    "hub.parquet".into()
}

/// A directory of the Hub with two splits.
pub(crate) fn hub_splits(place: &Place, pairs: &[Pair]) -> String {
    let root = place.path("small-set");
    hub_parquet(&root, "data/train-00000-of-00002.parquet", &pairs[..12], "text");
    hub_parquet(&root, "data/train-00001-of-00002.parquet", &pairs[12..24], "text");
    hub_parquet(&root, "data/test-00000-of-00001.parquet", &pairs[24..], "text");
    write(&root, "README.md", "A card.");
    "small-set".into()
}

/// A Parquet file with several captions of each image, in a column that only the person knows.
pub(crate) fn lists_of_captions(place: &Place, pairs: &[Pair]) -> String {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for pair in pairs {
        lists.append_value([Some(pair.caption.clone()), Some(pair.name.clone())]);
    }
    let lists: ArrayRef = Arc::new(lists.finish());
    let field = Field::new("sayings", lists.data_type().clone(), true);
    let (image, images) = hub_image("picture", pairs);
    parquet(place.folder(), "lists.parquet", vec![image, field], vec![images, lists]);
    "lists.parquet".into()
}

/// img2dataset's `--output_format parquet`.
pub(crate) fn img2dataset_parquet(place: &Place, pairs: &[Pair]) -> String {
    for (shard, pairs) in pairs.chunks(15).enumerate() {
        let keys = (0..pairs.len()).map(|row| format!("{shard:05}{row:04}"));
        let jpg: (Field, ArrayRef) = (Field::new("jpg", DataType::Binary, true), Arc::new(bytes(pairs)));
        let status = column("status", pairs.iter().map(|_| "success".into()));
        let columns = [column("key", keys), column("caption", captions(pairs)), status, jpg];
        let (fields, columns) = columns.into_iter().unzip();
        let root = place.path("downloads");
        parquet(&root, &format!("{shard:05}.parquet"), fields, columns);
        write(&root, &format!("{shard:05}_stats.json"), "{\"count\": 15}");
    }
    "downloads".into()
}

/// The members of a tar file as img2dataset writes them.
fn tar(pairs: &[Pair]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (row, pair) in pairs.iter().enumerate() {
        let json = format!("{{\"caption\": \"{}\", \"key\": \"{row:09}\"}}", pair.caption);
        tar.extend(member(&format!("{row:09}.png"), pair.png));
        tar.extend(member(&format!("{row:09}.txt"), pair.caption.as_bytes()));
        tar.extend(member(&format!("{row:09}.json"), json.as_bytes()));
    }
    tar.extend(END);
    tar
}

/// img2dataset's `--output_format webdataset`.
pub(crate) fn img2dataset_tars(place: &Place, pairs: &[Pair]) -> String {
    for (shard, pairs) in pairs.chunks(15).enumerate() {
        place.write(&format!("shards/{shard:05}_stats.json"), "{\"count\": 15}");
        write(&place.path("shards"), &format!("{shard:05}.tar"), tar(pairs));
        let (fields, columns) = [column("caption", captions(pairs))].into_iter().unzip();
        parquet(&place.path("shards"), &format!("{shard:05}.parquet"), fields, columns);
    }
    "shards".into()
}

/// A single tar file.
pub(crate) fn one_tar(place: &Place, pairs: &[Pair]) -> String {
    write(place.folder(), "one.tar", tar(pairs));
    "one.tar".into()
}

/// img2dataset's `--output_format files`.
pub(crate) fn img2dataset_files(place: &Place, pairs: &[Pair]) -> String {
    let root = place.path("files");
    for (row, pair) in pairs.iter().enumerate() {
        write(&root, &format!("00000/{row:09}.png"), pair.png);
        write(&root, &format!("00000/{row:09}.txt"), &pair.caption);
        write(&root, &format!("00000/{row:09}.json"), format!("{{\"caption\": \"{}\"}}", pair.caption));
    }
    let (fields, columns) = [column("caption", captions(pairs))].into_iter().unzip();
    parquet(&root, "00000.parquet", fields, columns);
    write(&root, "00000_stats.json", "{\"count\": 30}");
    "files".into()
}

/// Hugging Face's `imagefolder` with a CSV.
pub(crate) fn imagefolder_csv(place: &Place, pairs: &[Pair]) -> String {
    let root = place.path("folder");
    images(&root.join("train"), pairs);
    let rows = pairs.iter().map(|pair| format!("{}.png,\"{}\"\n", pair.name, pair.caption));
    write(&root, "train/metadata.csv", format!("file_name,text\n{}", rows.collect::<String>()));
    "folder/".into()
}

/// Hugging Face's `imagefolder` with JSON lines, and captions under another name.
pub(crate) fn imagefolder_jsonl(place: &Place, pairs: &[Pair]) -> String {
    let root = place.path("folder");
    images(&root, pairs);
    let row =
        |pair: &Pair| format!("{{\"file_name\": \"{}.png\", \"saying\": \"{}\"}}\n", pair.name, pair.caption);
    write(&root, "metadata.jsonl", pairs.iter().map(row).collect::<String>());
    "folder".into()
}

/// A text file beside each image.
pub(crate) fn sidecars(place: &Place, pairs: &[Pair]) -> String {
    let root = place.path("My Photos");
    for pair in pairs {
        write(&root, &format!("{}.png", pair.name), pair.png);
        write(&root, &format!("{}.txt", pair.name), &pair.caption);
    }
    "My Photos".into()
}

/// A directory of images per class.
pub(crate) fn class_folders(place: &Place, pairs: &[Pair]) -> String {
    pairs.iter().for_each(|pair| {
        write(&place.path("classes"), &format!("{}/{}.png", pair.class, pair.name), pair.png)
    });
    "classes".into()
}

/// The same with directories of splits.
pub(crate) fn class_splits(place: &Place, pairs: &[Pair]) -> String {
    for (row, pair) in pairs.iter().enumerate() {
        let split = if row % 5 == 0 { "val" } else { "train" };
        write(&place.path("classes"), &format!("{split}/{}/{}.png", pair.class, pair.name), pair.png);
    }
    "classes/".into()
}

/// A Parquet file of the Hub with a `ClassLabel`.
pub(crate) fn hub_labels(place: &Place, pairs: &[Pair]) -> String {
    let mut names: Vec<&str> = pairs.iter().map(|pair| pair.class.as_str()).collect();
    names.dedup();
    let mut labels = Int64Builder::new();
    for pair in pairs {
        labels.append_value(names.iter().position(|name| *name == pair.class).unwrap() as i64);
    }
    let labels: Int64Array = labels.finish();
    let (image, images) = hub_image("image", pairs);
    let features = serde_json::json!({ "info": { "features": {
        "image": { "_type": "Image" }, "label": { "names": names, "_type": "ClassLabel" },
    } } });
    let fields = vec![image, Field::new("label", DataType::Int64, true)];
    let schema =
        Schema::new_with_metadata(fields, [("huggingface".to_string(), features.to_string())].into());
    let batch = RecordBatch::try_new(Arc::new(schema), vec![images, Arc::new(labels)]).unwrap();
    let file = fs::File::create(place.path("labels.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    "labels.parquet".into()
}

/// Images alone.
pub(crate) fn images_alone(place: &Place, pairs: &[Pair]) -> String {
    images(&place.path("photos"), pairs);
    "photos".into()
}
