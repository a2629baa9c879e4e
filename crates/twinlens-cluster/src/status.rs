//! What a scheduler tells of its cluster: over HTTP, on its one port.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use twinlens_pipeline::run::recipe::Build;

use crate::address::Address;

/// The path of the status.
pub(crate) const PATH: &str = "/twinlens/status";
/// A scheduler that does not answer within this is busy or gone.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Differs between two starts of a scheduler.
    pub scheduler: String,
    /// The build of the scheduler.
    pub build: Build,
    /// Seconds after which an executor that shows no sign of life is lost.
    pub lost_after: f64,
    /// The executors that are alive.
    pub executors: Vec<Executor>,
    /// The splits that executors make now.
    pub in_flight: Vec<SplitInFlight>,
    /// Splits that wait for a free slot.
    pub waiting: usize,
    /// What became of splits since the scheduler started.
    pub ended: Ended,
}

/// An executor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Executor {
    /// Its name: machine, process and a random text.
    pub name: String,
    /// Its address, as the scheduler sees it.
    pub address: String,
    /// Splits that it makes at a time.
    pub slots: usize,
    /// Seconds since its last sign of life.
    pub seen: f64,
    /// Bytes of memory that its process has.
    pub memory: Option<u64>,
}

/// A split that an executor makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitInFlight {
    /// The scheduler's name for this request of the run.
    pub job: String,
    /// The split, as its run describes it.
    pub label: String,
    /// The name of the executor.
    pub executor: String,
    /// From 1; more if executors that made it were lost.
    pub attempt: u32,
}

/// Counts of splits that ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// An executor answered, be it with a failure.
    pub done: u64,
    /// No executor answered.
    pub failed: u64,
    /// The run was stopped.
    pub cancelled: u64,
}

impl ClusterStatus {
    /// Splits that all executors make at a time.
    pub fn slots(&self) -> usize {
        self.executors.iter().map(|executor| executor.slots).sum()
    }
}

/// Why the status could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// Nothing answers.
    #[error("nothing answers at {0}: {1}")]
    NoAnswer(Address, String),
    /// Something else answers.
    #[error("{0} is not a scheduler of twinlens: {1}")]
    Other(Address, String),
}

/// Asks schedulers for their status.
#[derive(Debug, Clone)]
pub struct StatusClient {
    http: reqwest::Client,
    address: Address,
}

impl StatusClient {
    /// Asks this one.
    ///
    /// # Errors
    /// There is no HTTP client.
    pub fn new(address: Address) -> Result<Self, StatusError> {
        twinlens_dataset::tls::provide();
        // The scheduler is in the same private network.
        let built = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        let http = built.map_err(|error| StatusError::NoAnswer(address.clone(), error.to_string()))?;
        Ok(Self { http, address })
    }

    /// The status.
    ///
    /// # Errors
    /// Nothing answers, or something else.
    pub async fn get(&self) -> Result<ClusterStatus, StatusError> {
        let url = format!("{}{PATH}", self.address.http());
        let no_answer =
            |error: reqwest::Error| StatusError::NoAnswer(self.address.clone(), root_cause(&error));
        let answer = self.http.get(url).send().await.map_err(no_answer)?;
        let other = |what: String| StatusError::Other(self.address.clone(), what);
        if !answer.status().is_success() {
            return Err(other(format!("HTTP {}", answer.status())));
        }
        let body = answer.bytes().await.map_err(no_answer)?;
        serde_json::from_slice(&body).map_err(|error| other(error.to_string()))
    }
}

/// The innermost error: `connection refused`, not `error sending request`.
fn root_cause(error: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |cause| cause.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}
