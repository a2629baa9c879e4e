//! The scheduler: Ballista's, which knows our node, with a page that tells what the cluster does.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use ballista_core::JobId;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::error::BallistaError;
use ballista_core::flight_proxy_service::BallistaFlightProxyService;
use ballista_core::serde::protobuf::executor_metric::Metric;
use ballista_core::serde::protobuf::executor_status;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_core::serde::{BallistaCodec, BallistaLogicalExtensionCodec};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::{SchedulerConfig, TaskDistributionPolicy};
use ballista_scheduler::metrics::SchedulerMetricsCollector;
use ballista_scheduler::scheduler_server::SchedulerServer;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use twinlens_pipeline::RunError;
use twinlens_pipeline::run::recipe::Build;

use crate::address::{own_host, url_host};
use crate::node::SplitCodec;
use crate::status::{ClusterStatus, Ended, Executor, PATH, SplitInFlight};

/// Bytes of a message: a request is a pipeline file and a little more.
pub(crate) const MESSAGE: usize = 64 << 20;
/// Seconds for which the result of a split is kept. A run fetches it within milliseconds; one that
/// comes too late finds the record of the split in the run directory.
const RESULT_KEPT: u64 = 60;
/// Seconds that an executor which was asked to end has for the splits in flight, before others make
/// them: less than the 30 that Kubernetes gives a pod.
const DRAINED: u64 = 20;
/// Heartbeats are counted in whole seconds.
const SLACK: Duration = Duration::from_secs(1);
/// The run decides how long it waits for executors, not Ballista.
const NO_EXECUTORS: u64 = 7 * 24 * 3600;

/// How a scheduler runs.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Where it listens; with port 0, at any free one.
    pub bind: SocketAddr,
    /// The host by which executors reach it, if it is not the address of this machine.
    pub advertise: Option<String>,
    /// An executor that shows no sign of life for so long is lost.
    pub lost_after: Duration,
}

type Server = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// Schedules until `cancel` fires. `on_ready` is told where it listens.
///
/// # Errors
/// The port is taken.
pub async fn serve(
    options: SchedulerOptions,
    on_ready: impl FnOnce(SocketAddr),
    cancel: CancellationToken,
) -> Result<(), RunError> {
    let cannot = |error: std::io::Error| {
        RunError::user_with_hint(
            format!("cannot listen at {}: {error}", options.bind),
            "choose another port with --bind",
        )
    };
    let listener = TcpListener::bind(options.bind).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?;
    let counts = Arc::new(Counts::default());
    let config = Arc::new(config(&options, bound));
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(internal)?;
    let codec = BallistaCodec::new(
        Arc::new(BallistaLogicalExtensionCodec::default()),
        Arc::new(SplitCodec::default()),
    );
    let endpoint = config.scheduler_endpoint();
    let mut server = Server::new(endpoint, cluster, codec, config, counts.clone());
    server.init().await.map_err(internal)?;
    let pages = Pages { server: server.clone(), counts, lost_after: options.lost_after };
    on_ready(bound);
    let services = routes(server, pages).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, services).into_future();
    tokio::select! {
        ended = served => ended.map_err(cannot),
        () = cancel.cancelled() => Ok(()),
    }
}

fn config(options: &SchedulerOptions, bound: SocketAddr) -> SchedulerConfig {
    let own = || if bound.ip().is_unspecified() { own_host() } else { bound.ip().to_string() };
    let host = options.advertise.clone().unwrap_or_else(own);
    let lost_after = options.lost_after.as_secs().max(1);
    SchedulerConfig {
        external_host: url_host(&host),
        bind_host: bound.ip().to_string(),
        bind_port: bound.port(),
        scheduling_policy: TaskSchedulingPolicy::PushStaged,
        // Bias would fill one executor before it uses the next.
        task_distribution: TaskDistributionPolicy::RoundRobin,
        executor_timeout_seconds: lost_after,
        expire_dead_executor_interval_seconds: (lost_after / 4).max(1),
        executor_termination_grace_period: DRAINED,
        no_executors_grace_period_seconds: NO_EXECUTORS,
        finished_job_data_clean_up_interval_seconds: RESULT_KEPT,
        finished_job_state_clean_up_interval_seconds: RESULT_KEPT,
        enable_embedded_flight_proxy: true,
        grpc_server_max_decoding_message_size: MESSAGE as u32,
        grpc_server_max_encoding_message_size: MESSAGE as u32,
        grpc_client_max_message_size: MESSAGE as u32,
        ..SchedulerConfig::default()
    }
}

