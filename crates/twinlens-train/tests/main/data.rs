//! Batches from shards: every pair once per epoch, reproducible bits, and one reject per bad row.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructArray,
};
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Begin, DatasetWriter, MAIN};
use twinlens_image::{Format, Preprocess, Rgb, encode};
use twinlens_model::Tokenizer;
use twinlens_testkit::tar;
use twinlens_train::ScheduleKind;
use twinlens_train::data::{Captions, Columns, Data, DataContext, DataOptions, Input, Source};
use twinlens_train::{AdamWOptions, BatchSource, Part, TrainError, TrainOptions};

const ROWS: usize = 60;
const SIZE: u32 = 16;
const CONTEXT: usize = 8;

fn caption(row: usize) -> String {
    format!("picture {row}")
}

/// Row 7 has no caption, row 20 a truncated image, row 33 no image; all others are pairs.
fn row(row: usize) -> (Option<String>, Option<Vec<u8>>) {
    let (width, height) = (24 + row % 3 * 8, 20 + row % 5 * 4);
    let pixels = (0..width * height * 3).map(|i| ((i * (row + 3)) >> 3) as u8).collect();
    let format = if row.is_multiple_of(2) { Format::Png } else { Format::Jpeg };
    let mut bytes =
        encode(&Rgb::new(width as u32, height as u32, pixels).unwrap(), format, Some(90)).unwrap();
    if row == 20 {
        bytes.truncate(50);
    }
    ((row != 7).then(|| caption(row)), (row != 33).then_some(bytes))
}

fn batch(rows: std::ops::Range<usize>) -> RecordBatch {
    let (captions, images): (Vec<_>, Vec<_>) = rows.clone().map(row).unzip();
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(images.iter().map(|i| i.as_deref())));
    let paths: ArrayRef = Arc::new(StringArray::new_null(bytes.len()));
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let image = StructArray::new(fields, vec![bytes, paths], None);
    let uids = StringArray::from_iter_values(rows.map(|row| format!("{row:032x}")));
    RecordBatch::try_from_iter([
        ("uid", Arc::new(uids) as ArrayRef),
        ("text", Arc::new(StringArray::from(captions))),
        ("image", Arc::new(image)),
    ])
    .unwrap()
}

/// Two Parquet files as on the hub, in row groups of 8.
fn hub(folder: &Path) -> Input {
    let files = [(0..25), (25..ROWS)].into_iter().enumerate().map(|(number, rows)| {
        let path = folder.join(format!("train-{number}.parquet"));
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(8)).build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch(0..ROWS).schema(), Some(properties)).unwrap();
        writer.write(&batch(rows)).unwrap();
        writer.close().unwrap();
        Location::from(path)
    });
    let columns = Columns { caption: "text".into(), ..Columns::default() };
    Input { columns, ..Input::new(Source::Files(files.collect())) }
}

/// A tar file as webdataset writes it; every third caption is in a JSON.
fn webdataset(folder: &Path) -> Input {
    let mut bytes = Vec::new();
    for number in 0..ROWS {
        let (caption, image) = row(number);
        let caption = caption.unwrap_or_default();
        match number % 3 {
            0 => bytes.extend(tar::member(
                &format!("{number:04}.json"),
                format!("{{\"caption\": \"{caption}\"}}").as_bytes(),
            )),
            _ => bytes.extend(tar::member(&format!("{number:04}.txt"), caption.as_bytes())),
        }
        if let Some(image) = image {
            bytes.extend(tar::member(&format!("{number:04}.jpg"), &image));
        }
    }
    bytes.extend(tar::END);
    std::fs::write(folder.join("00000.tar"), bytes).unwrap();
    Input::new(Source::Files(vec![folder.join("00000.tar").into()]))
}

/// A writer for a dataset in the directory `pairs`.
fn writer(folder: &Path) -> DatasetWriter {
    let begin = Begin {
        format: 1,
        position: 0,
        recipe: Default::default(),
        stage: "pairs".into(),
        kind: "fetch".into(),
        fingerprint: "f".into(),
        fused: vec![],
        variant: None,
        tables: [(MAIN.to_owned(), batch(0..ROWS).schema())].into(),
    };
    DatasetWriter::open(folder.join("pairs"), begin, ShardLimits::default()).unwrap()
}

