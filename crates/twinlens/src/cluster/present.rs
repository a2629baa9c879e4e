//! The verbs of a build with clusters.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use twinlens_cluster::address::MalformedAddress;
use twinlens_cluster::executor::{ExecutorOptions, Workshop};
use twinlens_cluster::scheduler::SchedulerOptions;
use twinlens_cluster::status::{ClusterStatus, StatusClient};
use twinlens_cluster::{Address, ClusterRun, Connection, Key, seal};
use twinlens_pipeline::run::workers::SharedRun;
use twinlens_pipeline::run::{Settings, session};
use twinlens_pipeline::{Registry, RunError};

use crate::cli::{ClusterArgs, ExecutorArgs, LogFormat, SchedulerArgs};
use crate::errors::Failure;
use crate::in_flight::Notes;
use crate::isolation::Isolation;
use crate::scratch::Scratch;
use crate::table::TableWriter;
use crate::text::{bytes, count, counted};
use crate::work::say;
use crate::{env, runtime, secrets, signals, work};

/// The folder of the executors' scratch folders in the cache.
const EXECUTORS: &str = "executors";

/// The settings of a run whose splits the executors of a scheduler make.
pub(crate) fn connect(settings: Settings, address: &str, patience: Duration) -> Result<Settings, Failure> {
    let connection = Connection {
        address: parse(address)?,
        key: key()?,
        dir: settings.dir.clone(),
        patience,
        tell: |text| eprintln!("{text}"),
    };
    let run = ClusterRun::new(connection, SharedRun::new(work::sharing(&settings)))?;
    Ok(Settings { elsewhere: Some(Arc::new(run)), ..settings })
}

pub(crate) fn scheduler(args: &SchedulerArgs) -> Result<(), Failure> {
    let options =
        SchedulerOptions { bind: args.bind, advertise: args.advertise.clone(), lost_after: args.lost_after };
    let (cancel, format) = (CancellationToken::new(), args.log_format);
    on_signal(&cancel, format, "the scheduler ends; executors wait for the next one")?;
    let ready = |bound: std::net::SocketAddr| {
        say(format, &json!({ "event": "listening", "address": bound.to_string() }), || {
            format!(
                "listening at {bound}; start executors with: twinlens executor df://HOST:{}",
                bound.port()
            )
        });
    };
    let serve = async { Ok(twinlens_cluster::scheduler::serve(options, ready, cancel).await?) };
    runtime::block_on(None, serve)
}

pub(crate) fn executor(args: &ExecutorArgs, registry: &Registry) -> Result<(), Failure> {
    let cache = args.scratch.clone().unwrap_or_else(env::cache_dir);
    let scratch = Scratch::new(&cache.join(EXECUTORS))?;
    let limits = work::settings(&args.limits, &scratch);
    let threads = limits.threads;
    let slots = args.slots.map_or_else(runtime::cores, usize::from);
    // Several splits at a time use the threads that one would use alone.
    let settings = Settings { threads: (threads / slots).max(1), ..limits };
    let options = ExecutorOptions {
        scheduler: parse(&args.scheduler)?,
        bind: args.bind,
        port: args.port,
        advertise: args.advertise.clone(),
        slots,
        results: scratch.subfolder("results")?,
        patience: args.patience,
    };
    let format = args.limits.log_format;
    let workshop = Workshop {
        registry: registry.clone(),
        runtime: session::runtime(settings.memory_bytes, &scratch.subfolder("spill")?)?,
        settings,
        env: env::all(),
        key: key()?,
        learn: secrets::learn,
        hide: |text| secrets::hide(text).into_owned(),
        on_event: Box::new(move |event| work::report(format, event, "")),
    };
    let _isolation = Isolation::begin(args.limits.isolate)?;
    Notes::watch(&scratch.folder);
    let cancel = CancellationToken::new();
    on_signal(&cancel, format, "ending after the splits in flight; Ctrl-C again ends at once")?;
    let tell = |text: &str| say(format, &json!({ "event": "message", "message": text }), || text.into());
    let serve = async { Ok(twinlens_cluster::executor::serve(options, workshop, tell, cancel).await?) };
    let made = runtime::block_on(Some(threads.max(slots)), serve)?;
    say(format, &json!({ "event": "work_finished", "splits": made }), || {
        format!("made {}", counted(made, "split"))
    });
    Ok(())
}

pub(crate) fn show(args: &ClusterArgs) -> Result<(), Failure> {
    let address = parse(&args.scheduler)?;
    let asked = address.clone();
    let status = runtime::block_on(Some(1), async {
        let client = StatusClient::new(asked).map_err(|error| Failure::user(error.to_string()))?;
        client.get().await.map_err(|error| {
            Failure::user(error.to_string()).hint("start a scheduler with: twinlens scheduler")
        })
    })?;
    print(&mut std::io::stdout().lock(), &address, &status)?;
    if status.executors.is_empty() {
        return Err(Failure::user(format!("there are no executors at {address}"))
            .hint(format!("start them with: twinlens executor {address}")));
    }
    Ok(())
}

fn print(mut out: &mut impl Write, address: &Address, status: &ClusterStatus) -> Result<(), Failure> {
    writeln!(out, "scheduler {address}, twinlens {}", status.build.version)?;
    writeln!(
        out,
        "{} with {}; {} in flight, {} waiting; {} done, {} lost, {} cancelled",
        counted(status.executors.len() as u64, "executor"),
        counted(status.slots() as u64, "slot"),
        counted(status.in_flight.len() as u64, "split"),
        count(status.waiting as u64),
        count(status.ended.done),
        count(status.ended.failed),
        count(status.ended.cancelled),
    )?;
    if !status.executors.is_empty() {
        writeln!(out)?;
        let names = ["executor", "address", "slots", "busy", "memory", "seen"];
        let mut table = TableWriter::with_columns(&mut out, &names, &[false, false, true, true, true, true]);
        for executor in &status.executors {
            let busy = status.in_flight.iter().filter(|split| split.executor == executor.name).count();
            table.row(vec![
                executor.name.clone(),
                executor.address.clone(),
                executor.slots.to_string(),
                busy.to_string(),
                executor.memory.map_or_else(|| "-".into(), bytes),
                format!("{:.0} s ago", executor.seen),
            ])?;
        }
        table.finish()?;
    }
    if !status.in_flight.is_empty() {
        writeln!(out)?;
        let mut table =
            TableWriter::with_columns(&mut out, &["split", "executor", "attempt"], &[false, false, true]);
        for split in &status.in_flight {
            table.row(vec![split.label.clone(), split.executor.clone(), split.attempt.to_string()])?;
        }
        table.finish()?;
    }
    Ok(out.flush()?)
}

/// Cancels at the first signal; the second ends the process.
fn on_signal(cancel: &CancellationToken, format: LogFormat, text: &'static str) -> Result<(), Failure> {
    signals::stop(cancel.clone(), move || say(format, &json!({ "event": "stopping" }), || text.into()))
        .map_err(|error| Failure::user(format!("cannot listen for signals: {error}")))
}

fn parse(address: &str) -> Result<Address, Failure> {
    address.parse().map_err(|error: MalformedAddress| Failure::user(error.to_string()))
}

fn key() -> Result<Key, Failure> {
    Key::new(std::env::var(seal::VARIABLE).ok().as_deref()).map_err(|error| {
        Failure::from(RunError::user_with_hint(error.to_string(), "make one with: openssl rand -hex 32"))
    })
}