/// The services of the one port: jobs, results (so that a run need not reach executors), status.
fn routes(server: Server, pages: Pages) -> Router {
    let mut services = RoutesBuilder::default();
    let jobs = SchedulerGrpcServer::new(server);
    services.add_service(jobs.max_decoding_message_size(MESSAGE).max_encoding_message_size(MESSAGE));
    let results = BallistaFlightProxyService::new(MESSAGE, MESSAGE, false, None);
    services.add_service(FlightServiceServer::new(results));
    let page = get(move || async move {
        match pages.status().await {
            Ok(status) => Ok(serde_json::to_string(&status).unwrap_or_default()),
            Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    });
    services.routes().into_axum_router().route(PATH, page)
}

/// What the status is made of.
#[derive(Clone)]
struct Pages {
    server: Server,
    counts: Arc<Counts>,
    lost_after: Duration,
}

impl Pages {
    /// Whether an executor takes splits: one that ends does not.
    fn is_active(&self, executor: &str) -> bool {
        let heartbeat = self.server.state.executor_manager.get_executor_hearbeat(executor);
        let status = heartbeat.and_then(|heartbeat| heartbeat.status?.status);
        matches!(status, None | Some(executor_status::Status::Active(_)))
    }

    async fn status(&self) -> Result<ClusterStatus, BallistaError> {
        let state = &self.server.state;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut executors = Vec::new();
        for (executor, seen, metrics) in state.executor_manager.get_executors_state().await? {
            let seen = seen.map_or(Duration::ZERO, |seen| now.saturating_sub(seen));
            // A lost one stays registered until it is found out.
            if !self.is_active(&executor.id) || seen > self.lost_after + SLACK {
                continue;
            }
            let memory = metrics.iter().find_map(|metric| match metric.metric {
                Some(Metric::ProcPhysicalMemory(bytes)) => Some(bytes),
                _ => None,
            });
            executors.push(Executor {
                name: executor.id,
                address: executor.host,
                slots: executor.specification.vcores as usize,
                seen: seen.as_secs_f64(),
                memory,
            });
        }
        executors.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut in_flight, mut waiting) = (Vec::new(), self.server.pending_job_number());
        for job in state.task_manager.get_running_job_cache().values() {
            let graph = job.execution_graph.read().await;
            let tasks = graph.running_tasks();
            waiting += usize::from(tasks.is_empty());
            in_flight.extend(tasks.into_iter().map(|task| SplitInFlight {
                job: task.job_id.as_str().into(),
                label: graph.job_name().to_string(),
                executor: task.executor_id,
                attempt: u32::try_from(task.task_id).unwrap_or(u32::MAX).saturating_add(1),
            }));
        }
        in_flight.sort_by(|a, b| a.label.cmp(&b.label));
        Ok(ClusterStatus {
            scheduler: self.server.scheduler_id.clone(),
            build: Build::this(),
            lost_after: self.lost_after.as_secs_f64(),
            executors,
            in_flight,
            waiting,
            ended: self.counts.ended(),
        })
    }
}

/// Jobs that ended.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
}

impl Counts {
    fn ended(&self) -> Ended {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ended { done: count(&self.done), failed: count(&self.failed), cancelled: count(&self.cancelled) }
    }
}

impl SchedulerMetricsCollector for Counts {
    fn record_submitted(&self, _: &JobId, _: u64, _: u64) {}

    fn record_completed(&self, _: &JobId, _: u64, _: u64) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn record_failed(&self, _: &JobId, _: u64, _: u64) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn record_cancelled(&self, _: &JobId) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    fn set_pending_tasks_queue_size(&self, _: u64) {}

    fn gather_metrics(&self) -> Result<Option<(Vec<u8>, String)>, BallistaError> {
        Ok(None)
    }
}

fn internal(error: BallistaError) -> RunError {
    RunError::Internal(format!("Ballista: {error}"))
}
