//! `command` stages in real runs: programs that do their work, and programs that do not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{
    ArrayRef, AsArray, Float32Array, Float64Array, Int32Array, LargeBinaryArray, RecordBatch, StringArray,
    StructArray,
};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::ipc::writer::StreamWriter;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::shard::{ShardLimits, TableWriter};
use twinlens_dataset::{Dataset, MAIN, REJECTS, contracts, storage};
use twinlens_pipeline::config::{self, InputSchemas, Overrides};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::{self, Settings};
use twinlens_pipeline::{Registry, RunError};
use twinlens_testkit::process::ends_within;
use twinlens_testkit::python::python;

use crate::notes::Notes;

/// A folder with a pipeline of one `command` stage, `made`, over `rows.parquet`.
struct Place {
    folder: tempfile::TempDir,
    notes: Arc<Notes>,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), notes: Arc::default() }
    }

    /// With a script `program.sh`.
    fn with_script(script: &str) -> Self {
        let place = Self::new();
        fs::write(place.path("program.sh"), format!("echo start >> starts\n{script}\n")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_rows(&self, batches: &[RecordBatch]) {
        let schema = batches[0].schema();
        let mut writer = TableWriter::new(self.folder.path(), MAIN, schema, 0, ShardLimits::default());
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        let shard = self.path(&writer.finish().unwrap()[0].path);
        fs::rename(storage::unfinished(&shard), self.path("rows.parquet")).unwrap();
    }

    /// An answer that scripts can `cat`.
    fn write_answer(&self, name: &str, columns: Vec<(&str, ArrayRef)>) {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        fs::write(self.path(name), writer.into_inner().unwrap()).unwrap();
    }

    async fn run_in(&self, dir: &str, stage: &str) -> Result<Dataset, RunError> {
        self.run_until(dir, stage, CancellationToken::new()).await
    }

    async fn run_until(
        &self,
        dir: &str,
        stage: &str,
        cancel: CancellationToken,
    ) -> Result<Dataset, RunError> {
        let file = self.path("pipeline.toml");
        let text = format!("name = \"test\"\nseed = 1\n[stages.made]\nkind = \"command\"\n{stage}\n");
        fs::write(&file, text).unwrap();
        let mut registry = Registry::default();
        twinlens_curate::register(&mut registry);
        let files = Files::in_folder(self.folder.path());
        let pipeline = config::load(&file, &registry, &Overrides::default(), &InputSchemas::of(&files))
            .unwrap_or_else(|error| panic!("{error}"));
        let settings = Settings {
            dir: self.path(dir).into(),
            grace: Duration::from_millis(100),
            ..Settings::in_folder(self.folder.path())
        };
        let outcome = run::run(&pipeline, &registry, &settings, self.notes.clone(), cancel).await?;
        Ok(outcome.datasets.into_iter().next().unwrap())
    }

    async fn run(&self, stage: &str) -> Result<Dataset, RunError> {
        self.run_in("run", stage).await
    }

    /// The message and the hint of a run that fails.
    async fn failure(&self, stage: &str) -> String {
        match self.run(stage).await.map(|_| ()).unwrap_err() {
            RunError::User { message, hint } => format!("{message}\n{}", hint.unwrap_or_default()),
            RunError::Engine(error) => describe(&error),
            other => other.to_string(),
        }
    }

    /// How often the script was started.
    fn starts(&self) -> usize {
        fs::read_to_string(self.path("starts")).unwrap_or_default().lines().count()
    }
}

/// The user's error that the engine passed on.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<RunError>() {
        Some(RunError::User { message, hint }) => format!("{message}\n{}", hint.clone().unwrap_or_default()),
        _ => error.source().map_or(error.to_string(), describe),
    }
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(values.iter().map(|text| (!text.is_empty()).then_some(*text)).collect::<StringArray>())
}

fn floats(values: &[f32]) -> ArrayRef {
    Arc::new(Float32Array::from(values.to_vec()))
}

/// The rows `a`, `b` and `c`, with captions.
fn three() -> RecordBatch {
    RecordBatch::try_from_iter([("uid", texts(&["c", "a", "b"])), ("caption", texts(&["1", "2", "3"]))])
        .unwrap()
}

