//! The power is cut after each call of a command: the command resumes from what only is certain to
//! be on the disk, from what may be there, and ends with the same bytes.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::Path;

use twinlens_dataset::manifest;
use twinlens_dataset::storage::Location;

use super::campaign::differences;
use super::disk::{Disk, Image, Survives};
use super::scenario::{Scenario, files, site};
use super::shim::{self, Call};

const VARIANTS: [Survives; 5] =
    [Survives::Nothing, Survives::Names, Survives::NamesAndHalf, Survives::Some(1), Survives::Some(2)];

/// Cuts the power after some calls of each command, or after all of them if `tries` is 0.
pub(super) fn run(scenarios: &[Scenario], tries: usize) {
    if !shim::is_available() {
        return;
    }
    let place = site();
    let work = place.path("work");
    let mut problems = Vec::new();
    println!("| command | calls | disks after a power cut | problems |");
    for scenario in scenarios {
        scenario.prepare(&place);
        let (made, expected) = scenario.undisturbed(&place);
        let foreign = scenario.foreign(&place);
        let (mut disk, calls) = scenario.recorded(&place, Disk::read);
        let before = problems.len();
        let mut seen = HashSet::new();
        let mut committed = splits(&place.path("before"));
        for (number, call) in calls.iter().enumerate() {
            if let Call::Print { text } = call {
                committed += text.lines().filter(|line| line.contains(": committed split=")).count();
                continue;
            }
            disk.apply(call);
            if tries > 0 && number % (calls.len() / (tries + 1)).max(1) != 0 {
                continue;
            }
            for survives in VARIANTS {
                let image = disk.image(survives);
                if !seen.insert(hash(&image)) {
                    continue;
                }
                write(&image, &work);
                let mut found = scenario.faults_visible(&place, &foreign);
                let left = splits(&work);
                if scenario.only_adds && left < committed {
                    found.push(format!("{committed} splits were committed, {left} are left"));
                }
                match scenario.complete(&place) {
                    Err(problem) => found.push(problem),
                    Ok(()) => found.extend(differences(&expected, &scenario.content(&place))),
                }
                found.extend(scenario.faults_visible(&place, &foreign));
                let what = format!("{}, after call {number} ({call:.200?}), {survives:?}", scenario.name);
                problems.extend(found.into_iter().map(|problem| format!("{what}: {problem}")));
            }
        }
        // The command has ended: all that it made is certain to be there.
        write(&disk.image(Survives::Nothing), &work);
        let lost = differences(&made, &scenario.content(&place));
        problems.extend(lost.into_iter().map(|lost| format!("{}, at the end: {lost}", scenario.name)));
        let (all, cut) = (calls.len(), seen.len());
        println!("| {} | {all} | {cut} | {} |", scenario.name, problems.len() - before);
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn hash(image: &Image) -> u64 {
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    hasher.finish()
}

fn write(image: &Image, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for (path, bytes) in image {
        match bytes {
            None => fs::create_dir(to.join(path)).unwrap(),
            Some(bytes) => fs::write(to.join(path), bytes).unwrap(),
        }
    }
}

/// The committed splits of all datasets in a folder.
fn splits(work: &Path) -> usize {
    let names = files(work);
    let folders = names.iter().filter_map(|name| name.strip_suffix("/manifest.jsonl"));
    let states = folders.filter_map(|name| manifest::read(&Location::from(work.join(name))).ok()?);
    states.map(|state| state.commits.len()).sum()
}