fn commit(dataset: &mut DatasetWriter, split: u64, rows: std::ops::Range<usize>) {
    let mut writer = dataset.split(split, "rows");
    writer.write(MAIN, &batch(rows)).unwrap();
    dataset.commit(writer.publish().unwrap()).unwrap();
}

fn growing(folder: &Path) -> Input {
    let columns = Columns { caption: "text".into(), ..Columns::default() };
    Input { columns, ..Input::new(Source::Growing(folder.join("pairs").into(), MAIN.into())) }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train((0..ROWS).map(caption), 400).unwrap()
}

fn train_options(steps: u64, batch_size: usize) -> TrainOptions {
    TrainOptions {
        earlier: Vec::new(),
        schedule: ScheduleKind::Cosine,
        keep_state: true,
        steps,
        batch_size,
        micro_batch: None,
        ranks: 1,
        shard_optimizer: false,
        lr: 1e-3,
        warmup: 0,
        adamw: AdamWOptions::default(),
        ema: None,
        checkpoint_every: 100,
        keep_every: None,
        keep_best: false,
        evaluate_every: None,
        seed: 11,
        crop_min_area: Some(0.5),
        augment: None,
        prefetch_bytes: 0,
    }
}

/// Settings that must not change batches.
#[derive(Clone, Copy)]
struct LoaderSettings {
    threads: usize,
    decode_bytes: usize,
    cache_bytes: u64,
}

const DEFAULT: LoaderSettings = LoaderSettings { threads: 1, decode_bytes: 1 << 20, cache_bytes: 0 };

fn open(inputs: &[Input], settings: LoaderSettings, batch: usize, work: &Path) -> Result<Data, TrainError> {
    let options = DataOptions {
        // A few blocks of each format.
        shuffle_bytes: 60_000,
        decode_bytes: settings.decode_bytes,
        threads: settings.threads,
        cache_bytes: settings.cache_bytes,
    };
    let cancel = CancellationToken::new();
    let tokenizer = tokenizer();
    let context = DataContext { tokenizer: &tokenizer, context: CONTEXT, batch, work, cancel: &cancel };
    Data::open(inputs.to_vec(), options, &context)
}

type Batches = Vec<(Vec<f32>, Vec<Vec<u32>>, f64)>;

/// Pixels, ids and epoch of each step from `first`.
fn batches(data: &Data, options: &TrainOptions, first: u64) -> Batches {
    parts(data, options, Part::whole(first..options.steps))
}

/// The same of a rank's part.
fn parts(data: &Data, options: &TrainOptions, part: Part) -> Batches {
    let (send, receive) = sync_channel(1);
    std::thread::scope(|scope| {
        let run = scope.spawn(move || data.run(options, &Preprocess::clip(SIZE), part, &send));
        let batches = receive.iter().map(|batch| {
            let pixels = batch.pixels.flatten_all().unwrap().to_vec1().unwrap();
            (pixels, batch.ids.to_vec2().unwrap(), batch.epoch)
        });
        let batches = batches.collect();
        run.join().unwrap().unwrap();
        batches
    })
}

/// Row and code of each row of the ledger.
fn rejects(data: &Data) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    data.write_rejects("clip", |batch: &RecordBatch| {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let names = if batch.column_by_name("uid").is_some() { text("uid") } else { text("reject_detail") };
        let codes = text("reject_code");
        assert!(
            batch.column_by_name("image").is_none() && text("reject_stage").iter().all(|s| s == Some("clip"))
        );
        rows.extend(
            names.iter().zip(&codes).map(|(name, code)| (name.unwrap().to_owned(), code.unwrap().to_owned())),
        );
        Ok::<_, TrainError>(())
    })
    .unwrap();
    rows
}

