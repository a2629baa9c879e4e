//! What a build without clusters says.

use std::time::Duration;

use twinlens_pipeline::Registry;
use twinlens_pipeline::run::Settings;

use crate::cli::{ClusterArgs, ExecutorArgs, SchedulerArgs};
use crate::errors::Failure;

pub(crate) fn scheduler(_: &SchedulerArgs) -> Result<(), Failure> {
    Err(absent())
}

pub(crate) fn executor(_: &ExecutorArgs, _: &Registry) -> Result<(), Failure> {
    Err(absent())
}

pub(crate) fn show(_: &ClusterArgs) -> Result<(), Failure> {
    Err(absent())
}

pub(crate) fn connect(_: Settings, _: &str, _: Duration) -> Result<Settings, Failure> {
    Err(absent())
}

fn absent() -> Failure {
    Failure::user("this program was built without clusters").hint(
        "build it with: cargo build --release --features cluster; without it, several machines share a run \
         by `twinlens run --workers` and `twinlens work`",
    )
}
