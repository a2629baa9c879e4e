//! Workers: processes that are kept warm from batch to batch and from split to split.

use std::io::{self, BufReader, BufWriter};
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::StreamWriter;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Receiver, Sender};
use twinlens_pipeline::run::events::Progress;
use twinlens_pipeline::{RunError, blocking};

use super::contract::{Answer, Breach, RowContract};
use super::process::{Process, Program};
use super::wire::{BatchReader, WireError};

/// Workers that no split has used for this long are ended.
const IDLE: Duration = Duration::from_secs(10);
/// How long a failed program may take to exit before it is killed: its exit status says why.
const FAILURE_GRACE: Duration = Duration::from_millis(500);

/// Why a program failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// The last lines of its stderr.
    pub(super) stderr: Vec<String>,
    /// Whether a new process would fail in the same way.
    pub(super) is_final: bool,
}

impl Failure {
    /// The error of a stage that stops; `was_restarted` says that a second process failed.
    pub(super) fn into_error(self, program: &Program, was_restarted: bool) -> RunError {
        let mut message = format!("`{}`: {}", program.shown, self.reason);
        if was_restarted {
            message += ", also after a restart";
        }
        let hint = if self.stderr.is_empty() {
            "it wrote nothing to stderr".to_string()
        } else {
            format!("the last lines that it wrote to stderr:\n{}", self.stderr.join("\n"))
        };
        RunError::user_with_hint(message, hint)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { reason: format!("it cannot be started: {error}"), stderr: Vec::new(), is_final: true }
    }
}

/// A process with a thread that writes to it and one that reads from it, so that two full pipes
/// never wait for each other. Dropping it kills the process.
pub(super) struct Worker {
    process: Process,
    requests: Option<Sender<RecordBatch>>,
    answers: Receiver<Result<RecordBatch, WireError>>,
}

impl Worker {
    /// Starts the program; it is sent batches of `schema`, or nothing.
    pub(super) fn start(
        program: &Program,
        schema: Option<&SchemaRef>,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let (process, stdin, stdout) = program.start(progress)?;
        let (answered, answers) = mpsc::channel(1);
        thread::spawn(move || read(stdout, &answered));
        let requests = schema.map(|schema| {
            let (requests, requested) = mpsc::channel(1);
            let schema = schema.clone();
            // An error of writing is not reported: the end of the answers says more.
            thread::spawn(move || drop(write(stdin, &schema, requested)));
            requests
        });
        Ok(Self { process, requests, answers })
    }

    /// Sends a batch; `false` if the program no longer reads.
    pub(super) async fn send(&self, batch: RecordBatch) -> bool {
        match &self.requests {
            Some(requests) => requests.send(batch).await.is_ok(),
            None => false,
        }
    }

    /// Ends the stream to the program.
    pub(super) fn end_input(&mut self) {
        self.requests = None;
    }

    /// The sender of [`Worker::send`], for use beside [`Worker::answer`].
    pub(super) fn take_sender(&mut self) -> Option<Sender<RecordBatch>> {
        self.requests.take()
    }

    /// The next batch of the program; `None` at the end of its stream.
    pub(super) async fn answer(&mut self) -> Option<Result<RecordBatch, WireError>> {
        self.answers.recv().await
    }

    /// Waits for the exit of a program whose stream has ended; an exit status other than 0 is a
    /// failure.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        let ended = blocking(move || {
            let reason = self.process.finish().err();
            reason.map(|reason| (reason, self.process.last_lines()))
        });
        match ended.await {
            Ok(None) => Ok(()),
            Ok(Some((reason, stderr))) => Err(Failure { reason, stderr, is_final: false }),
            Err(error) => Err(Failure { reason: error.to_string(), stderr: Vec::new(), is_final: true }),
        }
    }

    /// Kills the program for `reason`, to which its exit status is added if it has exited by
    /// itself.
    pub(super) async fn fail(mut self, reason: String, is_final: bool) -> Failure {
        let failed = reason.clone();
        let ended = blocking(move || {
            let status = if is_final { None } else { self.process.exit_within(FAILURE_GRACE) };
            self.process.kill();
            let reason = status.map_or(reason.clone(), |status| format!("{status} ({reason})"));
            Failure { reason, stderr: self.process.last_lines(), is_final }
        });
        ended.await.unwrap_or(Failure { reason: failed, stderr: Vec::new(), is_final })
    }

    /// Lets an idle program end by itself.
    fn retire(mut self) {
        self.end_input();
        self.process.retire();
    }
}