#[test]
fn every_pair_is_seen_once_per_epoch_and_bad_rows_are_rejected_once() {
    let names: HashMap<Vec<u32>, usize> =
        (0..ROWS).map(|row| (tokenizer().encode(&caption(row), CONTEXT), row)).collect();
    for (name, make) in [("hub", hub as fn(&Path) -> Input), ("webdataset", webdataset)] {
        let folder = tempfile::tempdir().unwrap();
        let data = open(&[make(folder.path())], DEFAULT, 8, &folder.path().join("work")).unwrap();
        // In tar files, a missing image is found while indexing.
        let late = if name == "hub" { vec![20, 33] } else { vec![20] };
        let pairs = 57 + late.len();
        assert_eq!(data.pairs() as usize, pairs);
        let options = train_options(pairs as u64 / 8 * 8 * 2, 8);
        let made = batches(&data, &options, 0);
        let seen: Vec<usize> = made.iter().flat_map(|(_, ids, _)| ids.iter().map(|ids| names[ids])).collect();
        for (epoch, seen) in seen.chunks_exact(pairs).take(8).enumerate() {
            let mut times = BTreeMap::new();
            seen.iter().for_each(|row| *times.entry(*row).or_insert(0) += 1);
            assert!(!times.contains_key(&7) && late.iter().all(|row| !times.contains_key(row)));
            // Others replace those that cannot be decoded, and a few are deferred to the next
            // epoch.
            let missing =
                (0..ROWS).filter(|row| ![7, 20, 33].contains(row) && !times.contains_key(row)).count();
            assert!(times.len() >= 53 && missing <= 4, "{name} epoch {epoch}: {times:?}");
        }
        assert!(made.iter().all(|(pixels, ids, _)| {
            let distinct: std::collections::HashSet<_> = ids.iter().collect();
            distinct.len() == 8 && pixels.iter().all(|value| value.is_finite() && value.abs() < 3.0)
        }));
        assert_eq!(made[7].2, 64.0 / pairs as f64);
        let rejected = rejects(&data);
        let codes: Vec<&str> = rejected.iter().map(|(_, code)| code.as_str()).collect();
        assert_eq!(codes, ["no_caption", "truncated", "no_image"], "{rejected:?}");
        let place =
            |row: usize| if name == "hub" { format!("{row:032x}") } else { format!("00000.tar/{row:04}") };
        let expected = [7, 20, 33].map(place);
        let is_expected = |((name, _), place): (&(String, String), &String)| name.starts_with(place);
        assert!(rejected.iter().zip(&expected).all(is_expected), "{rejected:?}");
    }
}

#[test]
fn batches_do_not_depend_on_settings_or_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [hub(folder.path()), Input { weight: 0.5, ..webdataset(folder.path()) }];
    let options = train_options(30, 8);
    let work = |name: &str| folder.path().join(name);
    let data = open(&inputs, DEFAULT, 8, &work("whole")).unwrap();
    assert_eq!(data.pairs(), 59 + 29);
    let whole = batches(&data, &options, 0);
    let expected = rejects(&data);
    let all_settings = [
        LoaderSettings { threads: 3, ..DEFAULT },
        LoaderSettings { decode_bytes: 1, threads: 2, ..DEFAULT },
        LoaderSettings { cache_bytes: u64::MAX, threads: 2, ..DEFAULT },
        LoaderSettings { cache_bytes: 20_000, ..DEFAULT },
    ];
    for (number, settings) in all_settings.into_iter().enumerate() {
        let data = open(&inputs, settings, 8, &work(&format!("settings-{number}"))).unwrap();
        assert!(batches(&data, &options, 0) == whole, "{number}");
        assert_eq!(rejects(&data), expected);
        // A killed training resumes in the same directory and still knows its rejects.
        for first in [1, 7, 13, 29] {
            let again = open(&inputs, settings, 8, &work(&format!("settings-{number}"))).unwrap();
            assert!(batches(&again, &options, first) == whole[first as usize..], "{number} from {first}");
            assert_eq!(rejects(&again), expected);
        }
    }
    let other = batches(&data, &TrainOptions { seed: 12, ..options }, 0);
    assert!(other != whole, "the seed decides");
}

