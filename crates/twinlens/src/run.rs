//! `twinlens run`: executes a pipeline, shows progress and prints the result tables.

use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::storage::Verify;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::config::{Pipeline, Resolved};
use twinlens_pipeline::run::consent::Replace;
use twinlens_pipeline::run::events::Observer;
use twinlens_pipeline::run::reasons::AllRejected;
use twinlens_pipeline::run::workers::{SharedRun, Sharing};
use twinlens_pipeline::run::{self, Outcome, Settings, rank_jobs};
use twinlens_pipeline::{Product, Registry};

use crate::cli::{EngineArgs, RunArgs, SharingArgs, VerifyMode};
use crate::continued::Request;
use crate::errors::{Exit, Failure};
use crate::in_flight::Notes;
use crate::isolation::Isolation;
use crate::location::run_dir;
use crate::progress::{Watcher, reason_line};
use crate::signals::GRACE;
use crate::table::TableWriter;
use crate::text::{count, counted, seconds, shell_quote};
use crate::{cluster, continued, env, hub, prompt, ranks, runtime, signals, sites, work};

/// At most this many rows of each result table are printed at the end of a run.
const RESULT_ROWS: u64 = 100;

pub(crate) fn execute(args: &RunArgs, registry: &Registry) -> Result<(), Failure> {
    let request = Request { file: &args.pipeline, set: &args.set.values, stage: args.continued.as_deref() };
    let pipeline = continued::open(request, registry, |pipeline| run_dir(args.dir.as_deref(), pipeline))?;
    let ranks = ranks::meet(&args.ranks, &pipeline, args.engine.threads)?;
    if let Some(ranks) = ranks.as_ref().filter(|ranks| ranks.rank() > 0) {
        return ranks::follow(args, &pipeline, registry, ranks);
    }
    let settings = Settings {
        ranks,
        fresh: args.fresh,
        replace: if args.replace { Replace::Yes } else { prompt::replace() },
        until: args.until.clone(),
        max_rows: args.max_rows,
        ..settings(&args.engine, args.dir.as_deref(), &pipeline)?
    };
    let settings = shared(settings, &args.sharing, &pipeline)?;
    let collective = settings.ranks.as_ref().map(|ranks| ranks.collective.clone());
    let done = run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        let outcome = run::run(&pipeline, registry, settings, watcher, cancel).await;
        if let Some(ranks) = &settings.ranks {
            rank_jobs::end(ranks, outcome.as_ref().map(drop)).await?;
        }
        Ok(outcome?)
    });
    collective.iter().for_each(|ranks| ranks.close());
    let done = done?;
    finish(&pipeline, &settings, &done.value, &done.watcher, done.elapsed)
}

/// The settings of a run that shares its splits with other processes, if it does.
pub(crate) fn shared(
    settings: Settings,
    args: &SharingArgs,
    pipeline: &Pipeline,
) -> Result<Settings, Failure> {
    if !args.workers && !args.workers_only {
        return connected(settings, args.on.clone(), args.patience, pipeline);
    }
    work::check_shared(&settings.dir, "workers")?;
    let sharing = Sharing { lease: args.lease, makes_splits: !args.workers_only, ..work::sharing(&settings) };
    Ok(Settings { elsewhere: Some(Arc::new(SharedRun::new(sharing))), ..settings })
}

/// The settings of a run whose splits the executors of a scheduler make, if one is named: by `on`,
/// by the environment or by the pipeline.
pub(crate) fn connected(
    settings: Settings,
    on: Option<String>,
    patience: Duration,
    pipeline: &Pipeline,
) -> Result<Settings, Failure> {
    let on = on.or_else(env::scheduler).or_else(|| pipeline.cluster.on.clone());
    let Some(address) = on else { return Ok(settings) };
    work::check_shared(&settings.dir, "executors")?;
    cluster::connect(settings, &address, patience)
}

/// The result of supervised work.
pub(crate) struct Completed<T> {
    pub value: T,
    pub watcher: Arc<Watcher>,
    pub elapsed: Duration,
}

/// Like [`run_supervised`], with the pipeline's sites being served.
pub(crate) fn run_watched<T>(
    pipeline: &Pipeline,
    settings: &Settings,
    engine: &EngineArgs,
    work: impl AsyncFnOnce(&Settings, Arc<dyn Observer>, CancellationToken) -> Result<T, Failure>,
) -> Result<Completed<T>, Failure> {
    let watcher = watcher(engine, settings, pipeline)?;
    let _isolation = Isolation::begin(engine.isolate || pipeline.isolate)?;
    let notes = Notes::watch(&settings.dir.local_path());
    let done = run_supervised(watcher, settings.threads, async |watcher, cancel| {
        with_sites(pipeline, settings, async |settings| work(settings, watcher, cancel).await).await
    });
    notes.stop(done.is_ok());
    done
}

