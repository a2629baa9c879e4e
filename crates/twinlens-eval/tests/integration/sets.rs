//! The stage `evaluation-set`: reads every layout into the same schema, with damaged examples as
//! rejects.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Int32Type};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN, REJECTS};
use twinlens_eval::EvaluationSet;
use twinlens_pipeline::RunError;
use twinlens_testkit::tar::{END, member};

use crate::support::{self, context};

/// A directory with the declaration of a set and, in `data/own`, its files.
struct Place(tempfile::TempDir);

const HEAD: &str = "name = \"own\"\ntitle = \"Own\"\nlicence = \"MIT\"\nsource = \"a test\"\nhow_to_get = \"run the test\"\n";

impl Place {
    fn new(declaration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("own.toml"), format!("{HEAD}{declaration}")).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("data/own").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn run(&self, options: &str) -> Result<Dataset, RunError> {
        support::run::<EvaluationSet>(&context(self.0.path(), "set"), "out", options).await
    }

    async fn own(&self) -> Dataset {
        self.run("set = \"./own.toml\"\ndata = \"data\"").await.unwrap()
    }
}

fn column(dataset: &Dataset, table: &str, name: &str) -> Vec<ArrayRef> {
    let read = ShardReader::new(dataset, table, &[name], 1000);
    read.map(|batch| batch.unwrap().column(0).clone()).collect()
}

fn texts(dataset: &Dataset, table: &str, name: &str) -> Vec<String> {
    let columns = column(dataset, table, name);
    columns.iter().flat_map(|column| column.as_string::<i32>().iter().flatten()).map(String::from).collect()
}

/// `place=class`, sorted.
fn rows(dataset: &Dataset) -> Vec<String> {
    let mut rows: Vec<String> =
        (texts(dataset, MAIN, "place").iter().zip(texts(dataset, MAIN, "class_name")))
            .map(|(place, class)| format!("{place}={class}"))
            .collect();
    rows.sort();
    rows
}

