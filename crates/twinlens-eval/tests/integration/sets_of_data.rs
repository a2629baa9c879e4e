//! Sets without a declaration: directories of classes, and Parquet files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch, StringArray};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_eval::{EvaluationSet, ZeroShot};
use twinlens_pipeline::RunError;

use crate::support::{self, context, images, png, test_dir, write_parquet};

fn write(root: &Path, files: &[&str]) {
    for (seed, file) in files.iter().enumerate() {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = if file.ends_with("png") { png(seed as u32) } else { b"no image".to_vec() };
        fs::write(path, bytes).unwrap();
    }
}

fn texts(dataset: &Dataset, table: &str, column: &str) -> Vec<String> {
    let mut texts: Vec<String> = ShardReader::new(dataset, table, &[column], 100)
        .flat_map(|batch| {
            let column = batch.unwrap().column(0).clone();
            column.as_string::<i32>().iter().flatten().map(String::from).collect::<Vec<_>>()
        })
        .collect();
    texts.sort();
    texts
}

async fn read(root: &Path, options: &str) -> Result<Dataset, RunError> {
    support::run::<EvaluationSet>(&context(root, "set"), "out", options).await
}

#[tokio::test]
async fn directories_of_classes_are_a_set_and_other_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            "mine/polar_bear/1.png",
            "mine/polar_bear/deep/2.png",
            "mine/fox/1.png",
            "mine/fox/notes.txt",
            "mine/lost.png",
            "mine/readme.md",
        ],
    );
    let dataset = read(dir.path(), "set = \"./mine/\"").await.unwrap();
    assert_eq!(texts(&dataset, MAIN, "class_name"), ["fox", "polar bear", "polar bear"]);
    assert_eq!(texts(&dataset, REJECTS, "reject_code"), ["unread_file"; 3]);
    let details = texts(&dataset, REJECTS, "reject_detail").join("; ");
    for expected in ["fox/notes.txt: not an image", "lost.png: an image outside the directories", "readme.md"]
    {
        assert!(details.contains(expected), "{details}");
    }
    assert_eq!(dataset.state().rows_in(), Some(6));
}

#[tokio::test]
async fn splits_are_directories_and_ids_of_wordnet_need_names() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        "pets/train/cat/1.png",
        "pets/train/dog/1.png",
        "pets/val/cat/2.png",
        "net/n01440764/1.png",
        "net/n01443537/1.png",
    ];
    write(dir.path(), &files);
    for (options, expected) in [
        ("set = \"./pets/\"", vec!["cat"]),
        ("set = \"./pets/\"\nsplit = \"train\"", vec!["cat", "dog"]),
        ("set = \"./pets/train/\"", vec!["cat", "dog"]),
    ] {
        let name = format!("out-{}", options.len());
        let dataset =
            support::run::<EvaluationSet>(&context(dir.path(), "set"), &name, options).await.unwrap();
        assert_eq!(texts(&dataset, MAIN, "class_name"), expected, "{options}");
    }
    let refused = async |options: &str| {
        let Err(RunError::User { message, hint }) = read(dir.path(), options).await else {
            panic!("{options}")
        };
        format!("{message} {}", hint.unwrap_or_default())
    };
    let error = refused("set = \"./net/\"").await;
    assert!(error.contains("`n01440764` is an id of WordNet") && error.contains("classnames.txt"), "{error}");
    let error = refused("set = \"./pets/\"\nsplit = \"test\"").await;
    assert!(error.contains("has no split `test`") && error.contains("`train`, `val`"), "{error}");
    fs::write(dir.path().join("net/classnames.txt"), "tench\ngoldfish\n").unwrap();
    let named = read(dir.path(), "set = \"./net/\"").await.unwrap();
    assert_eq!(texts(&named, MAIN, "class_name"), ["goldfish", "tench"]);
}

#[tokio::test]
async fn zero_shot_takes_directories_and_parquet_files() {
    let classes = ["fox", "polar bear"];
    let pictures: Vec<Option<Vec<u8>>> = (0..6).map(|seed| Some(png(seed))).collect();
    let labels: ArrayRef = Arc::new(StringArray::from_iter_values((0..6).map(|row| classes[row % 2])));
    let test = RecordBatch::try_from_iter([("image", images(&pictures)), ("label", labels.clone())]).unwrap();
    let dir = test_dir(classes.iter().map(|class| format!("a photo of a {class}")), &test);
    write(dir.path(), &["mine/fox/1.png", "mine/polar_bear/2.png", "mine/polar_bear/notes.txt"]);
    // Bytes without a path, as img2dataset writes them.
    let binary = BinaryArray::from_iter(pictures.iter().map(|bytes| bytes.as_deref()));
    let binary: ArrayRef = Arc::new(binary);
    let rows = RecordBatch::try_from_iter([("img", binary), ("label", labels)]).unwrap();
    write_parquet(&dir.path().join("bytes.parquet"), &rows);
    let options = "model = \"./model\"\nsets = [\"./mine/\", \"./test.parquet\", \"./bytes.parquet\"]\nprompts = [\"{}\"]";
    let dataset = support::run::<ZeroShot>(&context(dir.path(), "zero_shot"), "out", options).await.unwrap();
    let mut sets = texts(&dataset, MAIN, "set");
    sets.dedup();
    assert_eq!(sets, ["bytes", "mine", "test"]);
    assert_eq!(texts(&dataset, REJECTS, "reject_code"), ["unread_file"]);
}

#[tokio::test]
async fn integer_labels_without_names_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
    let rows =
        RecordBatch::try_from_iter([("image", images(&[Some(png(1)), Some(png(2))])), ("label", labels)])
            .unwrap();
    write_parquet(&dir.path().join("numbers.parquet"), &rows);
    let Err(RunError::User { message, hint }) = read(dir.path(), "set = \"./numbers.parquet\"").await else {
        panic!()
    };
    assert!(message.contains("do not name them") && hint.unwrap().contains("class_names"), "{message}");
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let options =
        "model = \"./m\"\nsets = [\"./a/pets/\", \"./b/pets/\", \"hf://datasets/org/pets\", \"cifar10\"]";
    let faults = support::plan::<ZeroShot>(options, |_| support::table(None)).err().unwrap();
    for expected in [
        "two evaluation sets `pets`",
        "is not a local file or directory",
        "`cifar10` needs the option `data`",
    ] {
        assert!(faults.iter().any(|fault| fault.message.contains(expected)), "{expected}: {faults:?}");
    }
}
