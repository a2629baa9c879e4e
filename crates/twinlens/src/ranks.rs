//! Runs of several processes that train together: how they meet, and what those other than rank 0
//! do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::storage::Location;
use twinlens_mpi::Joined;
use twinlens_pipeline::config::Pipeline;
use twinlens_pipeline::run::events::Silent;
use twinlens_pipeline::run::rebuild::Builder;
use twinlens_pipeline::run::recipe::Build;
use twinlens_pipeline::run::{Settings, rank_jobs, session};
use twinlens_pipeline::{Clock, Ranks, Registry};
use twinlens_ranks::{Launch, Meeting, RankError, Transport};

use crate::cli::{RanksArgs, RanksMode, RunArgs};
use crate::errors::Failure;
use crate::in_flight::Notes;
use crate::isolation::Isolation;
use crate::scratch::Scratch;
use crate::signals::GRACE;
use crate::work::say;
use crate::{env, hub, location, runtime, secrets, signals};

/// The folder of the ranks' scratch folders in the cache.
const RANKS: &str = "ranks";

/// Meets the other ranks, if the command or a stage asks for them.
pub(crate) fn meet(
    args: &RanksArgs,
    pipeline: &Pipeline,
    threads: Option<u16>,
) -> Result<Option<Arc<Ranks>>, Failure> {
    let collective = match transport(args, pipeline)? {
        None | Some(Transport::Threads) => return Ok(None),
        Some(Transport::Tcp) => launch().and_then(|launch| tcp(launch, args.ranks_wait, threads)),
        Some(Transport::Mpi) => launch().and_then(|_| mpi(threads)),
    };
    collective.map(|ranks| Some(Arc::new(ranks))).map_err(rank_failure)
}

fn rank_failure(error: RankError) -> Failure {
    twinlens_pipeline::RunError::from(error).into()
}

/// What the command asks for, or else the stages.
fn transport(args: &RanksArgs, pipeline: &Pipeline) -> Result<Option<Transport>, Failure> {
    if let Some(mode) = args.ranks {
        return Ok(Some(match mode {
            RanksMode::Threads => Transport::Threads,
            RanksMode::Tcp => Transport::Tcp,
            RanksMode::Mpi => Transport::Mpi,
        }));
    }
    let asked = pipeline.nodes.iter().filter_map(|node| Some((&node.name, node.plan.ranks?.transport?)));
    let mut asked = asked.filter(|(_, transport)| *transport != Transport::Threads);
    let Some((stage, first)) = asked.next() else { return Ok(None) };
    match asked.find(|(_, other)| *other != first) {
        None => Ok(Some(first)),
        Some((name, other)) => Err(Failure::user(format!(
            "stage `{stage}` sets `ranks = \"{first}\"`, and stage `{name}` `ranks = \"{other}\"`"
        ))
        .hint("use one of them for all stages, or give `--ranks`")),
    }
}

/// What the launcher says.
fn launch() -> Result<Launch, RankError> {
    Launch::from_env(env::of_launcher)?.ok_or_else(|| {
        RankError::setup(
            "this process was not started as one of several ranks",
            "start it with mpirun, srun or torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for \
             each process; `--ranks threads` does without others",
        )
    })
}

fn tcp(launch: Launch, wait: Duration, threads: Option<u16>) -> Result<Ranks, RankError> {
    let local_rank = launch.local_rank;
    let cores = runtime::cores() / launch.ranks_here().unwrap_or(1);
    let threads = threads.map_or(cores.max(1), usize::from);
    let meeting = Meeting { launch, token: env::ranks_token(), build: build(), wait, shares_memory: true };
    Ok(Ranks::new(Arc::new(meeting.join()?), local_rank, threads))
}

fn mpi(threads: Option<u16>) -> Result<Ranks, RankError> {
    let Joined { ranks, local_rank, local_size } = twinlens_mpi::join(&build())?;
    let threads = threads.map_or((runtime::cores() / local_size).max(1), usize::from);
    Ok(Ranks::new(ranks, local_rank, threads))
}

/// In words, what distinguishes this program from one that may compute other numbers.
fn build() -> String {
    let Build { version, arch } = Build::this();
    let gpu = if cfg!(feature = "cuda") { ", for GPUs" } else { "" };
    format!("twinlens {version} for {arch}{gpu}")
}

/// Does the parts of a rank other than 0, until the run ends.
pub(crate) fn follow(
    args: &RunArgs,
    pipeline: &Pipeline,
    registry: &Registry,
    ranks: &Arc<Ranks>,
) -> Result<(), Failure> {
    let scratch = Scratch::new(&env::cache_dir().join(RANKS))?;
    let dir = match &args.dir {
        Some(dir) => Location::parse(dir, Path::new(""), &scratch.folder)?,
        None => location::run_dir(None, pipeline)?,
    };
    let settings = Settings {
        dir,
        scratch: scratch.folder.clone(),
        hub: hub::open(),
        threads: ranks.threads,
        memory_bytes: args.engine.memory,
        bytes_in_flight: args.engine.bytes_in_flight,
        grace: GRACE,
        clock: Clock::System,
        ranks: Some(ranks.clone()),
        ..Settings::in_folder(&scratch.folder)
    };
    let (cancel, format) = (CancellationToken::new(), args.engine.log_format);
    let (rank, size) = (ranks.rank(), ranks.collective.size());
    signals::stop(cancel.clone(), move || {
        say(format, &json!({ "event": "stopping", "rank": rank }), || {
            format!("rank {rank}: stopping with a checkpoint; Ctrl-C again stops at once")
        });
    })
    .map_err(|error| Failure::user(format!("cannot listen for signals: {error}")))?;
    say(format, &json!({ "event": "following", "rank": rank, "ranks": size }), || {
        format!("rank {rank} of {size} trains with rank 0, which shows the progress")
    });
    let spill = scratch.subfolder("spill")?;
    let builder = Builder {
        registry,
        settings: &settings,
        env: &env::all(),
        runtime: session::runtime(args.engine.memory, &spill)?,
        observer: Arc::new(Silent),
        learn: secrets::learn,
    };
    let _isolation = Isolation::begin(args.engine.isolate || pipeline.isolate)?;
    Notes::watch(&scratch.folder);
    let followed = runtime::block_on(Some(ranks.threads), async {
        Ok(rank_jobs::follow(ranks, &builder, &cancel).await?)
    });
    ranks.collective.close();
    followed
}
