//! The arguments of trainings of several ranks.

use std::time::Duration;

use clap::Args;
use twinlens_model::Precision;

use super::values::{RanksMode, duration, positive, precision};

/// Predicts what a training step costs each rank: memory, FLOPs, traffic and time
///
/// The formulas and their sources are in `twinlens help training`. Several numbers of ranks are
/// shown beside each other, for the same batch.
#[derive(Debug, Args)]
pub(crate) struct CostArgs {
    /// Name of the model
    pub name: String,
    /// Pairs per step over all ranks
    #[arg(long, value_name = "N", default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch: u32,
    /// Comma-separated numbers of ranks
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub ranks: Vec<u16>,
    /// Pairs per forward pass [default: all pairs of the rank]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub micro_batch: Option<u32>,
    /// Precision of matrix products
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = precision)]
    pub precision: Precision,
    /// With gradient checkpointing
    #[arg(long)]
    pub recompute: bool,
    /// With the optimiser's moments divided among the ranks
    #[arg(long)]
    pub shard_optimizer: bool,
    /// Achieved (not peak) TFLOP/s of a rank; with --gbps, predicts times
    #[arg(long, value_name = "N", requires = "gbps", value_parser = positive)]
    pub tflops: Option<f64>,
    /// GB/s that a rank sends while it receives as much
    #[arg(long, value_name = "N", requires = "tflops", value_parser = positive)]
    pub gbps: Option<f64>,
    /// GB/s between GPU and host [default with bf16 or f16: 25]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub host_gbps: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct RanksArgs {
    /// Train together with the other processes that a launcher (mpirun, srun, torchrun) started
    /// [default: as the option `ranks` of the stages]
    #[arg(long, value_name = "HOW")]
    pub ranks: Option<RanksMode>,
    /// How long to wait for the other ranks
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub ranks_wait: Duration,
}