/// `code: detail`, sorted.
fn rejects(dataset: &Dataset) -> Vec<String> {
    let (codes, details) = (texts(dataset, REJECTS, "reject_code"), texts(dataset, REJECTS, "reject_detail"));
    let mut all: Vec<String> =
        codes.iter().zip(details).map(|(code, detail)| format!("{code}: {detail}")).collect();
    all.sort();
    all
}

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(4, 3, image::Rgb([shade, 7, 9]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

fn pixels(dataset: &Dataset) -> Vec<image::RgbImage> {
    let columns = column(dataset, MAIN, "image");
    let bytes = columns.iter().flat_map(|column| {
        let bytes = column.as_struct().column(0).as_binary::<i64>().clone();
        (0..bytes.len()).map(|row| bytes.value(row).to_vec()).collect::<Vec<_>>()
    });
    bytes.map(|bytes| image::load_from_memory(&bytes).unwrap().to_rgb8()).collect()
}

#[tokio::test]
async fn directories_are_bound_to_classes_by_name() {
    let place = Place::new("classes = [\"zebra\", { name = \"sea lion\", label = \"otariidae\" }]");
    for (name, bytes) in [
        ("test/otariidae/1.png", png(1)),
        ("test/Zebra/deep/2.PNG", png(2)),
        ("test/Zebra/3.jpg", b"no image at all".to_vec()),
        ("test/Zebra/notes.txt", b"no image".to_vec()),
        ("train/zebra/4.png", png(4)),
    ] {
        place.file(name, &bytes);
    }
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["Zebra/deep/2.PNG=zebra", "otariidae/1.png=sea lion"]);
    let refused = rejects(&dataset);
    assert!(
        matches!(&refused[..], [one] if one.contains("Zebra/3.jpg") && one.starts_with("not_an_image")),
        "{refused:?}"
    );
    assert_eq!(texts(&dataset, "classes", "in_data"), ["Zebra", "otariidae"]);
    assert_eq!(texts(&dataset, "warnings", "code"), ["unread_files"]);
    assert_eq!(texts(&dataset, "warnings", "detail"), ["a file is not read: `Zebra/notes.txt`"]);
    assert_eq!(dataset.state().rows_in(), Some(3));
}

#[tokio::test]
async fn files_that_no_reader_takes_are_told() {
    let place = Place::new("classes = [\"a\", \"b\"]");
    let files = ["test/a/1.png", "test/b/2.png", "test/a/1.npy", "test/README", "test/b/.cache/3.png"];
    files.iter().for_each(|name| drop(place.file(name, &png(1))));
    (0..4).for_each(|number| drop(place.file(&format!("test/b/{number}.bak"), b"x")));
    let details = texts(&place.own().await, "warnings", "detail");
    let listed = "`README`, `a/1.npy`, `b/.cache`, `b/0.bak`, `b/1.bak` and 2 more";
    assert_eq!(details, [format!("7 files are not read: {listed}")]);
    // A tar file beyond the number of shards.
    let place = Place::new("classes = [\"a\", \"b\"]");
    place.file("test/nshards.txt", b"1\n");
    let sample = [member("1.png", &png(1)), member("1.cls", b"0"), END.to_vec()].concat();
    ["0.tar", "1.tar", "00.tar", "notes.md"]
        .iter()
        .for_each(|name| drop(place.file(&format!("test/{name}"), &sample)));
    let dataset = place.own().await;
    let details = texts(&dataset, "warnings", "detail");
    assert_eq!(details, ["3 files are not read: `test/00.tar`, `test/1.tar`, `test/notes.md`"]);
    assert_eq!(dataset.rows(MAIN), 1);
}

#[tokio::test]
async fn classnames_are_bound_by_number_or_by_position_of_as_many() {
    let names = "classes = \"from the data\"\nclass_count = 3";
    let open = async |folders: &[&str], lines: &str| {
        let place = Place::new(names);
        place.file("classnames.txt", lines.as_bytes());
        folders.iter().for_each(|folder| drop(place.file(&format!("test/{folder}/1.png"), &png(1))));
        let made = place.run("set = \"./own.toml\"\ndata = \"data\"").await;
        made.map(|dataset| (dataset, place)).map_err(|error| error.to_string())
    };
    let eleven = "\u{feff}a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\nh\r\ni\r\nj\r\nk\r\n";
    let (numbers, _place) = open(&["0", "2", "10"], eleven).await.unwrap();
    assert_eq!(rows(&numbers), ["0/1.png=a", "10/1.png=k", "2/1.png=c"]);
    let (positions, _place) = open(&["n02", "n01", "n10"], "a\nb\nc\n").await.unwrap();
    assert_eq!(rows(&positions), ["n01/1.png=a", "n02/1.png=b", "n10/1.png=c"]);
    for (folders, lines, expected) in [
        (["n01", "n02", "n10"], eleven, "11 names for the 3 directories"),
        (["n01", "n02", "n10"], "a\nb\n", "    2  n10        -"),
        (["1", "2", "3"], "a\nb\nc\nd\n", "    0  1          a\n    1  2          b"),
        (["n01", "n02", "n10"], "a\n\nb\n", "classnames.txt:2: this line is blank"),
    ] {
        let Err(error) = open(&folders, lines).await else { panic!("{lines}") };
        assert!(error.contains(expected), "{error}");
    }
}

/// As in CLIP_benchmark's tar files of ImageNet, with its published names.
#[tokio::test]
async fn tar_files_call_the_evaluated_split_test_and_may_have_duplicate_names() {
    let names = "[names]\n\"missile (1)\" = \"projectile\"";
    let place =
        Place::new(&format!("split = \"val\"\nclasses = \"from the data\"\nclass_count = 2\n{names}"));
    place.file("classnames.txt", b"missile\nmissile\n");
    place.file("test/nshards.txt", b"1\n");
    let shard = [
        member("a.png", &png(1)),
        member("a.cls", b"0"),
        member("b.png", &png(2)),
        member("b.cls", b"1"),
        END.to_vec(),
    ];
    place.file("test/0.tar", &shard.concat());
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["test/0.tar/a=missile", "test/0.tar/b=projectile"]);
    let codes = column(&dataset, "warnings", "code");
    assert_eq!(codes[0].as_string::<i32>().value(0), "duplicate_name");
}

