//! Prometheus metrics of a run, in the text format 0.0.4.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::recorder::{Recorder, Snapshot};

/// Most bytes of a request.
const REQUEST_BYTES: u64 = 16 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `GET /metrics` until the process ends.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn serve(address: SocketAddr, recorder: Arc<Recorder>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        // One at a time: a scraper asks every few seconds.
        for connection in listener.incoming().flatten() {
            let _ = answer(&connection, &recorder);
        }
    });
    Ok(address)
}

fn answer(connection: &TcpStream, recorder: &Recorder) -> io::Result<()> {
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    let mut lines = BufReader::new(connection.take(REQUEST_BYTES)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics" | "/")) => ("200 OK", text(&recorder.snapshot())),
        (Some("GET"), _) => ("404 Not Found", "the metrics are at /metrics\n".into()),
        _ => ("405 Method Not Allowed", "GET /metrics\n".into()),
    };
    let head = "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\nConnection: close";
    let mut to = connection;
    write!(to, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A metric: name, type, help, and its value for a stage.
type Metric = (&'static str, &'static str, &'static str, fn(&super::recorder::Running) -> Option<f64>);

const METRICS: [Metric; 9] = [
    ("stage_seconds", "gauge", "Time since the stage started.", |stage| Some(stage.seconds)),
    ("stage_done", "counter", "Rows, pages or steps that are done.", |stage| Some(stage.done as f64)),
    ("stage_total", "gauge", "Rows, pages or steps in all, where known.", |stage| {
        (stage.total > 0).then_some(stage.total as f64)
    }),
    ("stage_rejects", "counter", "Rejected rows.", |stage| Some(stage.rejects as f64)),
    ("stage_bytes", "counter", "Bytes read from the network or from disk.", |stage| Some(stage.bytes as f64)),
    ("train_step", "counter", "The last step of a training.", |stage| {
        Some(stage.training.as_ref()?.step as f64)
    }),
    ("train_loss", "gauge", "The loss of the last step.", |stage| Some(stage.training.as_ref()?.loss.into())),
    ("train_learning_rate", "gauge", "The learning rate of the last step.", |stage| {
        Some(stage.training.as_ref()?.lr.into())
    }),
    ("train_pairs_per_second", "gauge", "Pairs per second at the last step.", |stage| {
        Some(stage.training.as_ref()?.samples_per_second.into())
    }),
];

fn text(snapshot: &Snapshot) -> String {
    let mut text = String::from(
        "# HELP twinlens_resident_bytes Resident memory of the process.\n# TYPE twinlens_resident_bytes gauge\n",
    );
    // Writing to a string does not fail.
    let _ = writeln!(text, "twinlens_resident_bytes {}", snapshot.memory);
    for (name, kind, help, value) in METRICS {
        let _ = writeln!(text, "# HELP twinlens_{name} {help}\n# TYPE twinlens_{name} {kind}");
        for stage in &snapshot.running {
            if let Some(value) = value(stage) {
                let (of, kind) = (label(&stage.stage), label(&stage.kind));
                let _ = writeln!(text, "twinlens_{name}{{stage=\"{of}\",kind=\"{kind}\"}} {value}");
            }
        }
    }
    text
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlens_pipeline::run::events::Event;

    #[test]
    fn a_scraper_reads_the_stages() {
        let place = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::new(place.path().into(), vec![], false));
        let address = serve("127.0.0.1:0".parse().unwrap(), recorder.clone()).unwrap();
        recorder.watch("my \"clip\"", Arc::default());
        recorder.event(&Event::StageStarted {
            stage: "my \"clip\"".into(),
            kind: "train".into(),
            product: twinlens_pipeline::Product::Model,
            unit: "step",
            fused: vec![],
            splits_done: 0,
        });
        let ask = |request: &str| {
            let mut connection = TcpStream::connect(address).unwrap();
            connection.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("twinlens_stage_done{stage=\"my \\\"clip\\\"\",kind=\"train\"} 0\n"),
            "{answer}"
        );
        assert!(!answer.contains("train_loss{"), "{answer}");
        assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        recorder.close();
    }
}
