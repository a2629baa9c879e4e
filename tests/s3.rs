//! Runs into an S3, through the real client, against a server of this machine (moto).

use std::process::{Child, Command, Stdio};

use crate::support::s3::S3;
use crate::support::shared::{PAIRS, all_files, write_pairs};
use crate::support::{Place, stderr};

fn start(command: &mut Command) -> Child {
    command.env("WORD", "x").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn ends_well(process: Child) -> String {
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn workers_share_a_run_in_s3() {
    let Some(mut s3) = S3::start() else { return };
    let place = Place::new();
    write_pairs(&place, 1000);
    place.write("pipeline.toml", PAIRS);
    let run = |dir: &str, args: &[&str]| {
        let mut command = place.command(&["run", "pipeline.toml", "--progress", "never", "--dir", dir]);
        command.args(args);
        command
    };
    let alone = format!("file://{}", place.path("alone").display());
    ends_well(start(&mut run(&alone, &[])));

    let worker = || place.command(&["work", "s3://bucket/run", "--idle", "60s"]);
    let workers: Vec<Child> = (0..2).map(|_| start(s3.give(&mut worker()))).collect();
    ends_well(start(s3.give(&mut run("s3://bucket/run", &["--workers-only"]))));
    for said in workers.into_iter().map(ends_well) {
        assert!(said.contains("the run has ended"), "{said}");
    }
    assert!(s3.fetch(&place.path("fetched")) > 20);
    let (expected, mut found) = (all_files(&place.path("alone")), all_files(&place.path("fetched/run")));
    found.retain(|name, _| expected.contains_key(name) || !name.contains("/commits/"));
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    assert!(expected == found, "some bytes differ");

    // The same command again has nothing to do, and a second run at a time is refused.
    let again = ends_well(start(s3.give(&mut run("s3://bucket/run", &[]))));
    assert!(again.contains("reused"), "{again}");
}