#[test]
fn ranks_decode_their_own_rows_of_the_same_batches() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [hub(folder.path()), Input { weight: 0.5, ..webdataset(folder.path()) }];
    let work = |name: &str| folder.path().join(name);
    let decoded = |name: &str| std::fs::metadata(work(name).join("decoded")).unwrap().len() as f64;
    let cached = LoaderSettings { cache_bytes: u64::MAX, ..DEFAULT };
    for (settings, first) in [(DEFAULT, 0), (cached, 0), (DEFAULT, 7)] {
        let options = train_options(12, 8);
        let data = open(&inputs, settings, 8, &work("whole")).unwrap();
        let whole = batches(&data, &options, first);
        for ranks in [2, 4] {
            let mut all: Vec<Data> = Vec::new();
            let mut joined: Batches = whole.iter().map(|batch| (Vec::new(), Vec::new(), batch.2)).collect();
            for rank in 0..ranks {
                let name = format!("{ranks}-{rank}");
                let own = open(&inputs, settings, 8, &work(&name)).unwrap();
                assert_eq!(own.identity().unwrap(), data.identity().unwrap());
                let made = parts(&own, &options, Part { steps: first..12, rank, ranks });
                for (batch, (pixels, ids, epoch)) in joined.iter_mut().zip(made) {
                    batch.0.extend(pixels);
                    batch.1.extend(ids);
                    assert_eq!(batch.2, epoch);
                }
                if settings.cache_bytes > 0 {
                    // A few rows come twice, to another rank.
                    let share = decoded(&name) / decoded("whole");
                    assert!(share < 1.4 / ranks as f64, "rank {rank} of {ranks} decodes {share} of all");
                }
                all.push(own);
            }
            assert!(joined == whole, "{ranks} ranks from {first}");
            // What each has rejected is known to all afterwards.
            let lines: Vec<Vec<u8>> = all.iter().map(|data| data.take_rejects().unwrap()).collect();
            lines.iter().for_each(|lines| all[0].merge_rejects(lines).unwrap());
            assert_eq!(rejects(&all[0]), rejects(&data));
            assert_eq!(all[0].take_rejects().unwrap(), b"");
        }
    }
}

#[test]
fn a_followed_input_gives_the_same_batches_as_a_complete_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = writer(folder.path());
    commit(&mut dataset, 0, 0..12);
    let options = train_options(20, 8);
    let data = open(&[growing(folder.path())], DEFAULT, 8, &folder.path().join("live")).unwrap();
    let live = std::thread::scope(|scope| {
        let live = scope.spawn(|| batches(&data, &options, 0));
        for (split, rows) in [(1, 12..30), (2, 30..31), (3, 31..ROWS)] {
            std::thread::sleep(Duration::from_millis(250));
            commit(&mut dataset, split, rows);
        }
        std::thread::sleep(Duration::from_millis(250));
        dataset.complete().unwrap();
        live.join().unwrap()
    });
    let expected = rejects(&data);
    assert_eq!(expected.len(), 3);
    let data = open(&[growing(folder.path())], DEFAULT, 8, &folder.path().join("half")).unwrap();
    let half = parts(&data, &options, Part { steps: 0..20, rank: 1, ranks: 2 });
    assert!(half.iter().zip(&live).all(|(half, whole)| half.1 == whole.1[4..]));
    let data = open(&[growing(folder.path())], DEFAULT, 8, &folder.path().join("after")).unwrap();
    assert!(batches(&data, &options, 0) == live);
    assert!(batches(&data, &options, 9) == live[9..]);
    assert_eq!(rejects(&data), expected);
    assert_eq!((live[0].2, live[19].2), (0.0, 2.0));
}

#[test]
fn unusable_inputs_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let few = open(&[hub(folder.path())], DEFAULT, 100, &work).err().unwrap().to_string();
    let why = "59 pairs in 60 rows are fewer than a batch of 100 (1 rejected with no_caption, the first: train-0.parquet \
               row 7 the caption is null or blank)";
    assert!(few.contains(why) && few.contains("batch_size"), "{few}");
    let columns = Columns { caption: "txet".into(), ..Columns::default() };
    let wrong =
        open(&[Input { columns, ..hub(folder.path()) }], DEFAULT, 8, &work).err().unwrap().to_string();
    assert!(
        wrong.contains("train-0.parquet: no column `txet`") && wrong.contains("did you mean `text`"),
        "{wrong}"
    );
    let source = Source::Files(vec![folder.path().join("none.parquet").into()]);
    let missing = open(&[Input::new(source)], DEFAULT, 8, &work).err().unwrap();
    assert!(missing.to_string().contains("none.parquet"), "{missing}");
}

