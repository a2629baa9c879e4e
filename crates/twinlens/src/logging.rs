//! Log messages on stderr: spans and events of all crates, filtered by `TWINLENS_LOG`.

use std::any::Any;
use std::fmt;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::common::runtime::{JoinSetTracer, set_join_set_tracer};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Instrument, Span, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::LogFormat;
use crate::env::{self, TWINLENS_LOG};
use crate::errors::Failure;
use crate::progress::bars;
use crate::secrets;

/// Starts logging if the variable is set.
///
/// # Errors
/// The filter is malformed.
pub(crate) fn init(format: LogFormat) -> Result<(), Failure> {
    let Some(text) = env::log_filter() else { return Ok(()) };
    let filter = EnvFilter::builder().parse(&text).map_err(|error| {
        Failure::user(format!("{TWINLENS_LOG}={text}: {error}"))
            .hint("expected a filter such as `debug` or `twinlens_crawl=debug,info`")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveProgress);
    let started = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.with_ansi(false).event_format(JsonLines).try_init(),
    };
    started.map_err(|error| Failure::internal(error.to_string()))?;
    // Only fails if it is already set, which does no harm.
    let _ = set_join_set_tracer(&CurrentSpan);
    Ok(())
}

/// One JSON object per event, like the other messages of `--log-format json`.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        cx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = cx.event_scope().into_iter().flat_map(|scope| scope.from_root());
        let spans = scope.map(|span| {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.as_str());
            json!({ "name": span.name(), "fields": fields })
        });
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let object = json!({
            "event": "log", "level": event.metadata().level().as_str(), "target": event.metadata().target(),
            "fields": fields.0, "spans": spans.collect::<Vec<Value>>(), "time": time,
        });
        writeln!(writer, "{object}")
    }
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
}

/// Writes to stderr above the progress lines.
struct AboveProgress;

impl Write for AboveProgress {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // A whole line at a time.
        let line = String::from_utf8_lossy(text);
        let line = secrets::hide(&line);
        bars().suspend(|| io::stderr().lock().write_all(line.as_bytes())).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets DataFusion's tasks inherit the span of the stage and split.
struct CurrentSpan;

type Output = Box<dyn Any + Send>;

impl JoinSetTracer for CurrentSpan {
    fn trace_future(&self, future: BoxFuture<'static, Output>) -> BoxFuture<'static, Output> {
        future.in_current_span().boxed()
    }

    fn trace_block(&self, work: Box<dyn FnOnce() -> Output + Send>) -> Box<dyn FnOnce() -> Output + Send> {
        let span = Span::current();
        Box::new(move || span.in_scope(work))
    }
}
