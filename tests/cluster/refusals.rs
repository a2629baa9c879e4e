//! What cannot work is refused, and the message says why.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, KEY, Process, place, url, write_sleeping};
use crate::crash::SHARDS;
use crate::support::s3::S3;
use crate::support::{Place, program, stderr};

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let place = place();
    let cluster = Cluster::new(&place);
    // With an executor of another key.
    let mut other = cluster.executor_command();
    other.env("TWINLENS_CLUSTER_KEY", "another secret of the user").env("WORD", "x");
    let _other = Process::start_plain(other);
    let cases: [(&str, &[&str], &[(&str, &str)], &str); 6] = [
        (
            "no scheduler",
            &["--on", "df://127.0.0.1:1", "--patience", "1s"],
            &[],
            "error: nothing answers at df://127.0.0.1:1: Connection refused (os error 111)\n\
             hint: start one: twinlens scheduler",
        ),
        (
            "a local directory",
            &["--dir", "here"],
            &[],
            "error: here is a directory of this machine, which executors elsewhere do not see\n\
             hint: use an object store",
        ),
        (
            "no address",
            &["--on", "http://sched"],
            &[],
            "error: `http://sched` is not the address of a scheduler",
        ),
        (
            "another build",
            &[],
            &[("TWINLENS_PRETEND", "9.9.9")],
            " is twinlens 0.1.0 on x86_64, this is 9.9.9 on x86_64\nhint: run the same build",
        ),
        (
            "another key",
            &[],
            &[],
            "error: stage `long`: this run has another key than an executor\n\
             hint: set TWINLENS_CLUSTER_KEY to the same secret on all machines",
        ),
        (
            "no key",
            &[],
            &[("TWINLENS_CLUSTER_KEY", "")],
            "error: stage `long`: this run has no key, but an executor has one\n\
             hint: set TWINLENS_CLUSTER_KEY to the same secret on all machines",
        ),
    ];
    for (name, args, variables, expected) in cases {
        let dir = url(&place, &format!("refused-{}", name.replace(' ', "-")));
        let mut command = place.command(&["run", "pipeline.toml", "--progress", "never"]);
        if !args.contains(&"--dir") {
            command.args(["--dir", &dir]);
        }
        if !args.contains(&"--on") {
            command.args(["--on", &cluster.address]);
        }
        command.args(args).env("TWINLENS_CLUSTER_KEY", KEY).env("WORD", "x");
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(error.contains(expected), "{name}: {error}");
    }

    // Others could reach it.
    let open = place.command(&["executor", &cluster.address]).output().unwrap();
    let error = stderr(&open);
    assert!(error.contains("an executor that others reach needs a key"), "{error}");
}