/// One Parquet file with the images of [`batch`] and another column of captions.
fn with_captions(folder: &Path, captions: ArrayRef) -> Input {
    with_columns(folder, "captions.parquet", vec![("caption", captions)])
}

/// One Parquet file with the images of [`batch`] and these columns.
fn with_columns(folder: &Path, name: &str, columns: Vec<(&str, ArrayRef)>) -> Input {
    let rows = batch(0..columns[0].1.len());
    let image = rows.column_by_name("image").unwrap().clone();
    let rows = RecordBatch::try_from_iter(columns.into_iter().chain([("image", image)])).unwrap();
    let path = folder.join(name);
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    Input::new(Source::Files(vec![path.into()]))
}

#[test]
fn columns_that_hold_no_captions_are_refused_by_name_and_type() {
    let folder = tempfile::tempdir().unwrap();
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..4));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values([b"a", b"b", b"c", b"d"]));
    let fields = Fields::from(vec![Field::new("en", DataType::Int64, true)]);
    let structs: ArrayRef = Arc::new(StructArray::new(fields, vec![numbers.clone()], None));
    let mut lists = ListBuilder::new(StringBuilder::new());
    (0..4).for_each(|_| lists.append_value([Some("a dog"), Some("a brown dog")]));
    let lists: ArrayRef = Arc::new(lists.finish());
    for (captions, expected) in [
        (numbers, "captions.parquet: the caption column `caption` is of type int64; expected text"),
        (bytes, "is of type binary; expected text"),
        (structs, "is of type struct"),
        (lists, "expected text: set `captions = \"random\"` or `captions = \"first\"`"),
    ] {
        let input = with_captions(folder.path(), captions);
        let error = open(&[input], DEFAULT, 2, &folder.path().join("work")).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The paper's t_u: another caption of a list each time that a pair is seen, as the seed, the step
/// and the row have it.
#[test]
fn a_caption_of_a_list_is_the_first_or_another_at_each_look() {
    let folder = tempfile::tempdir().unwrap();
    let rows = 12;
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in 0..rows {
        match row {
            3 => lists.append_value([None, Some(" ")]),
            4 => lists.append_null(),
            row => lists.append_value((0..4).map(|n| (n != 1).then(|| format!("picture {row}{n}")))),
        }
    }
    let lists: ArrayRef = Arc::new(lists.finish());
    let plain = with_captions(folder.path(), lists.clone());
    let seen = |captions: Captions, cache_bytes: u64, work: &str| {
        let columns = Columns { captions: Some(captions), ..Columns::default() };
        let settings = LoaderSettings { cache_bytes, threads: 2, ..DEFAULT };
        let data =
            open(&[Input { columns, ..plain.clone() }], settings, 2, &folder.path().join(work)).unwrap();
        assert_eq!(data.pairs(), 10);
        let ids = batches(&data, &train_options(60, 2), 0).into_iter().flat_map(|(_, ids, _)| ids);
        let ids: Vec<Vec<u32>> = ids.collect();
        let codes: Vec<String> = rejects_of(&data).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, ["no_caption", "no_caption"]);
        ids
    };
    let tokenizer = tokenizer();
    let encode = |row: usize, n: usize| tokenizer.encode(&format!("picture {row}{n}"), CONTEXT);
    let count = |ids: &[Vec<u32>], n: usize| {
        let all: Vec<Vec<u32>> = (0..rows).map(|row| encode(row, n)).collect();
        ids.iter().filter(|ids| all.contains(ids)).count()
    };
    let first = seen(Captions::First, 0, "first");
    assert!((0..rows).all(|row| first.contains(&encode(row, 0)) != [3, 4].contains(&row)));
    assert_eq!(count(&first, 2) + count(&first, 3), 0);
    let random = seen(Captions::Random, 0, "random");
    assert_eq!(seen(Captions::Random, u64::MAX, "cached"), random, "the cache changes nothing");
    let [a, b, c] = [0, 2, 3].map(|n| count(&random, n));
    assert_eq!(a + b + c, 120);
    // As sources keep lists: the first caption, and all of them in another column.
    let firsts: StringArray = (0..rows).map(|row| Some(format!("picture {row}0"))).collect();
    let columns = [("caption", Arc::new(firsts) as ArrayRef), ("captions", lists)];
    let kept = with_columns(folder.path(), "kept.parquet", columns.into());
    let columns = Columns { captions: Some(Captions::Random), ..Columns::default() };
    let data = open(&[Input { columns, ..kept.clone() }], DEFAULT, 2, &folder.path().join("kept")).unwrap();
    let ids = batches(&data, &train_options(60, 2), 0).into_iter().flat_map(|(_, ids, _)| ids);
    assert_eq!(ids.collect::<Vec<_>>(), random, "the same draws");
    let named = Columns { captions: Some(Captions::Random), caption_is_explicit: true, ..Columns::default() };
    let data = open(&[Input { columns: named, ..kept }], DEFAULT, 2, &folder.path().join("named")).unwrap();
    assert_eq!(data.pairs(), 12, "a column that the user names is used as it is");
    assert!([a, b, c].iter().all(|count| (25..55).contains(count)), "{a} {b} {c}");
}

