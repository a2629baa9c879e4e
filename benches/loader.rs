//! `loader`: from shards to batches, without training.
//!
//!     cargo bench -p twinlens-train --bench loader
//!
//! By default, the images are synthetic: 1000 x 800 to 224 pixels, and 96 x 96 to 64. With
//! `TWINLENS_LOADER=DIR`, they are those that `loader_peer.py` wrote there as `large.tar`,
//! `large.parquet`, `small.tar` and `small.parquet`. The output is one JSON per line.
//! `TWINLENS_THREADS` is the number of decoding threads (default 1). The last lines are of the
//! small images in a dataset whose checksums are compared each time, the first time, or never.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use datafusion::arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use tokio_util::sync::CancellationToken;
use twinlens_dataset::protocol::FORMAT;
use twinlens_dataset::shard::ShardLimits;
use twinlens_dataset::storage::{Location, Verify};
use twinlens_dataset::{Begin, Dataset, DatasetWriter, MAIN};
use twinlens_image::{Format, JPEG_DECODER, Preprocess, Rgb, encode};
use twinlens_model::Tokenizer;
use twinlens_testkit::tar;
use twinlens_train::data::{Data, DataContext, DataOptions, Input, Source};
use twinlens_train::{AdamWOptions, BatchSource, Part, ScheduleKind, TrainOptions};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 128;
const CONTEXT: usize = 32;
/// Epochs measured; the fastest counts.
const ROUNDS: u64 = 4;

/// Names of image sizes, and the side in pixels that the images are resized to.
const KINDS: [(&str, usize); 2] = [("large", 224), ("small", 64)];

fn main() -> Result<(), Failure> {
    let existing = std::env::var_os("TWINLENS_LOADER").map(PathBuf::from);
    let temporary = tempfile::tempdir()?;
    let folder = match &existing {
        Some(folder) => folder,
        None => {
            write_tar(temporary.path(), "large", (1000, 800), 2 * BATCH)?;
            write_tar(temporary.path(), "small", (96, 96), 16 * BATCH)?;
            temporary.path()
        }
    };
    let threads: usize = std::env::var("TWINLENS_THREADS").map_or(Ok(1), |threads| threads.parse())?;
    for (kind, size) in KINDS {
        for ending in ["tar", "parquet"] {
            let file = folder.join(format!("{kind}.{ending}"));
            for cache in [false, true] {
                if file.exists() {
                    let source = Source::Files(vec![file.as_path().into()]);
                    let rate = rate(source, size, threads, cache, temporary.path())?;
                    let from = if cache { "cache" } else { ending };
                    println!(
                        r#"{{"images": "{kind}", "from": "{from}", "side": {size}, "threads": {threads}, "decoder": "{JPEG_DECODER}", "samples_per_second": {rate}}}"#
                    );
                }
            }
        }
    }
    let (dataset, modes) = (temporary.path().join("dataset"), ["always", "first", "never"]);
    write_dataset(&dataset, (96, 96), 16 * BATCH)?;
    for (mode, round) in (0..6).flat_map(|round| modes.map(|mode| (mode, round))) {
        let verify = match mode {
            "always" => Verify::Always,
            "first" => Verify::First(Arc::default()),
            _ => Verify::Never,
        };
        let dataset = Dataset::open(Location::from(&dataset).verifying(verify))?;
        let rate = rate(Source::table(&dataset, MAIN), 64, threads, false, temporary.path())?;
        println!(
            r#"{{"images": "small", "verify": "{mode}", "round": {round}, "samples_per_second": {rate}}}"#
        );
    }
    Ok(())
}