fn write(
    stdin: ChildStdin,
    schema: &SchemaRef,
    mut batches: Receiver<RecordBatch>,
) -> Result<(), ArrowError> {
    let mut writer = StreamWriter::try_new(BufWriter::with_capacity(1 << 16, stdin), schema)?;
    writer.flush()?;
    while let Some(batch) = batches.blocking_recv() {
        writer.write(&batch)?;
        writer.flush()?;
    }
    writer.finish()
}

fn read(stdout: ChildStdout, batches: &Sender<Result<RecordBatch, WireError>>) {
    let mut reader = BatchReader::new(BufReader::with_capacity(1 << 16, stdout));
    while let Some(batch) = reader.next().transpose() {
        let failed = batch.is_err();
        if batches.blocking_send(batch).is_err() || failed {
            return;
        }
    }
}

/// The workers of a stage.
pub(super) struct Pool {
    pub(super) program: Program,
    /// Of the batches that are sent.
    pub(super) schema: SchemaRef,
    /// How long the answer to a batch may take.
    pub(super) timeout: Duration,
    pub(super) size: usize,
    slots: Semaphore,
    idle: Mutex<Vec<Worker>>,
    leases: AtomicUsize,
    pub(super) progress: Progress,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} x {})", self.size, self.program.shown)
    }
}

impl Pool {
    pub(super) fn new(
        program: Program,
        schema: SchemaRef,
        timeout: Duration,
        size: usize,
        progress: Progress,
    ) -> Self {
        Self {
            program,
            schema,
            timeout,
            size,
            slots: Semaphore::new(size),
            idle: Mutex::default(),
            leases: AtomicUsize::new(0),
            progress,
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checked answer to a batch, from the next free worker. One that fails is killed.
    pub(super) async fn exchange(
        &self,
        batch: &RecordBatch,
        contract: &RowContract,
    ) -> Result<Answer, Failure> {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let warm = self.idle().pop();
        let mut worker = match warm {
            Some(worker) => worker,
            None => Worker::start(&self.program, Some(&self.schema), &self.progress)?,
        };
        worker.send(batch.clone()).await;
        let answer = match tokio::time::timeout(self.timeout, worker.answer()).await {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(error))) => return Err(worker.fail(error.to_string(), false).await),
            Ok(None) => {
                return Err(worker.fail("its answers ended before its input did".into(), false).await);
            }
            Err(_) => {
                let (rows, limit) = (batch.num_rows(), self.timeout.as_secs_f64());
                let reason = format!("it did not answer a batch of {rows} rows within {limit} s");
                return Err(worker.fail(reason, false).await);
            }
        };
        let checked = contract.check(batch, answer);
        match checked {
            // A batch that nobody asked for would be taken for the answer to the next one.
            Ok(_) if !worker.answers.is_empty() => {
                Err(worker.fail("it answered one batch with several".into(), false).await)
            }
            Ok(answer) => {
                self.idle().push(worker);
                Ok(answer)
            }
            Err(breach) => {
                let is_final = !matches!(breach, Breach::Rows(_));
                Err(worker.fail(breach.to_string(), is_final).await)
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.idle().drain(..).for_each(Worker::retire);
    }
}

/// A split's use of the pool.
#[derive(Debug)]
pub(super) struct Lease(Arc<Pool>);

impl Lease {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        pool.leases.fetch_add(1, Ordering::SeqCst);
        Self(pool)
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.leases.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let pool = Arc::downgrade(&self.0);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(IDLE).await;
                if let Some(pool) = pool.upgrade().filter(|pool| pool.leases.load(Ordering::SeqCst) == 0) {
                    pool.idle().drain(..).for_each(Worker::retire);
                }
            });
        }
    }
}
