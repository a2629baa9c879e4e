//! Every system call of a command fails in each way: the command fails with a clear message or
//! manages without, nothing half-written is visible, and the same command completes the work.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use super::scenario::{Attempt, Content, Scenario, WORK, site};
use super::shim::{self, Fault};
use crate::support::{Place, stderr};

/// One in so many disturbed folders is also read by other commands.
const READ_ONE_IN: usize = 5;

/// Disturbs some calls of each command, or all of them if `tries` is 0.
pub(super) fn run(scenarios: &[Scenario], tries: usize) {
    if !shim::is_available() {
        return;
    }
    let place = site();
    let mut problems = Vec::new();
    println!("| command | {} | problems |", Fault::ALL.map(Fault::name).join(" | "));
    for (index, scenario) in scenarios.iter().enumerate() {
        let campaign = Campaign::new(&place, scenario);
        let (before, mut counts) = (problems.len(), Vec::new());
        for (kind, &fault) in Fault::ALL.iter().enumerate() {
            let mut met = 0;
            // In the suite, each command meets two of the six kinds.
            let numbers = match tries {
                0 => (1..usize::MAX).step_by(1),
                _ if (kind + index) % 3 == 0 => campaign.some(fault, tries),
                _ => (1..1).step_by(1),
            };
            for number in numbers {
                let Some(found) = campaign.disturb(fault, number) else { break };
                problems.extend(found);
                met += 1;
            }
            counts.push(met.to_string());
        }
        println!("| {} | {} | {} |", scenario.name, counts.join(" | "), problems.len() - before);
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

struct Campaign<'a> {
    place: &'a Place,
    scenario: &'a Scenario,
    /// What an undisturbed command makes.
    expected: Content,
    foreign: BTreeSet<String>,
}

impl<'a> Campaign<'a> {
    fn new(place: &'a Place, scenario: &'a Scenario) -> Self {
        scenario.prepare(place);
        let (_, expected) = scenario.undisturbed(place);
        Self { place, scenario, expected, foreign: scenario.foreign(place) }
    }

    /// The numbers of some calls.
    fn some(&self, fault: Fault, tries: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
        let counted = self.scenario.attempt(self.place, Some((fault, 0))).counted;
        let step = counted / (tries + 1);
        (step.max(1)..counted).step_by(step.max(1))
    }

    /// Makes one call fail. Gives what was wrong then; `None` if there is no such call.
    fn disturb(&self, fault: Fault, number: usize) -> Option<Vec<String>> {
        let (place, scenario) = (self.place, self.scenario);
        let attempt = scenario.attempt(place, Some((fault, number)));
        let (call, path) = attempt.met.first()?;
        let mut found = Vec::new();
        if fault.kills() {
            if attempt.output.status.signal() != Some(9) {
                found.push(format!("not killed, but {}", attempt.output.status));
            }
        } else {
            found.extend(wrong_message(&attempt, Path::new(path), &place.path(WORK)));
        }
        found.extend(scenario.faults_visible(place, &self.foreign));
        if number.is_multiple_of(READ_ONE_IN) {
            found.extend(scenario.unreadable(place));
        }
        match scenario.complete(place) {
            Err(problem) => found.push(problem),
            Ok(()) => found.extend(differences(&self.expected, &scenario.content(place))),
        }
        found.extend(scenario.faults_visible(place, &self.foreign));
        let what = format!("{}, {} {number} ({call} {path})", scenario.name, fault.name());
        Some(found.into_iter().map(|problem| format!("{what}: {problem}")).collect())
    }
}

/// What is wrong with how a command reported a fault of a path.
fn wrong_message(attempt: &Attempt, path: &Path, work: &Path) -> Option<String> {
    let text = stderr(&attempt.output);
    // Nothing depends on what tells other processes about a run.
    if path.iter().any(|part| part == ".live") && attempt.output.status.success() {
        return None;
    }
    let run = work.join("run");
    // A folder that cannot be deleted is named, whatever in it fails.
    let is_named = path.ancestors().take_while(|path| *path != work && *path != run).any(|path| {
        let name = path.strip_prefix(work).map(|name| name.to_string_lossy().into_owned());
        name.is_ok_and(|name| text.contains(name.strip_suffix(".unfinished").unwrap_or(&name)))
    });
    let is_clear = attempt.output.status.code() == Some(1)
        && (is_named || path == run && text.contains(&*run.to_string_lossy()))
        && !text.contains("panicked")
        && !text.contains("bug in twinlens");
    (!is_clear).then(|| format!("{}: {text}", attempt.output.status))
}

/// How the content of two folders differs.
pub(super) fn differences(expected: &Content, found: &Content) -> Vec<String> {
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differ = names.into_iter().filter(|name| expected.get(*name) != found.get(*name));
    let describe = |name: &String| match (expected.contains_key(name), found.contains_key(name)) {
        (true, true) => format!("{name} has other bytes"),
        (true, false) => format!("{name} is missing"),
        _ => format!("{name} is left over"),
    };
    differ.map(describe).collect()
}
