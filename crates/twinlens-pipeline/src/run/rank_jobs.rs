//! Jobs that several processes do together, as ranks that a launcher started.
//!
//! Rank 0 runs the pipeline. The others wait until a job begins that ranks can share; then they
//! build the same stage from the text of the same file, compare it with what rank 0 has, and do
//! their part of the job. Only rank 0 writes to the run directory.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;
use twinlens_dataset::blocking;
use twinlens_ranks::RankError;

use crate::context::Inputs;
use crate::error::{INTERRUPTED, RunError};
use crate::ranks::Ranks;
use crate::run::rebuild::Builder;
use crate::run::recipe::UnitRecipe;
use crate::run::splits::Prepared;
use crate::stage::Work;

/// How often rank 0 looks whether the others are alive while they wait for a job.
const CHECK: Duration = Duration::from_secs(1);

/// What rank 0 tells the others.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// To do their part of a job.
    Job(Box<UnitRecipe>),
    /// That the run has ended, with its exit code.
    End { code: u8, message: String },
}

/// What a rank says when it has built a job.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Why it cannot take part, and what to do.
    problem: Option<(String, Option<String>)>,
    /// The fingerprints of its inputs.
    inputs: Vec<String>,
}

/// On rank 0: has the others build a job. They are in it until the guard is dropped.
pub(super) async fn begin<'a>(
    ranks: &'a Ranks,
    recipe: UnitRecipe,
    inputs: &Inputs,
) -> Result<MutexGuard<'a, ()>, RunError> {
    let guard = ranks.begin_job().await;
    let stage = recipe.stage().to_string();
    send(ranks, &Order::Job(Box::new(recipe))).await?;
    let own = Answer { problem: None, inputs: fingerprints(inputs) };
    for (rank, answer) in exchange(ranks, &own).await?.into_iter().enumerate() {
        if let Some((message, hint)) = answer.problem {
            return Err(RunError::User { message: format!("rank {rank}: {message}"), hint });
        }
        if answer.inputs != own.inputs {
            return Err(RunError::user_with_hint(
                format!("rank {rank} reads other inputs of stage `{stage}` than rank 0"),
                "all ranks must see the same run directory, on a file system or an object store that they share",
            ));
        }
    }
    Ok(guard)
}

async fn send(ranks: &Ranks, order: &Order) -> Result<(), RunError> {
    let (mut text, collective) = (to_json(order)?, ranks.collective.clone());
    let send = move || {
        collective.wake()?;
        collective.broadcast_bytes(&mut text)
    };
    Ok(blocking(send).await??)
}

async fn receive(ranks: &Ranks) -> Result<Order, RunError> {
    let collective = ranks.collective.clone();
    let receive = move || {
        let mut text = Vec::new();
        collective.sleep()?;
        collective.broadcast_bytes(&mut text)?;
        Ok::<_, RankError>(text)
    };
    from_json(&blocking(receive).await??)
}

/// The answers of all ranks.
async fn exchange(ranks: &Ranks, own: &Answer) -> Result<Vec<Answer>, RunError> {
    let (text, collective) = (to_json(own)?, ranks.collective.clone());
    let all = blocking(move || collective.all_gather_bytes(&text)).await??;
    all.iter().map(|text| from_json(text)).collect()
}

/// On rank 0: ends when another rank is gone that waits for a job, with the error.
pub(super) async fn lost(ranks: &Ranks) -> RunError {
    loop {
        tokio::time::sleep(CHECK).await;
        // In a job, each operation notices it.
        let Ok(_guard) = ranks.try_begin_job() else { continue };
        let collective = ranks.collective.clone();
        match blocking(move || collective.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(panicked) => return panicked.into(),
        }
    }
}

/// On rank 0: tells the others, which wait for a job, how the run has ended. (A rank whose job
/// fails calls [`Ranks::abort`].)
///
/// # Errors
/// The run has succeeded, but one of them is gone.
pub async fn end(ranks: &Ranks, outcome: Result<(), &RunError>) -> Result<(), RunError> {
    let order = match outcome {
        Ok(()) => Order::End { code: 0, message: String::new() },
        Err(error) => Order::End { code: error.exit_code(), message: error.to_string() },
    };
    let told = send(ranks, &order).await;
    // Who cannot be told of a failure sees that the connection is closed.
    if outcome.is_ok() { told } else { Ok(()) }
}

/// On the other ranks: does their parts of jobs until the run ends.
///
/// # Errors
/// This process cannot do its part, or another rank ended; `Interrupted` after a clean checkpoint.
pub async fn follow(
    ranks: &Ranks,
    builder: &Builder<'_>,
    cancel: &CancellationToken,
) -> Result<(), RunError> {
    let mut was_stopped = false;
    loop {
        let interrupted = async {
            if was_stopped {
                // Rank 0 has written a checkpoint, and is about to tell everyone that it ends.
                std::future::pending().await
            } else {
                cancel.cancelled().await
            }
        };
        let order = tokio::select! {
            order = receive(ranks) => order?,
            () = interrupted => {
                let ranks = ranks.collective.clone();
                blocking(move || ranks.abort(INTERRUPTED, "interrupted")).await?;
                return Err(RunError::Interrupted);
            }
        };
        let recipe = match order {
            Order::Job(recipe) => recipe,
            Order::End { code: 0, .. } => return Ok(()),
            Order::End { code: INTERRUPTED, .. } => return Err(RunError::Interrupted),
            Order::End { message, .. } => return Err(RunError::user(format!("rank 0: {message}"))),
        };
        match follow_job(ranks, builder, &recipe, cancel).await {
            Err(RunError::Interrupted) => was_stopped = true,
            done => done?,
        }
    }
}

async fn follow_job(
    ranks: &Ranks,
    builder: &Builder<'_>,
    recipe: &UnitRecipe,
    cancel: &CancellationToken,
) -> Result<(), RunError> {
    let prepared = builder.prepare(recipe, cancel).await;
    let own = match prepared.as_ref().map(Prepared::head) {
        Ok(Ok(head)) => Answer { problem: None, inputs: fingerprints(&head.inputs) },
        Ok(Err(error)) => Answer::problem(&error),
        Err(error) => Answer::problem(error),
    };
    let answers = exchange(ranks, &own).await?;
    let prepared = prepared?;
    let head = prepared.head()?;
    if answers.iter().any(|answer| answer.problem.is_some() || answer.inputs != answers[0].inputs) {
        // Rank 0 says why.
        return Ok(());
    }
    match &head.node.work {
        Work::Job(job) => job.follow(&head.cx, &head.inputs).await,
        _ => Err(RunError::Internal(format!("`{}` is not a job of several ranks", head.node.name))),
    }
}

impl Answer {
    fn problem(error: &RunError) -> Self {
        let problem = match error {
            RunError::User { message, hint } => (message.clone(), hint.clone()),
            other => (other.to_string(), None),
        };
        Self { problem: Some(problem), inputs: Vec::new() }
    }
}

fn fingerprints(inputs: &Inputs) -> Vec<String> {
    let datasets = inputs.all().iter().flat_map(|input| input.datasets());
    datasets.map(|dataset| dataset.state().begin.fingerprint.clone()).collect()
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, RunError> {
    serde_json::to_vec(value).map_err(|error| RunError::Internal(format!("a message to ranks: {error}")))
}

fn from_json<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, RunError> {
    serde_json::from_slice(text)
        .map_err(|error| RunError::Internal(format!("a message of another rank: {error}")))
}
