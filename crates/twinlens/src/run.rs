//! `twinlens run`: executes a pipeline, tells how it goes, and prints its result tables.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::config::{Pipeline, Resolved};
use twinlens_pipeline::run::events::Observer;
use twinlens_pipeline::run::{self, Outcome, Settings};

use crate::cli::{EngineArgs, RunArgs};
use crate::errors::{Exit, Failure};
use crate::progress::Watcher;
use crate::table::TableWriter;
use crate::text::{count, counted, seconds};
use crate::{config, env, hub, registry, runtime, signals, sites};

/// How long splits in flight may go on after the first Ctrl-C.
const GRACE: Duration = Duration::from_secs(10);
/// Rows of a result table that are printed at the end of a run.
const RESULT_ROWS: u64 = 100;

/// Runs a pipeline, or goes on with it.
pub fn execute(args: &RunArgs) -> Result<(), Failure> {
    let registry = registry::all();
    let pipeline = config::load(&args.pipeline, &registry, &args.set.values)?;
    let settings = Settings {
        fresh: args.fresh,
        until: args.until.clone(),
        max_rows: args.max_rows,
        ..settings(&args.engine, args.dir.as_deref(), &pipeline)?
    };
    let done = run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        Ok(run::run(&pipeline, &registry, settings, watcher, cancel).await?)
    })?;
    end(&pipeline, &settings, &done.value, &done.watcher, done.time)
}

/// Work that was watched to its end.
pub struct Done<T> {
    /// What came of it.
    pub value: T,
    /// Whoever watched: shows the end.
    pub watcher: Arc<Watcher>,
    /// How long it took.
    pub time: Duration,
}

/// Does work of a pipeline on the engine's threads, with its sites up.
pub fn watched<T>(
    pipeline: &Pipeline,
    settings: &Settings,
    engine: &EngineArgs,
    work: impl AsyncFnOnce(&Settings, Arc<dyn Observer>, CancellationToken) -> Result<T, Failure>,
) -> Result<Done<T>, Failure> {
    let names = pipeline.nodes.iter().map(|node| node.name.as_str());
    let watcher = Watcher::new(engine.progress, engine.log_format, names);
    run_supervised(watcher, settings.threads, async |watcher, cancel| {
        let sites = sites::open(&pipeline.sites).await?;
        let settings = Settings { hosts: sites.hosts.clone(), ..settings.clone() };
        work(&settings, watcher, cancel).await
    })
}

/// Does work on so many threads, with progress on stderr, until it is done or Ctrl-C stops it.
pub fn supervised<T>(
    watcher: Watcher,
    threads: usize,
    work: impl AsyncFnOnce(Arc<dyn Observer>, CancellationToken) -> Result<T, Failure>,
) -> Result<Done<T>, Failure> {
    let watcher = Arc::new(watcher);
    let cancel = CancellationToken::new();
    let told = watcher.clone();
    signals::stop(cancel.clone(), move || {
        told.say("stopping after the splits in flight (at most 10 s); Ctrl-C again stops at once");
    })
    .map_err(|error| Failure::user(format!("signals cannot be watched: {error}")))?;

    let started = Instant::now();
    match runtime::block_on(Some(threads), work(watcher.clone(), cancel)) {
        Ok(value) => Ok(Done { value, watcher, time: started.elapsed() }),
        Err(mut failure) => {
            watcher.end(&json!({ "event": "run_stopped", "seconds": started.elapsed().as_secs_f64() }));
            if let (Some(stage), Exit::User | Exit::Internal) = (watcher.running(), failure.exit) {
                failure.message = format!("stage `{stage}`: {}", failure.message);
            }
            if watcher.work_began() {
                failure.resume = Some(resume_command(std::env::args_os()));
            }
            Err(failure)
        }
    }
}

/// The run directory that is meant when none is named.
pub fn directory(dir: Option<&str>, pipeline: &Pipeline) -> Result<Location, Failure> {
    match dir {
        Some(written) => parse_location(written),
        None => Ok(Path::new("runs").join(&pipeline.name).into()),
    }
}

/// A path or URL of the command line.
pub fn parse_location(written: &str) -> Result<Location, Failure> {
    Ok(Location::parse(written, Path::new(""), &env::cache_dir())?)
}

