//! What dies, sleeps or is away: nothing is lost and nothing is recorded twice.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::{
    Cluster, Process, assert_same, place, recorded, reference, splits_made, write_sleeping,
};
use crate::support::s3::S3;
use crate::support::{Place, RandomTimes, kills, stdout};

#[test]
fn executors_that_are_killed_or_stopped_lose_nothing() {
    let place = place();
    reference(&place);
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_201), 0, 0);
    while killed < kills(4) {
        let cluster = Cluster::new(&place);
        let dir = format!("shared-{round}");
        let mut executors = vec![cluster.executor(), cluster.executor()];
        let mut run = cluster.run(&dir);
        let (mut stopped, mut made) = (None::<(Process, Instant)>, 0);
        while !run.has_ended() {
            // A split that is lost eight times ends the run: however slow the machine is, some are
            // made between two kills.
            wait_for_splits(&mut run, || recorded(&place, &dir) > made);
            std::thread::sleep(times.next(Duration::from_millis(2500)));
            made = recorded(&place, &dir);
            let lost = executors.remove(0);
            executors.push(cluster.executor());
            if round % 2 == 1 && stopped.is_none() {
                // A zombie: it goes on when others have long made its split.
                lost.signal("-STOP");
                stopped = Some((lost, Instant::now()));
            } else {
                lost.kill();
                killed += 1;
            }
            if let Some((zombie, since)) = stopped.take_if(|(_, since)| since.elapsed().as_secs() > 5) {
                assert!(since.elapsed().as_secs() < 30);
                zombie.signal("-CONT");
                executors.push(zombie);
            }
        }
        run.ends_well();
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

/// Waits until splits were made, or the run has ended.
fn wait_for_splits(run: &mut Process, are_made: impl Fn() -> bool) {
    let started = Instant::now();
    while !are_made() && !run.has_ended() {
        assert!(started.elapsed() < Duration::from_secs(120), "no split is made");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_run_that_is_killed_resumes_with_what_executors_made() {
    let place = place();
    reference(&place);
    let cluster = Cluster::new(&place);
    let _executors = [cluster.executor(), cluster.executor()];
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_202), 0, 0);
    while killed < kills(4) {
        let dir = format!("shared-{round}");
        loop {
            let mut run = cluster.run(&dir);
            let (until, started) = (times.next(Duration::from_secs(4)), Instant::now());
            while started.elapsed() < until && !run.has_ended() {
                std::thread::sleep(Duration::from_millis(5));
            }
            if run.has_ended() {
                run.ends_well();
                break;
            }
            run.kill();
            killed += 1;
        }
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn a_scheduler_that_is_killed_and_started_again_loses_nothing() {
    let place = place();
    reference(&place);
    let mut cluster = Cluster::new(&place);
    let _executors = [cluster.executor(), cluster.executor()];
    let bind = cluster.address.strip_prefix("df://").unwrap().to_string();
    let (mut times, mut killed, mut round) = (RandomTimes(20_261_203), 0, 0);
    while killed < kills(4) {
        let dir = format!("shared-{round}");
        let mut run = cluster.run(&dir);
        std::thread::sleep(Duration::from_millis(500) + times.next(Duration::from_millis(2500)));
        if !run.has_ended() {
            cluster.scheduler.take().unwrap().kill();
            // After five heartbeats without an answer, executors begin anew.
            std::thread::sleep(Duration::from_secs([1, 9][round % 2]));
            cluster.start_scheduler(&bind);
            killed += 1;
        }
        run.ends_well();
        assert_same(&place, &dir);
        fs::remove_dir_all(place.path(&dir)).unwrap();
        round += 1;
    }
}

#[test]
fn a_run_whose_executors_all_die_keeps_what_they_made() {
    let place = Place::new();
    write_sleeping(&place, 0.2, 60);
    let cluster = Cluster::new(&place);
    let executors = cluster.executors(2);
    let run = Process::start(cluster.run_command("shared", &["--patience", "3s"]));
    let started = Instant::now();
    while recorded(&place, "shared") < 10 {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    executors.into_iter().for_each(Process::kill);
    let killed = Instant::now();
    let told = run.ends_badly(1);
    // The loss is noticed after 3 s, and then the patience counts.
    assert!(killed.elapsed() < Duration::from_secs(14), "{:?}", killed.elapsed());
    assert!(told.iter().any(|line| line.contains("there are no executors at df://")), "{told:?}");
    let kept = recorded(&place, "shared");
    assert!((10..60).contains(&kept), "{kept}");

    // Another one makes the rest.
    let executor = cluster.executor();
    cluster.run("shared").ends_well();
    executor.signal("-TERM");
    assert_eq!(splits_made(&executor.ends_well()), 60 - kept);
    assert_eq!(place.ask(&super::url(&place, "shared"), "select count(*) from rows"), ["60"]);
}

#[test]
fn an_executor_that_is_asked_to_end_ends_its_split() {
    let place = Place::new();
    write_sleeping(&place, 2.0, 4);
    let cluster = Cluster::new(&place);
    let mut executors = cluster.executors(2);
    let run = cluster.run("shared");
    cluster.has("2 splits in flight");
    let asked = executors.remove(0);
    asked.signal("-TERM");
    assert_eq!(splits_made(&asked.ends_well()), 1);
    run.ends_well();
    let last = executors.remove(0);
    last.signal("-TERM");
    assert_eq!(splits_made(&last.ends_well()), 3);
}

#[test]
fn an_interrupted_run_stops_its_executors_and_resumes() {
    let place = Place::new();
    write_sleeping(&place, 60.0, 3);
    let cluster = Cluster::new(&place);
    let executor = cluster.executor();
    let mut run = cluster.run("shared");
    cluster.has("1 split in flight");
    run.signal("-INT");
    let interrupted = Instant::now();
    assert_eq!(run.child.wait().unwrap().code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(14), "{:?}", interrupted.elapsed());
    // Nobody waits for its split, and it is dropped.
    std::thread::sleep(Duration::from_secs(2));
    let told = stdout(&cluster.status());
    assert!(told.contains("0 splits in flight, 0 waiting"), "{told}");
    executor.signal("-TERM");
    assert_eq!(splits_made(&executor.ends_well()), 0);
}

#[test]
fn a_split_that_kills_its_executors_ends_the_run_and_is_named() {
    let place = Place::new();
    write_sleeping(&place, 0.0, 3);
    let pipeline = fs::read_to_string(place.path("pipeline.toml")).unwrap();
    // As the system does when memory is short.
    let deadly = pipeline.replace("sleep 0;", "[ $TWINLENS_SPLIT = 1 ] && kill -9 $PPID;");
    assert_ne!(pipeline, deadly);
    place.write("pipeline.toml", &deadly);
    let cluster = Cluster::new(&place);
    let mut executors = cluster.executors(2);
    let (mut run, started) = (cluster.run("shared"), Instant::now());
    let mut died = 0;
    while !run.has_ended() {
        assert!(started.elapsed() < Duration::from_secs(300), "the run does not end");
        std::thread::sleep(Duration::from_millis(100));
        for executor in &mut executors {
            if executor.has_ended() {
                died += 1;
                *executor = cluster.executor();
            }
        }
    }
    let told = run.ends_badly(1).join("\n");
    assert!(told.contains("split 1 (part 2 of 3) was lost 8 times: "), "{told}");
    assert!(told.contains("hint: if executors ran out of memory: "), "{told}");
    assert!((8..=10).contains(&died), "{died}");
    // The others are kept.
    assert_eq!(recorded(&place, "shared"), 2);
}

#[test]
fn a_store_that_is_away_for_good_ends_the_run() {
    let Some(s3) = S3::start() else { return };
    let place = Place::new();
    write_sleeping(&place, 0.5, 60);
    let cluster = Cluster::new(&place);
    let with_s3 = |mut command: Command| {
        s3.give(&mut command);
        Process::start(command)
    };
    let executors = [with_s3(cluster.executor_command()), with_s3(cluster.executor_command())];
    let run = with_s3(cluster.run_command_at("s3://bucket/run", &[]));
    executors[0].says("rows: ");
    s3.stop();
    let stopped = Instant::now();
    let told = run.ends_badly(1).join("\n");
    // The library tries the first request for about a minute, and those after it are not tried.
    assert!(stopped.elapsed() < Duration::from_secs(300), "{:?}", stopped.elapsed());
    for part in ["error: stage `rows`: ", "s3://bucket/run/", "resume with: "] {
        assert!(told.contains(part), "no `{part}`: {told}");
    }
}