#[tokio::test]
async fn tar_files_lose_only_damaged_samples() {
    let place = Place::new("classes = \"from the data\"\nclass_count = 2");
    place.file("classnames.txt", b"cat\ndog\n");
    place.file("test/nshards.txt", b"3\n");
    let shard = [
        member("s1.png", &png(1)),
        member("s1.cls", b"1"),
        member("s2.jpg", b"text"),
        member("s2.cls", b"0"),
        member("s3.png", &png(3)),
        member("s3.cls", b"2"),
        member("s4.png", &png(4)),
        member("s4.cls", b"one"),
        member("s5.png", &png(5)),
        member("s6.webp", &png(6)),
        member("s6.cls", b" 0\n"),
        END.to_vec(),
    ];
    place.file("test/0.tar", &shard.concat());
    let cut = [
        member("t1.png", &png(1)),
        member("t1.cls", b"0"),
        member("t2.cls", b"0"),
        member("t2.png", &png(2)),
    ]
    .concat();
    place.file("test/2.tar", &cut[..cut.len() - 500]);
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["test/0.tar/s1=dog", "test/0.tar/s6=cat", "test/2.tar/t1=cat"]);
    let refused = rejects(&dataset);
    let expected = [
        ("malformed_text", "test/0.tar/s4", "not a whole number: \"one\""),
        ("no_label", "test/0.tar/s5", "neither cls"),
        ("not_an_image", "test/0.tar/s2", ""),
        ("truncated_archive", "test/1.tar", "not there"),
        ("truncated_archive", "test/2.tar byte", "end"),
        ("truncated_archive", "test/2.tar/t2", "ends within t2.png"),
        ("unknown_label", "test/0.tar/s3", "label 2 is outside the 2 classes"),
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:#?}");
    for (found, (code, where_, why)) in refused.iter().zip(expected) {
        assert!(found.starts_with(code) && found.contains(where_) && found.contains(why), "{found}");
    }
}