/// Code and detail of each row of the ledger.
fn rejects_of(data: &Data) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    data.write_rejects("clip", |batch: &RecordBatch| {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let (codes, details) = (text("reject_code"), text("reject_detail"));
        rows.extend(
            codes.iter().zip(&details).map(|(a, b)| (a.unwrap().into(), b.unwrap_or_default().into())),
        );
        Ok::<_, TrainError>(())
    })
    .unwrap();
    rows
}

#[test]
fn captions_in_tar_files_are_texts_or_rejected_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let image = row(0).1.unwrap();
    let members: [(&str, &[u8]); 9] = [
        ("a.txt", b"picture 1"),
        ("b.txt", "\u{feff}picture 2\r\n".as_bytes()),
        ("c.txt", b"caf\xe9 1"),
        ("d.json", br#"{ "caption": "picture 3" }"#),
        ("e.json", br#"{ "caption": 17 }"#),
        ("f.json", br#"{ "caption": ["picture 4", null, "picture 5"] }"#),
        ("g.json", br#"{ "caption": ["picture 6", 7] }"#),
        ("h.json", br#"{ "caption": null }"#),
        ("i.txt", b"picture 8\r\n\npicture 9\n"),
    ];
    let mut bytes = Vec::new();
    for (name, text) in members {
        bytes.extend(tar::member(name, text));
        bytes.extend(tar::member(&format!("{}.png", &name[..1]), &image));
    }
    bytes.extend(tar::END);
    std::fs::write(folder.path().join("x.tar"), bytes).unwrap();
    for (captions, pairs, expected) in [
        (None, 4, &["c not_utf8", "e caption_type", "f caption_type", "g caption_type", "h no_caption"][..]),
        (Some(Captions::First), 5, &["c not_utf8", "e caption_type", "g caption_type", "h no_caption"][..]),
    ] {
        let columns = Columns { captions, ..Columns::default() };
        let source = Source::Files(vec![folder.path().join("x.tar").into()]);
        let input = Input { columns, ..Input::new(source) };
        let data = open(&[input], DEFAULT, 2, &folder.path().join("work")).unwrap();
        assert_eq!(data.pairs(), pairs);
        let rejected = rejects_of(&data);
        let short = |(code, detail): &(String, String)| {
            let (place, meaning) = detail.split_once(": ").unwrap();
            assert!(!meaning.is_empty());
            format!("{} {code}", place.trim_start_matches("x.tar/"))
        };
        assert_eq!(rejected.iter().map(short).collect::<Vec<_>>(), expected);
    }
}
