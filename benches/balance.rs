//! `balance`: time and memory of the stage over many rows.
//!
//!     cargo bench -p twinlens-curate --bench balance [-- ROWS [cap|sample]]         (10,000,000 rows, cap)
//!
//! The rows are pairs with three queries each, drawn from 500,000 by Zipf's law (the n-th most
//! frequent with weight 1/n). A `select` stage, which is not timed, writes them first. Then the
//! `balance` stage runs as in `twinlens run`, to committed shards. Prints seconds, rows per second
//! and the peak resident memory, which `target/bench/balance.arrow` also holds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int32Builder, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use datafusion::arrow::ipc::writer::FileWriter;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::{ShardLimits, TableWriter};
use twinlens_dataset::storage::unfinished;
use twinlens_dataset::{MAIN, contracts};
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::{self, Settings};

type Failure = Box<dyn std::error::Error>;

const QUERIES: f64 = 500_000.0;
/// The engine's memory pool, in bytes; beyond it, the sort spills.
const POOL: usize = 1 << 30;
/// What the stage may hold outside the pool, in bytes.
const IN_FLIGHT: usize = 256 << 20;
const THREADS: usize = 2;

fn rows(random: &mut ChaCha8Rng, first: usize, count: usize) -> Result<RecordBatch, Failure> {
    let (mut uids, mut urls, mut captions) =
        (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let mut queries = ListBuilder::new(Int32Builder::new());
    for row in first..first + count {
        uids.append_value(format!("{:032x}", random.random::<u128>()));
        urls.append_value(format!("https://images.example/{:016x}.jpg", random.random::<u64>()));
        captions.append_value(format!("a photograph of the thing with the number {row}"));
        // 1/n over 1..=QUERIES, by inversion of its (continuous) distribution.
        let mut set: Vec<i32> =
            (0..3).map(|_| (QUERIES.powf(random.random::<f64>()) as i32 - 1).max(0)).collect();
        set.sort_unstable();
        set.dedup();
        queries.append_value(set.into_iter().map(Some));
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("uid", Arc::new(uids.finish())),
        ("url", Arc::new(urls.finish())),
        ("caption", Arc::new(captions.finish())),
        ("query_ids", Arc::new(queries.finish())),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// The rows as one Parquet file.
fn write(folder: &Path, count: usize) -> Result<PathBuf, Failure> {
    let pairs = contracts::pairs();
    let fields = ["uid", "url", "caption", "query_ids"].map(|name| pairs.field_with_name(name).cloned());
    let schema =
        datafusion::arrow::datatypes::Schema::new(fields.into_iter().collect::<Result<Vec<_>, _>>()?);
    let limits = ShardLimits { shard_bytes: usize::MAX, ..ShardLimits::default() };
    let mut writer = TableWriter::new(folder, MAIN, Arc::new(schema), 0, limits);
    let mut random = ChaCha8Rng::seed_from_u64(17);
    for first in (0..count).step_by(8192) {
        writer.write(&rows(&mut random, first, (count - first).min(8192))?)?;
    }
    let path = folder.join("matched.parquet");
    let shard = writer.finish()?.remove(0);
    std::fs::rename(unfinished(&folder.join(shard.path)), &path)?;
    Ok(path)
}

/// Kilobytes in a line of /proc/self/status; `None` if there is no such file.
fn status(line: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

async fn balance(folder: &Path, limit: &str) -> Result<f64, Failure> {
    let file = folder.join("pipeline.toml");
    let pipeline = format!(
        "name = \"bench\"\nseed = 17\n\
         [stages.matched]\nkind = \"select\"\ninput = \"matched.parquet\"\nkeep = [\"uid\", \"url\", \"caption\", \"query_ids\"]\n\
         [stages.wit]\nkind = \"balance\"\ninput = \"matched\"\n{limit} = 20000\n"
    );
    std::fs::write(&file, pipeline)?;
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    let files = Files::in_folder(folder);
    let pipeline = config::load(&file, &registry, &Overrides::default(), &InputSchemas::of(&files))
        .map_err(|error| error.to_string())?;
    let settings = Settings {
        threads: THREADS,
        memory_bytes: POOL,
        bytes_in_flight: IN_FLIGHT,
        ..Settings::in_folder(folder)
    };
    let run = async |settings: &Settings| {
        run::run(&pipeline, &registry, settings, Arc::new(Silent), CancellationToken::new()).await
    };
    run(&Settings { until: Some("matched".into()), ..settings.clone() }).await?;
    // Resets the peak.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let start = Instant::now();
    let outcome = run(&settings).await?;
    let seconds = start.elapsed().as_secs_f64();
    let state = outcome.datasets[1].state();
    println!("{} rows kept, {:?}", state.rows(MAIN), state.rejects());
    Ok(seconds)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let count = arguments.first().map_or(Ok(10_000_000), |rows| rows.replace('_', "").parse::<usize>())?;
    let limit = arguments.get(1).map_or("cap", String::as_str);
    // Not in /tmp, which may be in memory: the rows of a large run may not fit there.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&target)?;
    let folder = tempfile::tempdir_in(&target)?;
    write(folder.path(), count)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let seconds = runtime.block_on(balance(folder.path(), limit))?;
    let peak = status("VmHWM:").map_or(f64::NAN, |kilobytes| kilobytes as f64 / 1024.0);
    println!(
        "{limit}: {count} rows in {seconds:.1} s on {THREADS} threads, {:.0} rows/s, peak memory {peak:.0} MiB",
        count as f64 / seconds
    );
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("limit", Arc::new(StringArray::from(vec![limit]))),
        ("rows", Arc::new(Int64Array::from(vec![count as i64]))),
        ("seconds", Arc::new(Float64Array::from(vec![seconds]))),
        ("peak_mib", Arc::new(Float64Array::from(vec![peak]))),
    ];
    let table = RecordBatch::try_from_iter(columns)?;
    let mut writer = FileWriter::try_new(File::create(target.join("balance.arrow"))?, &table.schema())?;
    writer.write(&table)?;
    Ok(writer.finish()?)
}
