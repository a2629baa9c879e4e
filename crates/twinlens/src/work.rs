//! `twinlens work`: makes splits of the run that works in a directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::storage::Location;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::rebuild::Builder;
use twinlens_pipeline::run::workers::{self, Sharing, WorkEvent, Worker};
use twinlens_pipeline::run::{Settings, session};
use twinlens_pipeline::{Clock, Registry};

use crate::cli::{LimitArgs, LogFormat, WorkArgs};
use crate::errors::Failure;
use crate::in_flight::Notes;
use crate::isolation::Isolation;
use crate::scratch::Scratch;
use crate::signals::GRACE;
use crate::text::{counted, printable, shell_quote};
use crate::{env, hub, runtime, secrets, signals};

/// The folder of the workers' scratch folders in the cache.
const WORKERS: &str = "workers";

pub(crate) fn execute(args: &WorkArgs, registry: &Registry) -> Result<(), Failure> {
    let scratch = Scratch::new(&env::cache_dir().join(WORKERS))?;
    let dir = Location::parse(&args.dir, Path::new(""), &scratch.folder)?;
    check_shared(&dir, "workers")?;
    let settings = Settings { dir, ..settings(&args.limits, &scratch) };
    let threads = settings.threads;
    let (cancel, format) = (CancellationToken::new(), args.limits.log_format);
    signals::stop(cancel.clone(), move || {
        say(format, &json!({ "event": "stopping" }), || {
            "stopping after the splits in flight (at most 10 s); Ctrl-C again stops at once".into()
        });
    })
    .map_err(|error| Failure::user(format!("cannot listen for signals: {error}")))?;
    let spill = scratch.subfolder("spill")?;
    let builder = Builder {
        registry,
        settings: &settings,
        env: &env::all(),
        runtime: session::runtime(args.limits.memory, &spill)?,
        observer: Arc::new(Silent),
        learn: secrets::learn,
    };
    let shown = args.dir.clone();
    let on_event = Arc::new(move |event: &WorkEvent| report(format, event, &shown));
    let worker = Worker { builder, idle: args.idle, slots: args.splits.into(), on_event };
    let _isolation = Isolation::begin(args.limits.isolate)?;
    Notes::watch(&scratch.folder);
    let made = runtime::block_on(Some(threads), async { Ok(worker.work(&cancel).await?) })?;
    say(format, &json!({ "event": "work_finished", "splits": made }), || {
        format!("made {}", counted(made, "split"))
    });
    Ok(())
}

/// The settings of a process that makes splits, but for the run directory.
pub(crate) fn settings(limits: &LimitArgs, scratch: &Scratch) -> Settings {
    Settings {
        scratch: scratch.folder.clone(),
        hub: hub::open(),
        threads: limits.threads.map_or_else(runtime::cores, usize::from),
        memory_bytes: limits.memory,
        bytes_in_flight: limits.bytes_in_flight,
        grace: GRACE,
        clock: Clock::System,
        ..Settings::in_folder(&scratch.folder)
    }
}

/// How a run shares its directory, as long as nothing else is said.
pub(crate) fn sharing(settings: &Settings) -> Sharing {
    Sharing {
        dir: settings.dir.clone(),
        lease: Duration::from_secs(30),
        makes_splits: false,
        sharers: settings.sharers.clone(),
        tell: |text| eprintln!("{text}"),
    }
}

/// Refuses a directory that other machines do not see.
pub(crate) fn check_shared(dir: &Location, whom: &str) -> Result<(), Failure> {
    if workers::is_shared(dir) {
        return Ok(());
    }
    let message = format!("{dir} is a directory of this machine, which {whom} elsewhere do not see");
    let absolute = std::path::absolute(dir.local_path()).unwrap_or_else(|_| dir.local_path());
    let shared = shell_quote(&format!("file://{}", absolute.display()));
    Err(Failure::user(message)
        .hint(format!("use an object store (s3://bucket/run), or {shared} if all machines mount it there")))
}

/// Tells the user on stderr what a worker or an executor does; `dir` is that of the run that it
/// waits for.
pub(crate) fn report(format: LogFormat, event: &WorkEvent, dir: &str) {
    match event {
        WorkEvent::Waiting { for_stage } => say(format, &json!({ "event": "waiting" }), || {
            if *for_stage {
                return "waiting: the run does a stage alone, or has been killed".into();
            }
            format!("waiting for a run: twinlens run PIPELINE --dir {} --workers", shell_quote(dir))
        }),
        WorkEvent::Unit { stage, splits } => {
            let event = json!({ "event": "stage_started", "stage": stage, "splits": splits });
            say(format, &event, || format!("{stage}: {} to make", counted(*splits, "split")));
        }
        WorkEvent::Split { stage, label, seconds } => {
            let event = json!({ "event": "split_made", "stage": stage, "label": label, "seconds": seconds });
            say(format, &event, || format!("{stage}: {label} in {seconds:.1} s"));
        }
        WorkEvent::Failed { label, message } => {
            let event = json!({ "event": "split_failed", "label": label, "message": message });
            say(format, &event, || format!("{label} failed: {message}"));
        }
        WorkEvent::Ended => say(format, &json!({ "event": "run_ended" }), || "the run has ended".into()),
        WorkEvent::Idle => {
            say(format, &json!({ "event": "idle" }), || "no work for the time of --idle".into())
        }
    }
}

pub(crate) fn say(format: LogFormat, event: &serde_json::Value, text: impl FnOnce() -> String) {
    match format {
        LogFormat::Json => eprintln!("{}", secrets::hide(&event.to_string())),
        LogFormat::Text => eprintln!("{}", secrets::hide(&printable(&text()))),
    }
}