/// Rows with images of `bytes` random bytes.
fn images(rows: std::ops::Range<usize>, bytes: usize) -> RecordBatch {
    use rand::{RngCore, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(rows.start as u64);
    let values: Vec<Vec<u8>> = rows
        .clone()
        .map(|_| {
            let mut value = vec![0; bytes];
            random.fill_bytes(&mut value);
            value
        })
        .collect();
    let DataType::Struct(fields) = contracts::image() else { unreachable!() };
    let bytes: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(&values));
    let paths: ArrayRef = Arc::new(StringArray::new_null(values.len()));
    let images: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes, paths], None));
    let uids: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("{row:032x}"))));
    let captions: ArrayRef = Arc::new(StringArray::from_iter_values(rows.map(|row| format!("image {row}"))));
    RecordBatch::try_from_iter([("uid", uids), ("caption", captions), ("image", images)]).unwrap()
}

/// All shards of a table, byte for byte.
fn content(dataset: &Dataset) -> Vec<Vec<u8>> {
    let shards = [MAIN, REJECTS].into_iter().flat_map(|table| dataset.shards(table));
    shards.map(|shard| fs::read(dataset.dir().join(&shard.path)).unwrap()).collect()
}

/// The rows of a table as `a|b`.
async fn rows(dataset: &Dataset, table: &str, columns: &[&str]) -> Vec<String> {
    use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
    let session = datafusion::prelude::SessionContext::new();
    let frame = dataset.frame(&session, table).await.unwrap().select_columns(columns).unwrap();
    let mut lines = Vec::new();
    for batch in frame.collect().await.unwrap() {
        let options = FormatOptions::default();
        let formatters: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        lines.extend((0..batch.num_rows()).map(|row| {
            formatters.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|")
        }));
    }
    lines
}

const SCORES: &str =
    "input = \"rows.parquet\"\ncommand = [\"sh\", \"program.sh\"]\ncolumns = { score = \"float32\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn answers_become_columns_and_rejects() {
    let place = Place::with_script("cat answer.arrow; cat > /dev/null");
    place.write_rows(&[three()]);
    place.write_answer(
        "answer.arrow",
        vec![
            ("uid", texts(&["b", "c", "a"])),
            ("score", floats(&[2.0, 3.0, 1.0])),
            ("reject_code", texts(&["", "too_dark", ""])),
            ("reject_detail", texts(&["", "0.1", ""])),
        ],
    );
    let made = place.run(SCORES).await.unwrap();
    assert_eq!(rows(&made, MAIN, &["uid", "caption", "score"]).await, ["a|2|1.0", "b|3|2.0"]);
    let rejects = rows(&made, REJECTS, &["uid", "reject_stage", "reject_code", "reject_detail"]).await;
    assert_eq!(rejects, ["c|made|too_dark|0.1"]);

    // The script is part of the fingerprint, the number of workers is not.
    place.run(&format!("{SCORES}workers = 2")).await.unwrap();
    assert_eq!(place.starts(), 1);
    fs::write(place.path("program.sh"), "echo start >> starts; cat answer.arrow; cat > /dev/null").unwrap();
    place.run(SCORES).await.unwrap();
    assert_eq!(place.starts(), 2);
    place.run(&format!("{SCORES}version = \"2\"")).await.unwrap();
    assert_eq!(place.starts(), 3);
}

