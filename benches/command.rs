//! `command`: what a program as a stage costs.
//!
//!     TWINLENS_TEST_PYTHON=venv/bin/python cargo bench -p twinlens-curate --bench command [-- ROWS]      (10,000 rows)
//!
//! Rows with images of 20 KB go through a `filter` stage that keeps all, and through a `command`
//! stage whose Python function does nothing; both runs write shards. The program's own time is that
//! of the same program over the same batches in a file. Prints the least of three times each, and
//! the ratio of the `command` run to the `filter` run plus the program's own time, which
//! `target/bench/ command.arrow` also holds.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, LargeBinaryArray, RecordBatch, StringArray, StructArray,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::ipc::writer::{FileWriter, StreamWriter};
use rand::{RngCore, SeedableRng};
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

const IMAGE_BYTES: usize = 20_000;
const BATCH_ROWS: usize = 256;
const PROGRAM: &str = "from twinlens_command import serve\nserve(lambda batch: {'uid': batch['uid']})\n";

fn rows(random: &mut ChaCha8Rng, first: usize, count: usize) -> Result<RecordBatch, Failure> {
    let DataType::Struct(fields) = contracts::image() else { return Err("an image is a struct".into()) };
    let images = (0..count).map(|_| {
        let mut image = vec![0; IMAGE_BYTES];
        random.fill_bytes(&mut image);
        image
    });
    let bytes: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(images));
    let paths: ArrayRef = Arc::new(StringArray::new_null(count));
    let numbers = || first..first + count;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("uid", Arc::new(StringArray::from_iter_values(numbers().map(|row| format!("{row:032x}"))))),
        ("caption", Arc::new(StringArray::from_iter_values(numbers().map(|row| format!("image {row}"))))),
        ("image", Arc::new(StructArray::try_new(fields, vec![bytes, paths], None)?)),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// The rows as `rows.parquet`, and as the stream that the program gets in `rows.arrow`.
fn write(folder: &Path, count: usize) -> Result<(), Failure> {
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let schema = rows(&mut random, 0, 0)?.schema();
    let limits = ShardLimits { shard_bytes: usize::MAX, ..ShardLimits::default() };
    let mut table = TableWriter::new(folder, MAIN, schema.clone(), 0, limits);
    let mut stream =
        StreamWriter::try_new(BufWriter::new(File::create(folder.join("rows.arrow"))?), &schema)?;
    for first in (0..count).step_by(BATCH_ROWS) {
        let batch = rows(&mut random, first, BATCH_ROWS.min(count - first))?;
        table.write(&batch)?;
        stream.write(&batch)?;
    }
    stream.finish()?;
    let shard = table.finish()?.remove(0);
    Ok(std::fs::rename(unfinished(&folder.join(shard.path)), folder.join("rows.parquet"))?)
}

async fn run(folder: &Path, stage: &str) -> Result<f64, Failure> {
    let file = folder.join("pipeline.toml");
    std::fs::write(
        &file,
        format!("name = \"bench\"\nseed = 17\n[stages.made]\ninput = \"rows.parquet\"\n{stage}\n"),
    )?;
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    let files = Files::in_folder(folder);
    let pipeline = config::load(&file, &registry, &Overrides::default(), &InputSchemas::of(&files))
        .map_err(|error| error.to_string())?;
    let settings = Settings { fresh: true, memory_bytes: 1 << 30, ..Settings::in_folder(folder) };
    let start = Instant::now();
    let outcome =
        run::run(&pipeline, &registry, &settings, Arc::new(Silent), CancellationToken::new()).await?;
    let seconds = start.elapsed().as_secs_f64();
    drop(outcome);
    Ok(seconds)
}

fn program(folder: &Path, python: &str) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut command = Command::new(python);
    command.arg("nothing.py").current_dir(folder).stdout(Stdio::null());
    let status = command.stdin(File::open(folder.join("rows.arrow"))?).status()?;
    if status.success() {
        Ok(start.elapsed().as_secs_f64())
    } else {
        Err("the program fails by itself".into())
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let count = arguments.first().map_or(Ok(10_000), |rows| rows.replace('_', "").parse::<usize>())?;
    let python = std::env::var("TWINLENS_TEST_PYTHON").unwrap_or("python3".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target: PathBuf = root.join("target/bench");
    std::fs::create_dir_all(&target)?;
    let folder = tempfile::tempdir_in(&target)?;
    std::fs::copy(
        root.join("pipelines/command/twinlens_command.py"),
        folder.path().join("twinlens_command.py"),
    )?;
    std::fs::write(folder.path().join("nothing.py"), PROGRAM)?;
    write(folder.path(), count)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let command = format!(
        "kind = \"command\"\ncommand = [\"{python}\", \"nothing.py\"]\nsend = [\"image\", \"caption\"]\nbatch_rows = {BATCH_ROWS}"
    );
    let (mut bare, mut own, mut whole) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..3 {
        bare =
            bare.min(runtime.block_on(run(folder.path(), "kind = \"filter\"\nwhere = \"caption <> ''\""))?);
        own = own.min(program(folder.path(), &python)?);
        whole = whole.min(runtime.block_on(run(folder.path(), &command))?);
    }
    let ratio = whole / (bare + own);
    println!(
        "{count} rows: filter {bare:.2} s, the program alone {own:.2} s, command {whole:.2} s: ratio {ratio:.2}"
    );
    let seconds = |value: f64| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("rows", Arc::new(Int64Array::from(vec![count as i64]))),
        ("filter_seconds", seconds(bare)),
        ("program_seconds", seconds(own)),
        ("command_seconds", seconds(whole)),
        ("ratio", seconds(ratio)),
    ];
    let table = RecordBatch::try_from_iter(columns)?;
    let mut writer = FileWriter::try_new(File::create(target.join("command.arrow"))?, &table.schema())?;
    writer.write(&table)?;
    Ok(writer.finish()?)
}
