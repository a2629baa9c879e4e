//! A running training is seen by other processes: `status`, `sql`, `watch`, metrics, TensorBoard.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use twinlens_testkit::python::python;

use crate::support::{Place, program, training};

fn metrics(address: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Reads a folder as TensorBoard does, and prints tag, number of values and last step.
const READ_BACK: &str = r#"
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
for tag in sorted(events.Tags()["scalars"]):
    scalars = events.Scalars(tag)
    assert [s.step for s in scalars] == list(range(1, len(scalars) + 1)), tag
    print(tag, len(scalars))
"#;

#[test]
fn a_training_without_a_terminal_is_seen_at_once() {
    let place = Place::new();
    training::write_images(&place);
    place.write("pipeline.toml", &training::pipeline("live", "steps = 1_000_000"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let run = ["run", "pipeline.toml", "--dir", "run", "--metrics", &address, "--tensorboard", "curves"];
    let mut command = Command::new("nohup");
    command.arg(program()).args(run).current_dir(place.folder());
    command.env("HOME", place.folder()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let live = place.path("run/.live/clip.jsonl");
    let steps = || fs::read_to_string(&live).map_or(0, |text| text.lines().count());
    let wait_for = |count: usize| {
        while steps() < count {
            assert!(Instant::now() < deadline, "no steps in {}", live.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for(1);
    let first = Instant::now();
    wait_for(51);
    let status = place.done(&["status", "run"]);
    assert!(status.contains("running in process") && status.contains("clip  train  step "), "{status}");
    let rows = place.ask("run", "select count(*) > 50, min(step), min(loss) >= 0 from live_steps");
    assert_eq!(rows, ["true,1,true"]);
    let view = place.done(&["watch", "run"]);
    assert!(view.contains("> clip ") && view.contains("  loss ") && view.contains("+ words"), "{view}");
    let text = metrics(&address).unwrap();
    assert!(text.contains("twinlens_train_loss{stage=\"clip\",kind=\"train\"} "), "{text}");
    let curves =
        fs::read_dir(place.path("curves/clip")).unwrap().next().unwrap().unwrap().metadata().unwrap();
    assert!(curves.len() > 1000, "{} bytes of curves", curves.len());
    assert!(first.elapsed() < Duration::from_secs(10), "all of it was seen after {:?}", first.elapsed());

    let stopped = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(stopped.unwrap().success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(!place.path("run/.live").exists(), "what is live ends with the run");
    let view = place.done(&["watch", "run"]);
    assert!(view.contains("not running"), "{view}");

    let Some(python) = python("tensorboard") else { return };
    let read = Command::new(python)
        .args(["-c", READ_BACK, place.path("curves/clip").to_str().unwrap()])
        .output()
        .unwrap();
    let tags = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(read.status.success(), "{tags}{}", String::from_utf8_lossy(&read.stderr));
    for tag in ["loss", "learning_rate", "logit_scale", "gradient_norm", "pairs_per_second"] {
        assert!(tags.lines().any(|line| line.starts_with(&format!("train/{tag} "))), "{tags}");
    }
}
