//! A sum of 100 MB over two ranks, as threads and as processes, in shared memory and over TCP,
//! beside copying as much memory in both at a time: the least that any of them must do.
//!
//! `cargo bench -p twinlens-ranks --bench ranks`

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};
use twinlens_ranks::{Collective, Launch, Meeting, Threads};

const VALUES: usize = 25_000_000;
const ROUNDS: usize = 12;
const RANKS: usize = 2;

type Failure = Box<dyn std::error::Error>;

/// The median of the rounds, in seconds.
fn median(mut round: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        round()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn all_reduce(ranks: &dyn Collective) -> Result<f64, Failure> {
    let mut values = vec![0.5; VALUES];
    // Twelve rounds of sums do not overflow.
    median(|| Ok(ranks.all_reduce_sum(&mut values)?))
}

/// What `measure` returns on the first of the ranks, on all of which it runs at the same time.
fn on_threads(measure: fn(Threads) -> Result<f64, Failure>) -> Result<f64, Failure> {
    let seconds = std::thread::scope(|scope| {
        let start = |rank: Threads| scope.spawn(move || measure(rank).map_err(|error| error.to_string()));
        let ranks: Vec<_> = Threads::new(RANKS).into_iter().map(start).collect();
        let times = ranks.into_iter().map(|rank| rank.join().map_err(|_| "a rank panicked".to_string())?);
        times.collect::<Result<Vec<f64>, String>>()
    })?;
    Ok(seconds[0])
}

fn copy() -> Result<f64, Failure> {
    let (from, mut to) = (vec![1.0f32; VALUES], vec![0.0f32; VALUES]);
    median(|| {
        black_box(&mut to).copy_from_slice(black_box(&from));
        Ok(())
    })
}

fn main() -> Result<(), Failure> {
    if let Some(launch) = Launch::from_env(|name| std::env::var(name).ok())? {
        let rank = launch.rank;
        let wait = Duration::from_secs(30);
        let meeting = |shares_memory| {
            Meeting { launch: launch.clone(), token: None, build: "bench".into(), wait, shares_memory }.join()
        };
        for (name, shares_memory) in [("processes", true), ("processes over TCP", false)] {
            let seconds = all_reduce(&meeting(shares_memory)?)?;
            if rank == 0 {
                report(name, seconds);
            }
        }
        return Ok(());
    }
    report("a copy", copy()?);
    report("a copy by each rank", on_threads(|_| copy())?);
    report("threads", on_threads(|ranks| all_reduce(&ranks))?);
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", RANKS.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port).spawn()
    };
    let ranks: Vec<_> = (0..RANKS).map(start).collect::<Result<_, _>>()?;
    for mut rank in ranks {
        rank.wait()?;
    }
    Ok(())
}

fn report(what: &str, seconds: f64) {
    let gigabytes = VALUES as f64 * 4.0 / 1e9;
    println!("{what:<20} {:>7.1} ms  {:>6.2} GB/s", seconds * 1e3, gigabytes / seconds);
}