/// Does work while the pipeline's sites are being served.
pub(crate) async fn with_sites<T>(
    pipeline: &Pipeline,
    settings: &Settings,
    work: impl AsyncFnOnce(&Settings) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let sites = sites::open(&pipeline.sites).await?;
    let settings = Settings { hosts: sites.hosts.clone(), ..settings.clone() };
    work(&settings).await
}

pub(crate) fn watcher(
    engine: &EngineArgs,
    settings: &Settings,
    pipeline: &Pipeline,
) -> Result<Watcher, Failure> {
    let names = || pipeline.nodes.iter().map(|node| node.name.as_str());
    let mut watcher = Watcher::new(engine.progress, engine.log_format, names());
    if let Some(dir) = settings.dir.as_local() {
        watcher = watcher.recording(dir.into(), names().map(String::from).collect(), engine.progress);
    }
    if let Some(address) = engine.metrics {
        watcher = (watcher.serving_metrics(address))
            .map_err(|error| Failure::user(format!("--metrics {address}: {error}")))?;
    }
    if let Some(folder) = &engine.tensorboard {
        watcher = (watcher.writing_tensorboard(folder.clone()))
            .map_err(|error| Failure::user(format!("--tensorboard {}: {error}", folder.display())))?;
    }
    Ok(watcher)
}

/// Does work on `threads` threads, with progress on stderr, until it ends or Ctrl-C stops it.
pub(crate) fn run_supervised<T>(
    watcher: Watcher,
    threads: usize,
    work: impl AsyncFnOnce(Arc<dyn Observer>, CancellationToken) -> Result<T, Failure>,
) -> Result<Completed<T>, Failure> {
    let watcher = Arc::new(watcher);
    let cancel = CancellationToken::new();
    let notified = watcher.clone();
    signals::stop(cancel.clone(), move || {
        notified.message("stopping after the splits in flight (at most 10 s); Ctrl-C again stops at once");
    })
    .map_err(|error| Failure::user(format!("cannot listen for signals: {error}")))?;

    let started = Instant::now();
    match runtime::block_on(Some(threads), work(watcher.clone(), cancel)) {
        Ok(value) => Ok(Completed { value, watcher, elapsed: started.elapsed() }),
        Err(failure) => {
            watcher.end(&json!({ "event": "run_stopped", "seconds": started.elapsed().as_secs_f64() }));
            let mut failure = of_running_stage(failure, &watcher);
            if watcher.has_started() {
                failure.resume = words().as_deref().map(resume_command);
            }
            Err(failure)
        }
    }
}

/// Names the stage that failed.
pub(crate) fn of_running_stage(mut failure: Failure, watcher: &Watcher) -> Failure {
    if let (Some(stage), Exit::User | Exit::Internal) = (watcher.running(), failure.exit) {
        let prefix = format!("stage `{stage}`: ");
        if !failure.message.starts_with(&prefix) {
            failure.message.insert_str(0, &prefix);
        }
    }
    failure
}

pub(crate) fn settings(
    engine: &EngineArgs,
    dir: Option<&str>,
    pipeline: &Pipeline,
) -> Result<Settings, Failure> {
    Ok(Settings {
        dir: run_dir(dir, pipeline)?.verifying(match engine.verify {
            VerifyMode::Always => Verify::Always,
            VerifyMode::First => Verify::First(Arc::default()),
            VerifyMode::Never => Verify::Never,
        }),
        scratch: env::cache_dir(),
        hub: hub::open(),
        fresh: false,
        replace: Replace::Yes,
        until: None,
        max_rows: None,
        threads: engine.threads.map_or_else(runtime::cores, usize::from),
        memory_bytes: engine.memory,
        bytes_in_flight: engine.bytes_in_flight,
        grace: GRACE,
        clock: env::clock().map_err(Failure::user)?,
        hosts: Arc::default(),
        elsewhere: None,
        ranks: None,
        sharers: Arc::default(),
    })
}

/// Prints the tables and the summary, and fails if a test failed.
fn finish(
    pipeline: &Pipeline,
    settings: &Settings,
    outcome: &Outcome,
    watcher: &Watcher,
    elapsed: Duration,
) -> Result<(), Failure> {
    let passed = outcome.tests.iter().filter(|test| test.failure.is_none()).count();
    let mut summary =
        format!("{} in {}", counted(outcome.datasets.len() as u64, "dataset"), seconds(elapsed));
    if !outcome.tests.is_empty() {
        summary += &format!("; {passed}/{} tests passed", outcome.tests.len());
    }
    summary += &format!("\nquery it with: twinlens sql {}", shell_quote(&settings.dir.to_string()));
    let event = json!({
        "event": "run_finished", "seconds": elapsed.as_secs_f64(), "tests": outcome.tests.len(), "tests_passed": passed,
        "too_many_rejects": outcome.too_many_rejects,
    });
    // Progress lines are removed before the tables are printed.
    watcher.end(&event);
    print_results(pipeline, outcome)?;
    watcher.print_summary(&summary);
    check_outcome(pipeline, settings, outcome)
}