#[tokio::test]
async fn captions_and_label_vectors_are_read_from_tar_files() {
    let place = Place::new("task = \"retrieval\"\nmetric = \"recall@1\"\nsplits = { test = 2 }");
    place.file("test/nshards.txt", b"1");
    let shard = [
        member("1.png", &png(1)),
        member("1.txt", b"a cat\n\n a dog \n"),
        member("2.png", &png(2)),
        member("2.txt", b"\n"),
        END.to_vec(),
    ];
    place.file("test/0.tar", &shard.concat());
    let dataset = place.own().await;
    let captions = column(&dataset, MAIN, "captions")[0].as_list::<i32>().value(0);
    assert_eq!(captions.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a cat", "a dog"]);
    assert!(rejects(&dataset)[0].contains("test/0.tar/2: it has no caption"));

    let place = Place::new("task = \"multi-label\"\nmetric = \"map\"\nclasses = [\"a\", \"b\", \"c\"]");
    place.file("test/nshards.txt", b"1");
    let head = "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }\n";
    let values = [1_i64, 0, 1].map(i64::to_le_bytes).concat();
    let npy =
        [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &values].concat();
    place.file("test/0.tar", &[member("1.png", &png(1)), member("1.npy", &npy), END.to_vec()].concat());
    let dataset = place.own().await;
    let labels = column(&dataset, MAIN, "labels")[0].as_list::<i32>().value(0);
    assert_eq!(labels.as_primitive::<Int32Type>().values(), &[0, 2]);
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, names: Option<&str>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut schema = batch.schema().as_ref().clone();
    if let Some(names) = names {
        let hub = format!(
            r#"{{"info": {{"features": {{"label": {{"names": {names}, "_type": "ClassLabel"}}}}}}}}"#
        );
        schema = schema.with_metadata([("huggingface".to_string(), hub)].into());
    }
    let schema = Arc::new(schema);
    let batch = batch.with_schema(schema.clone()).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn images(shades: &[Option<u8>]) -> ArrayRef {
    let bytes: Vec<Option<Vec<u8>>> = shades.iter().map(|shade| shade.map(png)).collect();
    let parts: ArrayRef = Arc::new(BinaryArray::from_iter(bytes.iter().map(|bytes| bytes.as_deref())));
    let paths: ArrayRef =
        Arc::new(StringArray::from_iter((0..shades.len()).map(|row| Some(format!("{row}.png")))));
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), parts),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

#[tokio::test]
async fn class_names_in_parquet_take_precedence() {
    // The declared order differs: relying on it would give 9.9 % instead of 87 %.
    let place = Place::new("classes = [\"dog\", \"cat\"]");
    let label = |labels: &[Option<i64>]| Arc::new(Int64Array::from(labels.to_vec())) as ArrayRef;
    let names = Some(r#"["Cat", "Dog"]"#);
    let first = place.file("data/test-00000-of-00002.parquet", b"");
    write_parquet(
        &first,
        vec![("image", images(&[Some(1), Some(2), None])), ("label", label(&[Some(0), Some(1), Some(1)]))],
        names,
    );
    let second = place.file("data/test-00001-of-00002.parquet", b"");
    write_parquet(
        &second,
        vec![("image", images(&[Some(3), Some(4)])), ("label", label(&[Some(2), None]))],
        names,
    );
    let other = place.file("data/train-00000-of-00001.parquet", b"");
    write_parquet(&other, vec![("image", images(&[Some(5)])), ("label", label(&[Some(0)]))], names);
    let dataset = place.own().await;
    assert_eq!(
        rows(&dataset),
        ["test-00000-of-00002.parquet row 0=cat", "test-00000-of-00002.parquet row 1=dog"]
    );
    let refused = rejects(&dataset);
    assert!(
        refused[0].starts_with("no_image") && refused[0].contains("00000-of-00002.parquet row 2"),
        "{refused:?}"
    );
    assert!(
        refused[1].starts_with("no_label") && refused[2].contains("label 2 is outside the 2 classes"),
        "{refused:?}"
    );

    // Class names instead of ids, in one file under `data`.
    let place = Place::new("classes = [\"dog\", \"wolf\"]");
    fs::create_dir_all(place.0.path().join("data")).unwrap();
    let labels: ArrayRef = Arc::new(StringArray::from(vec!["dog", "fox"]));
    write_parquet(
        &place.0.path().join("data/own.parquet"),
        vec![("image", images(&[Some(1), Some(2)])), ("label", labels)],
        None,
    );
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["own.parquet row 0=dog", "own.parquet row 1=fox"]);
    let warned = texts(&dataset, "warnings", "detail");
    assert!(
        warned[0].contains("1 that the set's file does not know (`fox`)") && warned[0].contains("`wolf`"),
        "{warned:?}"
    );
}

#[tokio::test]
async fn lists_in_parquet_are_multiple_labels() {
    let place = Place::new("task = \"multi-label\"\nmetric = \"map\"\nclasses = [\"a\", \"b\", \"c\"]");
    fs::create_dir_all(place.0.path().join("data")).unwrap();
    let labels = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
        Some(vec![Some(2), Some(0)]),
        Some(vec![]),
        Some(vec![Some(3)]),
    ]);
    let path = place.0.path().join("data/own.parquet");
    write_parquet(
        &path,
        vec![("image", images(&[Some(1), Some(2), Some(3)])), ("labels", Arc::new(labels))],
        None,
    );
    let dataset = place.own().await;
    let labels = column(&dataset, MAIN, "labels")[0].as_list::<i32>().clone();
    let of = |row: usize| labels.value(row).as_primitive::<Int32Type>().values().to_vec();
    assert_eq!((of(0), of(1), labels.len()), (vec![0, 2], vec![], 2));
    assert!(rejects(&dataset)[0].contains("label 3 is outside the 3 classes"));
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn raw_pixels_are_encoded_without_loss() {
    let listed = "classes = [\"a\", \"b\"]\n";
    let idx = format!("{listed}reader = {{ kind = \"idx\", images = \"i.gz\", labels = \"l.gz\" }}");
    let place = Place::new(&idx);
    let mut values = vec![0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 3];
    values.extend(0..18_u8);
    place.file("i.gz", &gz(&values[..values.len() - 2]));
    place.file("l.gz", &gz(&[0, 0, 8, 1, 0, 0, 0, 3, 1, 0, 0]));
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["i.gz image 0=b", "i.gz image 1=a"]);
    assert_eq!(pixels(&dataset)[1].get_pixel(2, 1).0, [11; 3]);
    assert!(rejects(&dataset)[0].contains("the file of images ends after 2 of 3"), "{:?}", rejects(&dataset));

    let planes = "reader = { kind = \"planes\", files = [\"x.bin\"], label_bytes = 2, label = 1, side = 2 }";
    let place = Place::new(&format!("{listed}{planes}"));
    place
        .file("x.bin", &[[9, 1, 0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23].as_slice(), &[9, 0, 5]].concat());
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["x.bin record 0=b"]);
    assert_eq!(pixels(&dataset)[0].get_pixel(1, 0).0, [1, 11, 21]);
    assert!(rejects(&dataset)[0].contains("x.bin record 1: the file ends within record 1"));

    let stl = "reader = { kind = \"planes\", files = [\"x.bin\"], labels = \"y.bin\", first_label = 1, side = 2, by_column = true }";
    let place = Place::new(&format!("{listed}{stl}"));
    place.file("x.bin", &[0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
    place.file("y.bin", &[2]);
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["x.bin record 0=b"]);
    assert_eq!(pixels(&dataset)[0].get_pixel(1, 0).0, [2, 12, 22]);
}