/// Each program fails in its own way. Where a new process might do better, it is started twice.
#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_programs_stop_the_stage() {
    let (abc, good) = (|| ("uid", texts(&["a", "b", "c"])), || ("score", floats(&[1.0, 2.0, 3.0])));
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]));
    let four = floats(&[1.0, 2.0, 3.0, 4.0]);
    let answers = [
        ("loses", vec![("uid", texts(&["a", "b"])), ("score", floats(&[1.0, 2.0]))]),
        ("doubles", vec![("uid", texts(&["a", "b", "b", "c"])), ("score", four.clone())]),
        ("invents", vec![("uid", texts(&["a", "b", "c", "d"])), ("score", four)]),
        ("short", vec![("score", floats(&[1.0]))]),
        ("typed", vec![abc(), ("score", doubles)]),
        ("lacks", vec![abc()]),
        ("undeclared", vec![abc(), good(), ("mood", texts(&["x", "y", "z"]))]),
        ("changes", vec![abc(), good(), ("caption", texts(&["x", "y", "z"]))]),
        ("codes", vec![abc(), good(), ("reject_code", texts(&["Too dark", "", ""]))]),
    ];
    let answer = |name: &str| format!("cat {name}.arrow; cat > /dev/null");
    let cases: [(String, &str, usize); 17] = [
        ("head -c 100 > /dev/null; exit 3".into(), "it exited with status 3", 2),
        ("kill -9 $$".into(), "it was killed by signal 9", 2),
        ("true".into(), "its answers ended before its input did", 2),
        ("echo 'no GPU' >&2; exit 1".into(), "wrote to stderr:\nno GPU", 2),
        ("sleep 60".into(), "did not answer a batch of 3 rows within 0.3 s, also after a restart", 2),
        ("cat > /dev/null; sleep 60 & echo $! >> pids; wait".into(), "within 0.3 s", 2),
        ("echo 'Loading the model'; cat > /dev/null".into(), "is not an Arrow IPC stream", 2),
        (r"printf '\377\377\377\377\377\377\377\177'; cat > /dev/null".into(), "out of range", 2),
        (answer("loses"), "it lost the row with the uid `c`, also after a restart", 2),
        (answer("doubles"), "it answered the row with the uid `b` more than once", 2),
        (answer("invents"), "a row with the uid `d`, which was not sent", 2),
        (answer("short"), "it answered 3 rows with 1", 2),
        (answer("typed"), "`score` is of type float64, but `columns` declares float32", 1),
        (answer("lacks"), "lacks the column `score`", 1),
        (answer("undeclared"), "a column `mood`, which `columns` does not declare", 1),
        (answer("changes"), "changed the column `caption`", 1),
        (answer("codes"), "`Too dark` cannot be a reject code", 1),
    ];
    for (script, expected, starts) in cases {
        let place = Place::with_script(&script);
        place.write_rows(&[three()]);
        answers.iter().for_each(|(name, columns)| {
            place.write_answer(&format!("{name}.arrow"), columns.clone());
        });
        let started = Instant::now();
        let failure = place
            .failure(&format!("{SCORES}timeout = {}", if script.contains("sleep") { 0.3 } else { 30.0 }))
            .await;
        assert!(failure.contains("`sh program.sh`: ") && failure.contains(expected), "{script}: {failure}");
        assert_eq!(place.starts(), starts, "{script}");
        assert!(started.elapsed() < Duration::from_secs(20), "{script}");
        for pid in fs::read_to_string(place.path("pids")).unwrap_or_default().lines() {
            assert!(ends_within(pid, Duration::from_secs(5)), "a process of the group still runs: {script}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_pipes_do_not_block() {
    let place = Place::new();
    place.write_rows(&[images(0..400, 40_000)]);
    // It writes while it reads, and the batches are much larger than a pipe.
    let echo = "input = \"rows.parquet\"\ncommand = [\"cat\"]\nsend = [\"image\"]\nbatch_rows = 50\n";
    let made = place.run(echo).await.unwrap();
    assert_eq!(made.rows(MAIN), 400);
    let with_workers = place.run_in("other", &format!("{echo}workers = 3")).await.unwrap();
    assert!(content(&made) == content(&with_workers), "the shards differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_kills_the_program_and_keeps_committed_splits() {
    let place = Place::with_script("echo $$ >> pids; sleep 60");
    place.write_rows(&[three()]);
    let cancel = CancellationToken::new();
    let (stop, pids) = (cancel.clone(), place.path("pids"));
    tokio::spawn(async move {
        while !pids.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    });
    let error = place.run_until("run", SCORES, cancel).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, RunError::Interrupted), "{error}");
    assert!(ends_within(fs::read_to_string(place.path("pids")).unwrap().trim(), Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_and_the_folder_are_chosen() {
    let place = Place::with_script("env | grep -v PWD | sort >&2; pwd >&2; exit 1");
    place.write_rows(&[three()]);
    fs::create_dir(place.path("work")).unwrap();
    let more = "dir = \"work\"\nenv = { DEPTH = \"3\" }\npass_env = [\"CARGO_PKG_NAME\"]";
    let failure = place.failure(&format!("{SCORES}{more}")).await;
    for expected in ["DEPTH=3", "CARGO_PKG_NAME=twinlens-curate", "PATH=", "TWINLENS_SEED=", "/work"] {
        assert!(failure.contains(expected), "{expected}: {failure}");
    }
    assert!(!failure.contains("CARGO_MANIFEST_DIR"), "{failure}");
    assert!(place.notes.0.lock().unwrap().iter().any(|note| note == "DEPTH=3"), "stderr goes to the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_makes_rows() {
    let place = Place::with_script("cat part$TWINLENS_SPLIT.arrow; test $TWINLENS_SPLITS = 2");
    for (part, uids) in [(0, ["d", "c"]), (1, ["b", "a"])] {
        let columns =
            vec![("uid", texts(&uids)), ("size", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef)];
        place.write_answer(&format!("part{part}.arrow"), columns);
    }
    let source =
        "command = [\"sh\", \"program.sh\"]\nsplits = 2\ncolumns = { uid = \"string\", size = \"int32\" }";
    let made = place.run(source).await.unwrap();
    let mut made_rows = rows(&made, MAIN, &["uid", "size"]).await;
    made_rows.sort();
    assert_eq!(made_rows, ["a|2", "b|1", "c|2", "d|1"]);

    fs::write(place.path("program.sh"), "echo start >> starts; cat part0.arrow; exit 4").unwrap();
    let failure = place.failure(source).await;
    assert!(failure.contains("it exited with status 4, also after a restart"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_sees_the_whole_input() {
    let place = Place::with_script("cat > /dev/null; cat answer.arrow");
    place.write_rows(&[three()]);
    place.write_answer(
        "answer.arrow",
        vec![("uid", texts(&["c", "b", "a"])), ("score", floats(&[3.0, 2.0, 1.0]))],
    );
    let whole = format!("{SCORES}whole = true");
    let made = place.run(&whole).await.unwrap();
    assert_eq!(rows(&made, MAIN, &["uid", "caption", "score"]).await, ["a|2|1.0", "b|3|2.0", "c|1|3.0"]);
    let cases = [
        (["c", "b", "b"], "lost the row with the uid `a`"),
        (["c", "b", "x"], "lost the row with the uid `a`"),
    ];
    for (uids, expected) in cases {
        place.write_answer("answer.arrow", vec![("uid", texts(&uids)), ("score", floats(&[3.0, 2.0, 1.0]))]);
        let failure = place.failure(&format!("{whole}\nversion = \"{}\"", uids[2])).await;
        assert!(failure.contains(expected), "{failure}");
    }
    place.write_answer("answer.arrow", vec![("score", floats(&[3.0, 2.0]))]);
    let failure = place.failure(&format!("{whole}\nversion = \"short\"")).await;
    assert!(failure.contains("it answered 3 rows with 2, also after a restart"), "{failure}");
}

#[test]
fn options_are_checked() {
    let place = Place::new();
    place.write_rows(&[three()]);
    let mut registry = Registry::default();
    twinlens_curate::register(&mut registry);
    for (stage, expected) in [
        ("command = []\ninput = \"rows.parquet\"", "`command` is empty"),
        ("command = [\"x\"]", "`columns` must name the columns"),
        (
            "command = [\"x\"]\ninput = \"rows.parquet\"\ncolumns = { a = \"flaot32\" }",
            "did you mean `float32`?",
        ),
        (
            "command = [\"x\"]\ninput = \"rows.parquet\"\ncolumns = { uid = \"string\" }",
            "`uid` cannot be replaced",
        ),
        ("command = [\"x\"]\ncolumns = { a = \"bool\" }\nwhole = true", "`whole` needs an `input`"),
        ("command = [\"x\"]\ncolumns = { a = \"bool\" }\nsend = [\"a\"]", "`send` needs an `input`"),
        ("command = [\"x\"]\ninput = \"rows.parquet\"\nsplits = 3", "is cut into splits by itself"),
        ("command = [\"x\"]\ninput = \"rows.parquet\"\nworkers = 0", "`workers` is 0"),
        ("command = [\"x\"]\ninput = \"rows.parquet\"\ntimeout = -1.0", "`timeout` is out of range"),
    ] {
        let file = place.path("pipeline.toml");
        fs::write(&file, format!("name = \"test\"\nseed = 1\n[stages.made]\nkind = \"command\"\n{stage}\n"))
            .unwrap();
        let report = config::load(&file, &registry, &Overrides::default(), &InputSchemas::none())
            .unwrap_err()
            .to_string();
        assert!(report.contains(expected), "{report}");
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/command").join(name)
}

/// 10,000 images through a Python function whose process is killed once in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_images_through_a_killed_python_function() {
    let Some(python) = python("pyarrow") else { return };
    let place = Place::new();
    place.write_rows(&(0..10).map(|part| images(part * 1000..part * 1000 + 1000, 1000)).collect::<Vec<_>>());
    fs::copy(example("twinlens_command.py"), place.path("twinlens_command.py")).unwrap();
    let script = r#"
import os, pyarrow as pa
from twinlens_command import serve
batches = 0
def score(batch):
    global batches
    batches += 1
    if batches == 5 and "KILL" in os.environ:
        try:
            open("killed", "x").close()  # of two workers, one alone may make it
            os.kill(os.getpid(), 9)
        except FileExistsError:
            pass
    print("a line for the log")
    images = batch["image"].field("bytes").to_pylist()
    return {"score": pa.array([float(sum(image[:8])) for image in images], pa.float32()),
            "reject_code": ["odd" if image[0] == 7 else None for image in images]}
serve(score)
"#;
    fs::write(place.path("score.py"), script).unwrap();
    let stage = |more: &str| {
        format!(
            "input = \"rows.parquet\"\ncommand = [{python:?}, \"score.py\"]\nsend = [\"image\"]\n\
             columns = {{ score = \"float32\" }}\nbatch_rows = 500\n{more}"
        )
    };
    let calm = place.run_in("calm", &stage("")).await.unwrap();
    let rejected = calm.rows(REJECTS);
    assert!(rejected > 0 && calm.rows(MAIN) + rejected == 10_000, "{rejected}");
    let killed = place.run_in("killed_run", &stage("workers = 2\nenv = { KILL = \"1\" }")).await.unwrap();
    assert!(place.path("killed").exists());
    assert!(content(&calm) == content(&killed), "the shards differ");
    let notes = place.notes.0.lock().unwrap();
    assert!(notes.iter().any(|note| note.contains("is restarted: it was killed by signal 9")), "{notes:?}");
    assert!(notes.iter().any(|note| note == "a line for the log"));
}

/// The examples of `pipelines/command`: a score, a caption rewriter, a face blur.
#[tokio::test(flavor = "multi_thread")]
async fn the_examples_do_what_they_say() {
    let Some(python) = python("pyarrow, cv2, numpy") else { return };
    let place = Place::new();
    for script in ["twinlens_command.py", "score.py", "recaption.py", "blur_faces.py"] {
        fs::copy(example(script), place.path(script)).unwrap();
    }
    let (face, flat) = (fs::read(fixture("face.png")).unwrap(), fs::read(fixture("flat.png")).unwrap());
    let images = [face.as_slice(), &flat, b"not an image"];
    let DataType::Struct(fields) = contracts::image() else { unreachable!() };
    let bytes: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(images));
    let images: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes, texts(&["", "", ""])], None));
    let captions = texts(&["A face - My Shop", "well-known sky", "nothing | Photo blog"]);
    let batch = RecordBatch::try_from_iter([
        ("uid", texts(&["a", "b", "c"])),
        ("caption", captions),
        ("image", images),
    ]);
    place.write_rows(&[batch.unwrap()]);
    let stage = |script: &str, columns: &str| {
        format!(
            "input = \"rows.parquet\"\ncommand = [{python:?}, \"{script}\"]\ncolumns = {{ {columns} }}\nsend = [\"image\", \"caption\"]"
        )
    };

    let scored = place.run_in("score", &stage("score.py", "sharpness = \"float32\"")).await.unwrap();
    assert_eq!(rows(&scored, MAIN, &["uid"]).await, ["a"]);
    assert_eq!(rows(&scored, REJECTS, &["uid", "reject_code"]).await, ["b|blurred", "c|undecodable"]);

    let rewritten = place.run_in("recaption", &stage("recaption.py", "caption = \"string\"")).await.unwrap();
    assert_eq!(rows(&rewritten, MAIN, &["caption"]).await, ["A face", "well-known sky", "nothing"]);

    let blurred =
        place.run_in("blur", &stage("blur_faces.py", "image = \"image\", faces = \"int32\"")).await.unwrap();
    assert_eq!(rows(&blurred, MAIN, &["uid", "faces"]).await, ["a|1", "b|0", "c|0"]);
    let session = datafusion::prelude::SessionContext::new();
    let batch = blurred.frame(&session, MAIN).await.unwrap().collect().await.unwrap().remove(0);
    let stored = |row| {
        batch["image"].as_struct().column_by_name("bytes").unwrap().as_binary::<i64>().value(row).to_vec()
    };
    assert!(stored(0).starts_with(&[0xff, 0xd8]) && stored(1) == flat && stored(2) == b"not an image");
    let limits = twinlens_image::Limits::default();
    let (before, after) = (
        twinlens_image::decode(&face, &limits).unwrap().rgb,
        twinlens_image::decode(&stored(0), &limits).unwrap().rgb,
    );
    // The detail of the eyes is gone.
    let contrast = |image: &twinlens_image::Rgb| {
        let row =
            &image.pixels()[(93 * image.width() as usize + 60) * 3..(93 * image.width() as usize + 140) * 3];
        i32::from(*row.iter().max().unwrap()) - i32::from(*row.iter().min().unwrap())
    };
    assert!(contrast(&after) * 2 < contrast(&before), "{} {}", contrast(&before), contrast(&after));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