/// The settings of a whole run.
pub fn settings(engine: &EngineArgs, dir: Option<&str>, pipeline: &Pipeline) -> Result<Settings, Failure> {
    Ok(Settings {
        dir: directory(dir, pipeline)?,
        scratch: env::cache_dir(),
        hub: hub::open(),
        fresh: false,
        until: None,
        max_rows: None,
        threads: engine.threads.map_or_else(runtime::cores, usize::from),
        memory_bytes: engine.memory,
        bytes_in_flight: engine.bytes_in_flight,
        grace: GRACE,
        clock: env::clock()?,
        hosts: Arc::default(),
    })
}

/// The tables, the tests, the summary.
fn end(
    pipeline: &Pipeline,
    settings: &Settings,
    outcome: &Outcome,
    watcher: &Watcher,
    time: Duration,
) -> Result<(), Failure> {
    let passed = outcome.tests.iter().filter(|test| test.failure.is_none()).count();
    let mut summary = format!("{} in {}", counted(outcome.datasets.len() as u64, "dataset"), seconds(time));
    if !outcome.tests.is_empty() {
        summary += &format!("; {passed}/{} tests passed", outcome.tests.len());
    }
    summary += &format!("\nto query it: twinlens sql {}", shell_quote(&settings.dir.to_string()));
    let event = json!({
        "event": "run_finished", "seconds": time.as_secs_f64(), "tests": outcome.tests.len(), "tests_passed": passed,
        "too_many_rejects": outcome.too_many_rejects,
    });
    // The live lines go before the tables come, and the summary stands below them.
    watcher.end(&event);
    print_results(pipeline, outcome)?;
    watcher.print_summary(&summary);
    verdict(pipeline, settings, outcome)
}

fn verdict(pipeline: &Pipeline, settings: &Settings, outcome: &Outcome) -> Result<(), Failure> {
    let failed: Vec<String> = (outcome.tests.iter())
        .filter_map(|test| Some((test, test.failure.as_ref()?)))
        .map(|(test, failure)| {
            format!(
                "the test \"{}\" failed\n  --> {}:{}\n{failure}",
                test.that,
                pipeline.path.display(),
                test.line
            )
        })
        .collect();
    if !failed.is_empty() {
        return Err(Failure::user(failed.join("\n")));
    }
    match &outcome.too_many_rejects[..] {
        [] => Ok(()),
        stages => {
            let share = pipeline.max_reject_share;
            let message = format!(
                "more rows were rejected than max_reject_share = {share} allows: {}",
                stages.join(", ")
            );
            Err(Failure::rejects(message)
                .hint(format!("see why: twinlens status {}", shell_quote(&settings.dir.to_string()))))
        }
    }
}

/// Prints the tables of the `sql` stages that no other stage reads, in the order of the file.
fn print_results(pipeline: &Pipeline, outcome: &Outcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for (index, node) in pipeline.nodes.iter().enumerate() {
        let dataset = outcome.datasets.iter().find(|dataset| dataset.state().begin.stage == node.name);
        if let Some(dataset) = dataset.filter(|_| node.kind == "sql" && !is_read(pipeline, index)) {
            writeln!(out, "\n{}\n", node.name)?;
            print_table(&mut out, dataset)?;
        }
    }
    Ok(out.flush()?)
}

/// Whether another stage reads this one by its name.
fn is_read(pipeline: &Pipeline, index: usize) -> bool {
    let reads =
        |input: &Resolved| !matches!(input, Resolved::System { .. }) && input.nodes().contains(&index);
    pipeline.nodes.iter().any(|node| node.inputs.iter().any(reads))
}

/// The rows in the order in which the query gave them.
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

/// The command that was given, without what must not be repeated.
fn resume_command(given: impl Iterator<Item = OsString>) -> String {
    let words = given.map(|word| word.to_string_lossy().into_owned()).filter(|word| word != "--fresh");
    words.map(|word| shell_quote(&word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell must be given it.
pub fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_goes_on_is_the_one_that_was_given() {
        let given = ["./twinlens", "run", "my pipe.toml", "--fresh", "--set", "where=a = 'b'"];
        let words = given.map(OsString::from);
        assert_eq!(
            resume_command(words.into_iter()),
            r"./twinlens run 'my pipe.toml' --set 'where=a = '\''b'\'''"
        );
    }
}
