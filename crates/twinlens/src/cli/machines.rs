//! Arguments of runs on several machines.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{LogFormat, duration, size};

#[derive(Debug, Args)]
pub(crate) struct SharingArgs {
    /// Share the splits with `twinlens work` processes. --dir must be an object store, or
    /// file:///DIR in a file system that all machines mount
    #[arg(long)]
    pub workers: bool,
    /// As --workers, but this process makes no splits itself
    #[arg(long)]
    pub workers_only: bool,
    /// A worker that shows no sign of life for so long is taken for dead
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub lease: Duration,
    /// Have the executors of a scheduler make the splits: df://HOST:PORT [default: TWINLENS_ON, or
    /// `on` in the table `cluster` of the pipeline file]
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["workers", "workers_only"])]
    pub on: Option<String>,
    /// How long to wait for a scheduler that does not answer, and for executors
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub patience: Duration,
}

/// Makes splits of a run that was started with --workers
///
/// Start it on any number of machines, before or after the run. It finds the pipeline in the run
/// directory, and needs no connection to the run. Inputs that the pipeline names must be in an
/// object store, or in the same place on all machines. It ends when the run does.
#[derive(Debug, Args)]
pub(crate) struct WorkArgs {
    /// The run directory: its URL in an object store, or file:///DIR in a shared file system
    pub dir: String,
    /// End when there has been no work for so long
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub idle: Duration,
    /// Splits to make at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub splits: u16,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Gives the splits of runs to executors
///
/// Needs a build with the feature `cluster`. Executors and runs connect to it; it connects to
/// executors. Its port must be reachable from a private network only.
#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 50050))]
    pub bind: SocketAddr,
    /// The host by which executors reach it [default: the address of this machine]
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// An executor that shows no sign of life for so long is lost, and its splits are made again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub lost_after: Duration,
    /// Format of messages on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Makes splits of the runs of a scheduler
///
/// Needs a build with the feature `cluster`. Start any number of them, on any machine that reaches
/// the scheduler. It runs programs of `command` stages, and therefore only what is sealed by its
/// own TWINLENS_CLUSTER_KEY, which must be set unless it listens at 127.0.0.1. It ends with SIGTERM
/// or Ctrl-C after the splits in flight.
#[derive(Debug, Args)]
pub(crate) struct ExecutorArgs {
    /// The scheduler: df://HOST:PORT
    pub scheduler: String,
    /// Splits to make at a time [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub slots: Option<u16>,
    /// Folder for copies, unfinished files and spilled rows [default: ~/.cache/twinlens]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Where to listen
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind: IpAddr,
    /// The port for results; the next one is for tasks [default: any free ones]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// The host by which the scheduler reaches it [default: where its connection comes from]
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// How long to wait for a scheduler that does not answer
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub patience: Duration,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// Shows executors, and the splits that they make
///
/// Needs a build with the feature `cluster`. The exit code is 1 if no executor has joined.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// The scheduler: df://HOST:PORT
    pub scheduler: String,
}

/// What a process that makes splits may use.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory limit of the query engine, beyond which it spills to disk
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub memory: usize,
    /// Memory limit of fetching and decoding, in addition to --memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub bytes_in_flight: usize,
    /// Decode images in processes that can do nothing else
    #[arg(long)]
    pub isolate: bool,
    /// Format of messages on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}