#[tokio::test]
async fn csv_files_have_paths_or_pixels() {
    let listed = "classes = [\"a\", { name = \"bee\", label = \"b\" }]\n";
    let place = Place::new(&format!(
        "{listed}reader = {{ kind = \"csv\", file = \"{{split}}.csv\", image = \"Path\", label = \"Class\", folder = \"img\", delimiter = \";\" }}"
    ));
    place.file(
        "test.csv",
        b"Path;x;Class\n1.png;7;1\n2.png;7;b\ngone.png;7;0\n1.png;7;\n1.png;7;zz\n1.png;7\n2.png;7;0\n1.png;7;0;9\n",
    );
    place.file("img/1.png", &png(1));
    place.file("img/2.png", &png(2));
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["test.csv line 2=bee", "test.csv line 3=bee", "test.csv line 8=a"]);
    let refused = rejects(&dataset);
    let expected = [
        "malformed_text: test.csv from line 9 on",
        "no_image: test.csv line 4",
        "no_label: test.csv line 5",
        "no_label: test.csv line 7",
        "unknown_label: test.csv line 6",
    ];
    assert!(refused.iter().zip(expected).all(|(found, start)| found.starts_with(start)), "{refused:#?}");

    let fer = "reader = { kind = \"csv\", file = \"f.csv\", image = \"pixels\", label = \"emotion\", side = 2, part = \"Usage\", part_is = \"Test\" }";
    let place = Place::new(&format!("{listed}{fer}"));
    place.file(
        "f.csv",
        b"emotion,pixels,Usage\n0,1 2 3 4,Test\n1,1 2 3 4,Train\n1,9 9 9,Test\n1,1 2 3 256,Test\n",
    );
    let dataset = place.own().await;
    assert_eq!(rows(&dataset), ["f.csv line 2=a"]);
    assert_eq!(pixels(&dataset)[0].get_pixel(1, 1).0, [4; 3]);
    assert_eq!(rejects(&dataset).len(), 2);
}