#[test]
fn a_run_without_executors_gives_up_and_keeps_what_was_made() {
    let place = place();
    let cluster = Cluster::new(&place);
    let started = Instant::now();
    let alone = cluster.run_command("shared", &["--patience", "2s"]).output().unwrap();
    let error = stderr(&alone);
    assert_eq!(alone.status.code(), Some(1), "{error}");
    assert!(error.contains("error: stage `long`: there are no executors at df://127.0.0.1:"), "{error}");
    assert!(error.contains("hint: start them: twinlens executor df://"), "{error}");
    assert!(error.contains("resume with: "), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_error_on_an_executor_is_told_as_if_it_were_here() {
    let place = Place::new();
    write_sleeping(&place, 0.0, 3);
    let pipeline = fs::read_to_string(place.path("pipeline.toml")).unwrap();
    place.write("pipeline.toml", &pipeline.replace("sleep 0;", "exit 3;"));
    let here = place.output(&["run", "pipeline.toml", "--progress", "never", "--dir", "alone"]);
    let cluster = Cluster::new(&place);
    let _executor = cluster.executor();
    let there = cluster.run_command("shared", &[]).output().unwrap();
    assert_eq!(there.status.code(), Some(1));
    let told = |output: &Output| {
        let text = stderr(output);
        let lines = text.lines().skip_while(|line| !line.starts_with("error"));
        lines.take_while(|line| !line.starts_with("resume")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(told(&there), told(&here));
    assert!(!told(&here).is_empty());
}

#[test]
fn an_executor_with_another_environment_is_named() {
    let place = place();
    let cluster = Cluster::new(&place);
    let mut other = cluster.executor_command();
    other.env("TWINLENS_CLUSTER_KEY", KEY).env("WORD", "unlike");
    let _other = Process::start_plain(other);
    let told = cluster.run("shared").ends_badly(1).join("\n");
    let expected = ": the pipeline reads the environment variable WORD, which has another value here";
    assert!(told.contains("error: stage `long`: executor ") && told.contains(expected), "{told}");
    // Only its hash has travelled.
    assert!(!told.contains("unlike"), "{told}");
}

#[test]
fn a_second_run_in_the_same_directory_is_refused_without_harm() {
    let place = Place::new();
    write_sleeping(&place, 2.0, 10);
    let cluster = Cluster::new(&place);
    let _executors = cluster.executors(1);
    let first = cluster.run("shared");
    cluster.has("1 split in flight");
    // On another machine, which has another cache.
    let mut second = cluster.run_command("shared", &[]);
    second.env("HOME", place.path("elsewhere"));
    let told = Process::start(second).ends_badly(1).join("\n");
    assert!(told.contains("another run (process ") && told.contains(") is working in file://"), "{told}");
    first.ends_well();
    assert_eq!(place.ask(&url(&place, "shared"), "select count(*) from rows"), ["10"]);
}

#[test]
fn a_build_for_clusters_has_no_functions_of_its_own() {
    let place = Place::new();
    let pipeline = "name = \"hashed\"\n[stages.a]\nkind = \"sql\"\nquery = \"select md5('a') as hash\"\n";
    place.write("pipeline.toml", pipeline);
    let checked = place.output(&["check", "pipeline.toml"]);
    let error = stderr(&checked);
    assert!(!checked.status.success() && error.contains("md5"), "{error}");
}

#[test]
fn an_executor_without_access_to_the_store_is_named() {
    let Some(s3) = S3::start() else { return };
    let place = place();
    let cluster = Cluster::new(&place);
    let mut command = cluster.executor_command();
    s3.give_without_keys(&mut command);
    let _executor = Process::start(command);
    let mut run = cluster.run_command_at("s3://bucket/run", &[]);
    s3.give(&mut run);
    let told = Process::start(run).ends_badly(1).join("\n");
    let expected = [
        "error: stage `long`: on ",
        ": s3://bucket/run/",
        ": this machine has no credentials for the store: ",
        "hint: set the store's keys in the environment of this machine (AWS_ACCESS_KEY_ID and ",
        "resume with: ",
    ];
    for part in expected {
        assert!(told.contains(part), "no `{part}`: {told}");
    }
}

#[test]
fn built_in_sites_are_for_one_machine() {
    // A namespace of its own gives the executor another host name.
    let elsewhere = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-r", "--uts", "sh", "-c", &format!("hostname node9 && {script}"), "sh"]);
        command
    };
    if !elsewhere("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: unshare cannot give a process another host name");
        return;
    }
    let place = Place::new();
    place.write("pipeline.toml", SHARDS);
    let cluster = Cluster::new(&place);
    let (plain, mut command) = (cluster.executor_command(), elsewhere("exec \"$@\""));
    command.arg(program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let _executor = Process::start(command);
    let told = cluster.run("shared").ends_badly(1).join("\n");
    let expected = ": executor node9: gallery.twinlens.test is served on the loopback of ";
    assert!(told.contains("error: stage `") && told.contains(expected), "{told}");
    assert!(told.contains(": it cannot be fetched from node9\nhint: "), "{told}");
}