/// Fails if a test failed, or more rows were rejected than the pipeline allows.
pub(crate) fn check_outcome(
    pipeline: &Pipeline,
    settings: &Settings,
    outcome: &Outcome,
) -> Result<(), Failure> {
    let failed: Vec<String> = (outcome.tests.iter())
        .filter_map(|test| Some((test, test.failure.as_ref()?)))
        .map(|(test, failure)| {
            format!(
                "test \"{}\" failed\n  --> {}:{}\n{failure}",
                test.that,
                pipeline.file.as_deref().unwrap_or(&pipeline.base).display(),
                test.line
            )
        })
        .collect();
    if !failed.is_empty() {
        return Err(Failure::user(failed.join("\n")));
    }
    check_rejected(outcome)?;
    match &outcome.too_many_rejects[..] {
        [] => Ok(()),
        stages => {
            let share = pipeline.max_reject_share.unwrap_or(1.0);
            let message = format!(
                "more rows were rejected than max_reject_share = {share} allows: {}",
                stages.join(", ")
            );
            Err(Failure::rejects(message).hint(format!(
                "see the reasons with: twinlens status {}",
                shell_quote(&settings.dir.to_string())
            )))
        }
    }
}

/// Fails if a stage ended the run, since all of its rows were rejected.
pub(crate) fn check_rejected(outcome: &Outcome) -> Result<(), Failure> {
    let Some(AllRejected { stage, reasons, hint }) = &outcome.all_rejected else { return Ok(()) };
    let lines: Vec<String> =
        reasons.iter().map(|reason| format!("\n  {}", reason_line(reason, stage))).collect();
    let message = format!("every row of `{stage}` was rejected; the run ends here:{}", lines.concat());
    Err(Failure::rejects(message)
        .hint(hint.unwrap_or("`max_reject_share = 1` lets the run continue without rows")))
}

/// Prints the tables of the `sql` stages that no other stage reads, in the order of the file.
fn print_results(pipeline: &Pipeline, outcome: &Outcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for (index, node) in pipeline.nodes.iter().enumerate() {
        let dataset = outcome.datasets.iter().find(|dataset| dataset.state().begin.stage == node.name);
        if let Some(dataset) =
            dataset.filter(|_| node.product == Product::Report && !is_read(pipeline, index))
        {
            writeln!(out, "\n{}\n", node.name)?;
            print_table(&mut out, dataset)?;
        }
    }
    Ok(out.flush()?)
}

/// Whether another stage names this one as an input.
fn is_read(pipeline: &Pipeline, index: usize) -> bool {
    let reads =
        |input: &Resolved| !matches!(input, Resolved::System { .. }) && input.nodes().contains(&index);
    pipeline.nodes.iter().any(|node| node.inputs.iter().any(|input| reads(&input.resolved)))
}

/// Prints rows in the order of the query.
fn print_table(mut out: &mut impl Write, dataset: &Dataset) -> Result<(), Failure> {
    let schema = dataset.schema(MAIN)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut table = TableWriter::new(&mut out, &schema);
    let mut left = RESULT_ROWS as usize;
    for batch in ShardReader::new(dataset, MAIN, &columns, RESULT_ROWS as usize) {
        let batch = batch?;
        table.batch(&batch.slice(0, batch.num_rows().min(left)))?;
        left = left.saturating_sub(batch.num_rows());
        if left == 0 {
            break;
        }
    }
    table.finish()?;
    let more = dataset.rows(MAIN).saturating_sub(RESULT_ROWS);
    if more > 0 {
        writeln!(out, "... and {} more", count(more))?;
    }
    Ok(())
}

/// The words of the command that this process carries out, if it does.
static WORDS: Mutex<Option<Vec<OsString>>> = Mutex::new(None);

fn words() -> MutexGuard<'static, Option<Vec<OsString>>> {
    WORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the words of the command, which a run that stops shows: in a process that began as an
/// interpreter of Python, they are not those of the process.
pub(crate) fn keep_words(command: &[OsString]) {
    *words() = Some(command.to_vec());
}

/// The command line without `--fresh`.
fn resume_command(words: &[OsString]) -> String {
    let words = words.iter().map(|word| word.to_string_lossy()).filter(|word| word != "--fresh");
    words.map(|word| shell_quote(&word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resume_command_is_the_command_without_fresh() {
        let args = ["./twinlens", "run", "my pipe.toml", "--fresh", "--set", "where=a = 'b'"];
        assert_eq!(
            resume_command(&args.map(OsString::from)),
            r"./twinlens run 'my pipe.toml' --set 'where=a = '\''b'\'''"
        );
    }
}
