//! An executor: Ballista's, which makes splits and nothing else.

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::executor_server::TERMINATING;
use tokio_util::sync::CancellationToken;
use twinlens_pipeline::RunError;
use twinlens_pipeline::run::recipe::{Build, host_name};

use crate::address::{Address, url_host};
use crate::engine::SplitEngine;
use crate::node::SplitCodec;
use crate::scheduler::MESSAGE;
use crate::seal::VARIABLE;
use crate::status::{ClusterStatus, StatusClient, StatusError};
use crate::units::Units;
pub use crate::units::Workshop;

/// Heartbeats in the time after which an executor is lost.
const BEATS: u64 = 6;
/// Bytes of Ballista's own memory pool per split: one row goes through it.
const POOL: u64 = 16 << 20;
/// How often an executor looks for the scheduler that it waits for.
const LOOK: Duration = Duration::from_millis(500);

/// How an executor runs.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// The scheduler.
    pub scheduler: Address,
    /// Where it listens.
    pub bind: IpAddr,
    /// Its port for results; that for tasks is the next one. 0 for any free ones.
    pub port: u16,
    /// The host by which the scheduler reaches it, if it is not the one that it comes from.
    pub advertise: Option<String>,
    /// Splits that it makes at a time.
    pub slots: usize,
    /// A folder of its own for results that are not fetched yet.
    pub results: PathBuf,
    /// How long it waits for a scheduler.
    pub patience: Duration,
}

/// Makes splits until the process is asked to end, when `cancel` fires too; `tell` gets messages
/// for the user. Gives the number of splits that were made.
///
/// # Errors
/// The scheduler does not answer or is of another build, or this machine fails again and again.
pub async fn serve(
    options: ExecutorOptions,
    workshop: Workshop,
    tell: impl Fn(&str),
    cancel: CancellationToken,
) -> Result<u64, RunError> {
    check_key(&options, &workshop)?;
    let units = Arc::new(Units::new(workshop));
    loop {
        let status = match wait_for_scheduler(&options, &tell, &cancel).await {
            Err(RunError::Interrupted) => return Ok(units.made()),
            other => other?,
        };
        check_build(&options.scheduler, &status.build)?;
        join(&options, &status, &units, &tell).await?;
        // The process and this token get the same signal, in any order.
        if tokio::time::timeout(LOOK, cancel.cancelled()).await.is_ok() {
            return Ok(units.made());
        }
        // Ballista ends an executor whose heartbeats are not answered five times, or which was
        // taken for lost: a scheduler that was away or a machine that slept.
        tell("the connection to the scheduler was lost");
        TERMINATING.store(false, Ordering::Release);
        units.forget();
    }
}

/// Makes splits as an executor of the scheduler, until one of them ends that.
async fn join(
    options: &ExecutorOptions,
    status: &ClusterStatus,
    units: &Arc<Units>,
    tell: &impl Fn(&str),
) -> Result<(), RunError> {
    let config = Arc::new(config(options, status, units.clone())?);
    let (name, slots) = (&config.executor_id, options.slots);
    tell(&format!("{name}: makes {slots} splits at a time for {}", options.scheduler));
    tokio::select! {
        ended = start_executor_process(config.clone()) => ended.map_err(|error| {
            RunError::user_with_hint(
                format!("the executor ended: {error}"),
                format!("is the scheduler at {} reachable, and are the ports free?", options.scheduler),
            )
        }),
        () = units.broken.cancelled() => {
            // The last report is on its way.
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err(RunError::user("this machine failed several splits in a row: the executor ends"))
        }
    }
}

/// Without a key, whoever reaches the port could have programs run.
fn check_key(options: &ExecutorOptions, workshop: &Workshop) -> Result<(), RunError> {
    if workshop.key.is_set() || options.bind.is_loopback() {
        return Ok(());
    }
    Err(RunError::user_with_hint(
        format!("an executor that others reach needs a key: {VARIABLE} is not set"),
        format!(
            "set {VARIABLE} to the same secret for executors and runs (openssl rand -hex 32), \
             or listen at --bind 127.0.0.1"
        ),
    ))
}

async fn wait_for_scheduler(
    options: &ExecutorOptions,
    tell: &impl Fn(&str),
    cancel: &CancellationToken,
) -> Result<ClusterStatus, RunError> {
    let client = StatusClient::new(options.scheduler.clone()).map_err(no_scheduler)?;
    let (started, mut has_told) = (std::time::Instant::now(), false);
    loop {
        match client.get().await {
            Ok(status) => return Ok(status),
            Err(StatusError::NoAnswer(..)) if started.elapsed() < options.patience => {}
            Err(error) => return Err(no_scheduler(error)),
        }
        if !std::mem::replace(&mut has_told, true) {
            tell(&format!("waiting for a scheduler at {} (twinlens scheduler)", options.scheduler));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = cancel.cancelled() => return Err(RunError::Interrupted),
        }
    }
}

/// The error of a user whose scheduler does not answer.
pub(crate) fn no_scheduler(error: StatusError) -> RunError {
    RunError::user_with_hint(error.to_string(), "start one: twinlens scheduler")
}

/// Refuses a scheduler of another build.
pub(crate) fn check_build(address: &Address, other: &Build) -> Result<(), RunError> {
    let own = Build::this();
    if own == *other {
        return Ok(());
    }
    Err(RunError::user_with_hint(
        format!(
            "the scheduler at {address} is twinlens {} on {}, this is {} on {}",
            other.version, other.arch, own.version, own.arch
        ),
        "run the same build on all machines, built with the same --features",
    ))
}

fn config(
    options: &ExecutorOptions,
    status: &ClusterStatus,
    units: Arc<Units>,
) -> Result<ExecutorProcessConfig, RunError> {
    let (port, grpc_port) = ports(options)?;
    let random: u32 = rand_word();
    Ok(ExecutorProcessConfig {
        executor_id: format!("{}-{}-{random:08x}", host_name(), std::process::id()),
        bind_host: url_host(&options.bind.to_string()),
        external_host: options.advertise.clone(),
        port,
        grpc_port,
        scheduler_host: url_host(&options.scheduler.host),
        scheduler_port: options.scheduler.port,
        scheduler_connect_timeout_seconds: 20,
        vcores: options.slots,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir: Some(options.results.display().to_string()),
        grpc_max_decoding_message_size: MESSAGE as u32,
        grpc_max_encoding_message_size: MESSAGE as u32,
        executor_heartbeat_interval_seconds: (status.lost_after as u64 / BEATS).max(1),
        memory_pool_size: Some(POOL * options.slots as u64),
        override_execution_engine: Some(Arc::new(SplitEngine { units })),
        override_physical_codec: Some(Arc::new(SplitCodec::default())),
        ..ExecutorProcessConfig::default()
    })
}

/// Differs between two executors of one process id.
fn rand_word() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u32
}

/// The ports for results and for tasks.
fn ports(options: &ExecutorOptions) -> Result<(u16, u16), RunError> {
    if options.port > 0 {
        return Ok((options.port, options.port + 1));
    }
    // Both are held until both are known.
    let free = || TcpListener::bind((options.bind, 0));
    let free = free().and_then(|one| Ok((one, free()?)));
    let ports = free.and_then(|(one, two)| Ok((one.local_addr()?.port(), two.local_addr()?.port())));
    ports.map_err(|error| RunError::user(format!("cannot listen at {}: {error}", options.bind)))
}
