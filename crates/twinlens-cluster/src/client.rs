//! A run's connection to the scheduler: one job per split.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ballista_core::client::BallistaClient;
use ballista_core::config::{BALLISTA_JOB_NAME, BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK};
use ballista_core::serde::protobuf::execute_query_params::Query;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelJobParams, ExecuteQueryParams, GetJobStatusParams, KeyValuePair, PartitionLocation,
    execute_query_result, job_status,
};
use ballista_core::version;
use futures::StreamExt;
use futures::future::join_all;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::address::{Address, url_host};
use crate::node::report_of;
use crate::scheduler::MESSAGE;
use crate::watch::{JobEnd, SplitWatch};

/// How long a call to the scheduler may take.
const CALL: Duration = Duration::from_secs(20);
/// How long a scheduler may not know a job that it accepted.
const UNKNOWN: Duration = Duration::from_secs(10);
/// The bounds of the time between two looks at a job, and its share of the job's age.
const LOOK: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(1));
const LOOK_SHARE: u32 = 10;

/// A connection that is made again when it breaks.
pub(crate) struct Scheduler {
    address: Address,
    endpoint: Endpoint,
    /// Made by the first call, since it needs the runtime.
    jobs: OnceLock<SchedulerGrpcClient<Channel>>,
    session: String,
    /// Jobs that have not ended.
    open: Mutex<BTreeSet<String>>,
    results: tokio::sync::Mutex<Option<BallistaClient>>,
}

impl Scheduler {
    pub(crate) fn new(address: Address, session: String) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(address.http())?;
        let endpoint = endpoint.connect_timeout(CALL).timeout(CALL).tcp_nodelay(true);
        let (jobs, open, results) = Default::default();
        Ok(Self { address, endpoint, jobs, session, open, results })
    }

    fn jobs(&self) -> SchedulerGrpcClient<Channel> {
        let connect = || {
            let jobs = SchedulerGrpcClient::new(self.endpoint.connect_lazy());
            jobs.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE)
        };
        self.jobs.get_or_init(connect).clone()
    }

    /// Runs the plan of a split under a name.
    pub(crate) async fn run(&self, plan: Vec<u8>, name: &str, watch: &mut SplitWatch<'_>) -> JobEnd {
        let job = match self.submit(plan, name).await {
            Ok(job) => job,
            Err(end) => return end,
        };
        self.open().insert(job.clone());
        let end = self.wait(&job, watch).await;
        self.open().remove(&job);
        end
    }

    async fn submit(&self, plan: Vec<u8>, name: &str) -> Result<String, JobEnd> {
        let setting = |key: &str, value: &str| KeyValuePair { key: key.into(), value: Some(value.into()) };
        let mut request = Request::new(ExecuteQueryParams {
            session_id: self.session.clone(),
            settings: vec![
                setting(BALLISTA_JOB_NAME, name),
                setting(BALLISTA_SCHEDULER_MAX_PARTITIONS_PER_TASK, "1"),
            ],
            operation_id: name.into(),
            query: Some(Query::PhysicalPlan(plan)),
        });
        version::insert_version_header(request.metadata_mut());
        // `execute_query_push` would tell the job's id only with its first status: too late to
        // cancel it.
        let answer = self.jobs().execute_query(request).await.map_err(|status| failed_call(&status))?;
        match answer.into_inner().result {
            Some(execute_query_result::Result::Success(job)) => Ok(job.job_id),
            Some(execute_query_result::Result::Failure(failure)) => {
                Err(JobEnd::Refused(format!("{failure:?}")))
            }
            None => Err(JobEnd::lost("the scheduler gave no answer")),
        }
    }

    async fn wait(&self, job: &str, watch: &mut SplitWatch<'_>) -> JobEnd {
        let (started, mut known) = (Instant::now(), Instant::now());
        loop {
            tokio::time::sleep((started.elapsed() / LOOK_SHARE).clamp(LOOK.0, LOOK.1)).await;
            if let Some(end) = watch.ended(job).await {
                self.cancel(job.into()).await;
                return end;
            }
            let params = GetJobStatusParams { job_id: job.into() };
            let status = match self.jobs().get_job_status(params).await {
                Ok(status) => status.into_inner().status.and_then(|status| status.status),
                Err(status) => return failed_call(&status),
            };
            match status {
                Some(job_status::Status::Successful(mut done)) => {
                    let Some(result) = done.partition_location.pop() else {
                        return JobEnd::lost("it has no result");
                    };
                    return match self.fetch(result).await {
                        Ok(report) => JobEnd::Report(report),
                        Err(why) => JobEnd::lost(format!("its result cannot be fetched: {why}")),
                    };
                }
                Some(job_status::Status::Failed(failed)) => return JobEnd::lost(failed.error),
                Some(job_status::Status::Queued(_) | job_status::Status::Running(_)) => {
                    known = Instant::now();
                }
                None if known.elapsed() > UNKNOWN => {
                    return JobEnd::lost("the scheduler does not know it");
                }
                None => {}
            }
        }
    }

    /// Fetches the row of a result, through the scheduler.
    async fn fetch(&self, result: PartitionLocation) -> Result<Vec<u8>, String> {
        let layout = result.layout();
        let (Some(executor), Some(partition)) = (result.executor_meta, result.partition_id) else {
            return Err("it has no place".into());
        };
        let mut client = self.results().await?;
        let port = u16::try_from(executor.port).map_err(|error| error.to_string())?;
        let partition = partition.into();
        let fetched = client.fetch_partition_proxied(
            &executor.id,
            &partition,
            result.file_id,
            layout,
            &executor.host,
            port,
            true,
        );
        let rows = async {
            let mut rows = fetched.await.map_err(|error| error.to_string())?;
            let row = rows.next().await.ok_or("no row")?.map_err(|error| error.to_string())?;
            report_of(&row).map(<[u8]>::to_vec).ok_or_else(|| "no report".to_string())
        };
        let row = tokio::time::timeout(CALL, rows).await.map_err(|_| "it takes too long".to_string())?;
        if row.is_err() {
            // The connection may be broken.
            *self.results.lock().await = None;
        }
        row
    }

    async fn results(&self) -> Result<BallistaClient, String> {
        let mut results = self.results.lock().await;
        if let Some(client) = &*results {
            return Ok(client.clone());
        }
        let host = url_host(&self.address.host);
        let client = BallistaClient::try_new(&host, self.address.port, MESSAGE, false, None, 1, 100, 0, 0);
        let client = client.await.map_err(|error| error.to_string())?;
        Ok(results.insert(client).clone())
    }

    /// Cancels the jobs that have not ended.
    pub(crate) async fn cancel_all(&self) {
        let open = std::mem::take(&mut *self.open());
        join_all(open.into_iter().map(|job| self.cancel(job))).await;
    }

    async fn cancel(&self, job_id: String) {
        // Executors end what is not cancelled, and it is recorded: nothing is lost.
        let _ = self.jobs().cancel_job(CancelJobParams { job_id }).await;
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed_call(status: &Status) -> JobEnd {
    let message = status.message().to_string();
    match status.code() {
        Code::FailedPrecondition | Code::InvalidArgument | Code::Unimplemented => JobEnd::Refused(message),
        _ => JobEnd::Unreachable(message),
    }
}