#[tokio::test]
async fn voc_lists_present_absent_and_difficult_classes() {
    let place = Place::new(
        "task = \"multi-label\"\nmetric = \"map_11_point\"\nclasses = [\"cat\", { name = \"dining table\", label = \"diningtable\" }]\nreader = { kind = \"voc\", path = \"VOC\" }",
    );
    place.file("VOC/ImageSets/Main/cat_test.txt", b"01  1\n02 -1\n03  0\n");
    place.file("VOC/ImageSets/Main/diningtable_test.txt", b"01  1\n02 -1\n03  1\n");
    place.file("VOC/JPEGImages/01.jpg", &png(1));
    place.file("VOC/JPEGImages/03.jpg", &png(3));
    let dataset = place.own().await;
    let lists = |name: &str| {
        let lists = column(&dataset, MAIN, name)[0].as_list::<i32>().clone();
        (0..lists.len())
            .map(|row| lists.value(row).as_primitive::<Int32Type>().values().to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (lists("labels"), lists("ignored_labels")),
        (vec![vec![0, 1], vec![1]], vec![vec![], vec![0]])
    );
    assert!(rejects(&dataset)[0].starts_with("no_image: JPEGImages/02.jpg"));
}

#[tokio::test]
async fn missing_data_are_reported_with_how_to_get_them() {
    let place = Place::new("classes = [\"a\"]");
    let error = place.run("set = \"cifar10\"\ndata = \"data\"").await.unwrap_err();
    let RunError::User { message, hint } = error else { panic!("{error:?}") };
    assert!(message.contains("`cifar10`") && hint.unwrap().contains("cifar-10-binary.tar.gz"), "{message}");
    let dataset = place.run("set = \"cifar10\"\ndata = \"data\"\noptional = true").await.unwrap();
    assert_eq!(
        (dataset.rows(MAIN), texts(&dataset, "warnings", "code")),
        (0, vec!["set_missing".to_string()])
    );
    place.file("readme.txt", b"nothing");
    let error = place.run("set = \"./own.toml\"\ndata = \"data\"").await.unwrap_err().to_string();
    assert!(error.contains("no readable files of the split `test`"), "{error}");
    let options = "set = \"cifar-10\"\ndata = \"data\"";
    let faults = support::plan::<EvaluationSet>(options, |_| support::table(None)).err().unwrap();
    assert_eq!(faults[0].hint.as_deref(), Some("did you mean `cifar10`?"));
}

/// Files with the names and templates of a set are errors at their line, or read without the mark
/// of Windows' editors.
#[tokio::test]
async fn names_and_templates_in_files_are_read_or_refused_at_their_line() {
    let run = async |names: &[u8], templates: &[u8]| {
        let place = Place::new("classes = \"from the data\"\nclass_count = 2");
        place.file("classnames.txt", names);
        place.file("zeroshot_classification_templates.txt", templates);
        place.file("test/nshards.txt", b"1\n");
        let members = [member("a.png", &png(1)), member("a.cls", "\u{feff}1\n".as_bytes()), END.to_vec()];
        place.file("test/0.tar", &members.concat());
        let made = place.run("set = \"./own.toml\"\ndata = \"data\"").await;
        made.map(|dataset| (dataset, place)).map_err(|error| error.to_string())
    };
    let dataset =
        run("\u{feff}red fox\r\nblue whale\r\n\r\n".as_bytes(), "\u{feff}a {c}.\r\n".as_bytes()).await;
    let (dataset, _place) = dataset.unwrap();
    assert_eq!(texts(&dataset, "classes", "class_name"), ["red fox", "blue whale"]);
    assert_eq!(rows(&dataset), ["test/0.tar/a=blue whale"]);
    let good = b"red fox\nblue whale\n".as_slice();
    for (names, templates, expected) in [
        (
            good,
            b"a photo of something.".as_slice(),
            "templates.txt:1: the template `a photo of something.` has no",
        ),
        (good, b"a {}.\n\nthe {}.", "zeroshot_classification_templates.txt:2: this line is blank"),
        (b"red fox\n\nblue whale", b"a {}.", "classnames.txt:2: this line is blank"),
        (b"red fox\ncaf\xe9\n", b"a {}.", "classnames.txt:2: this line is not UTF-8"),
    ] {
        let Err(error) = run(names, templates).await else { panic!("{expected}") };
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn label_columns_of_other_types_are_refused_by_name_and_type() {
    let labels: [(ArrayRef, &str); 3] = [
        (
            Arc::new(BooleanArray::from(vec![true, false])),
            "own.parquet: the label column `label` is of type Boolean",
        ),
        (Arc::new(Float32Array::from(vec![0.0, 1.0])), "the label column `label` is of type Float32"),
        (Arc::new(BinaryArray::from_iter_values([b"a", b"b"])), "the label column `label` is of type Binary"),
    ];
    for (labels, expected) in labels {
        let place = Place::new("classes = [\"a\", \"b\"]");
        let path = place.0.path().join("data/own.parquet");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_parquet(&path, vec![("image", images(&[Some(1), Some(2)])), ("label", labels)], None);
        let error = place.run("set = \"./own.toml\"\ndata = \"data\"").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