/// Samples per second of the fastest epoch, timed from last batch to last batch.
fn rate(source: Source, size: usize, threads: usize, cache: bool, work: &Path) -> Result<f64, Failure> {
    let input = Input::new(source);
    let tokenizer = Tokenizer::train((0..1000).map(|n| format!("a photograph of number {n}")), 1000)?;
    let options = DataOptions {
        shuffle_bytes: 256 << 20,
        decode_bytes: 256 << 20,
        threads,
        cache_bytes: if cache { u64::MAX } else { 0 },
    };
    let cancel = CancellationToken::new();
    let work = work.join("work");
    let context =
        DataContext { tokenizer: &tokenizer, context: CONTEXT, batch: BATCH, work: &work, cancel: &cancel };
    let data = Data::open(vec![input], options, &context)?;
    let per_epoch = data.pairs() / BATCH as u64;
    let options = TrainOptions {
        earlier: Vec::new(),
        schedule: ScheduleKind::Cosine,
        keep_state: false,
        steps: per_epoch * (ROUNDS + 1),
        batch_size: BATCH,
        micro_batch: None,
        ranks: 1,
        shard_optimizer: false,
        lr: 1e-3,
        warmup: 0,
        adamw: AdamWOptions::default(),
        ema: None,
        checkpoint_every: 1,
        keep_every: None,
        keep_best: false,
        evaluate_every: None,
        seed: 1,
        crop_min_area: Some(0.9),
        augment: None,
        prefetch_bytes: 0,
    };
    let (send, receive) = sync_channel(1);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            data.run(&options, &Preprocess::clip(size as u32), Part::whole(0..options.steps), &{ send })
        });
        let (mut best, mut since) = (f64::INFINITY, Instant::now());
        for (number, _batch) in receive.iter().enumerate() {
            let number = number as u64 + 1;
            if number.is_multiple_of(per_epoch) {
                // The first epoch fills the cache.
                if number > per_epoch {
                    best = best.min(since.elapsed().as_secs_f64());
                }
                since = Instant::now();
            }
        }
        run.join().map_err(|_| "the loader panicked")??;
        Ok((per_epoch * BATCH as u64) as f64 / best)
    })
}

/// A synthetic photograph, and its caption.
fn photograph((width, height): (u32, u32), number: usize) -> Result<(Vec<u8>, String), Failure> {
    let value = |x: u32, y: u32, c: u32| {
        let (u, v) = (f64::from(x) / 37.0, f64::from(y) / 29.0);
        let noise = (x * 7919 + y * 104_729 + c * 31 + number as u32 * 17) % 23;
        128.0 + 70.0 * (u + number as f64).sin() * (v + f64::from(c)).cos() + f64::from(noise)
    };
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| value(x, y, c))));
    let image = Rgb::new(width, height, pixels.map(|value| value as u8).collect())?;
    Ok((encode(&image, Format::Jpeg, Some(85))?, format!("a photograph of number {number}")))
}

/// Writes a tar file of synthetic images with captions.
fn write_tar(folder: &Path, name: &str, size: (u32, u32), count: usize) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    for number in 0..count {
        let (image, caption) = photograph(size, number)?;
        bytes.extend(tar::member(&format!("{number:06}.jpg"), &image));
        bytes.extend(tar::member(&format!("{number:06}.txt"), caption.as_bytes()));
    }
    bytes.extend(tar::END);
    Ok(std::fs::write(folder.join(format!("{name}.tar")), bytes)?)
}

/// Writes a dataset of synthetic images with captions, with checksums in its manifest.
fn write_dataset(folder: &Path, size: (u32, u32), count: usize) -> Result<(), Failure> {
    let field = |name: &str, kind: DataType| Field::new(name, kind, true);
    let fields = [("uid", DataType::Utf8), ("caption", DataType::Utf8), ("image", DataType::Binary)];
    let schema = Arc::new(Schema::new(fields.map(|(name, kind)| field(name, kind)).to_vec()));
    let begin = Begin {
        format: FORMAT,
        position: 0,
        stage: "images".into(),
        kind: "fetch".into(),
        fingerprint: "f".into(),
        recipe: serde_json::Value::Null,
        fused: Vec::new(),
        variant: None,
        tables: [(MAIN.to_string(), schema.clone())].into(),
    };
    let mut writer = DatasetWriter::open(folder, begin, ShardLimits::default())?;
    let (images, captions): (Vec<Vec<u8>>, Vec<String>) =
        (0..count).map(|number| photograph(size, number)).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..count).map(|number| format!("{number:06}")))),
        Arc::new(StringArray::from_iter_values(captions)),
        Arc::new(BinaryArray::from_iter_values(images)),
    ];
    let mut split = writer.split(0, "all");
    split.write(MAIN, &RecordBatch::try_new(schema, columns)?)?;
    split.count_rows_in(count as u64);
    writer.commit(split.publish()?)?;
    Ok(writer.complete()?)
}
