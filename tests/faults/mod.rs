//! Faults of the system below a run: every system call fails, is cut short, or is the last before
//! a kill or a power cut, and every file has flipped bits.
//!
//! The suite takes a few of them. `tests/faults/all` takes all, and prints the tables of
//! `benches/README.md`.

mod campaign;
mod disk;
mod flips;
mod power;
mod scenario;
mod shim;

use scenario::Scenario;

/// How many of the numbered calls are tried: 0 for all.
fn tries(in_the_suite: usize) -> usize {
    match std::env::var("TWINLENS_FAULTS") {
        Ok(text) => text.parse().unwrap_or(0),
        Err(_) => in_the_suite,
    }
}

/// In the suite, the third `part` of the scenarios; or else those whose names contain
/// `TWINLENS_FAULTS_ONLY`.
fn chosen(part: usize) -> Vec<Scenario> {
    let is_suite = std::env::var_os("TWINLENS_FAULTS").is_none();
    let only = std::env::var("TWINLENS_FAULTS_ONLY").unwrap_or_default();
    let is_chosen = |(index, scenario): &(usize, Scenario)| match is_suite {
        true => index % 3 == part,
        false => scenario.name.contains(&only),
    };
    let chosen = scenario::all().into_iter().enumerate().filter(is_chosen);
    chosen.map(|(_, scenario)| scenario).collect()
}

#[test]
fn nothing_is_lost_or_half_done_when_a_call_fails() {
    campaign::run(&chosen(0), tries(1));
}

#[test]
fn no_flipped_bit_changes_an_answer() {
    if shim::is_available() {
        flips::run(tries(12));
    }
}

#[test]
fn what_was_committed_survives_a_power_cut() {
    power::run(&chosen(1), tries(3));
}
