//! A training that is continued, with the same options and with others.

use std::fs;

use crate::support::{Place, stderr, training};

/// A pipeline of so many steps.
fn pipeline(steps: u32) -> String {
    let options = "schedule = \"constant\"\nwarmup = 2\nema = 0.9\ncheckpoint_every = 4";
    training::pipeline("continued", &format!("{options}\nsteps = {steps}"))
}

fn place() -> Place {
    let place = Place::new();
    training::write_images(&place);
    for steps in [7, 14] {
        place.write(&format!("{steps}.toml"), &pipeline(steps));
    }
    place
}

fn run(place: &Place, file: &str, dir: &str, more: &[&str]) -> String {
    place.done(&[&["run", file, "--progress", "never", "--dir", dir], more].concat())
}

/// The weights and all that a training needs to be continued.
fn content(place: &Place, dataset: &str) -> Vec<Vec<u8>> {
    let files = ["model.safetensors", "last.safetensors", "state.safetensors"];
    files.map(|file| fs::read(place.path(dataset).join(file)).unwrap()).into()
}

const LOG: &str =
    "select step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, change from clip order by step";

#[test]
fn steps_in_two_parts_are_the_steps_at_once() {
    let place = place();
    run(&place, "14.toml", "whole", &[]);
    run(&place, "7.toml", "parts", &[]);
    let plan = place.done(&["plan", "14.toml", "--dir", "parts", "--continue", "clip"]);
    assert!(
        plan.contains("option `from`: none -> \"clip@1\"") && plan.contains("kept as `clip@1`"),
        "{plan}"
    );
    run(&place, "14.toml", "parts", &["--continue", "clip"]);
    assert!(content(&place, "parts/clip") == content(&place, "whole/clip"), "other weights");
    assert_eq!(place.ask("parts", LOG), place.ask("whole", LOG));
    let steps = place.ask("parts", "select count(*), min(samples_per_second) > 0, count(wall) from clip");
    assert_eq!(steps, ["14,true,14"]);
    // It need not be said again, and is not done again.
    for more in [&[][..], &["--continue", "clip"]] {
        let said = run(&place, "14.toml", "parts", more);
        assert!(said.contains("clip    14 rows  (reused)"), "{said}");
    }
    let freed = place.done(&["prune", "parts", "--yes"]);
    assert!(freed.contains("clip@1 stays: a dataset was made from it"), "{freed}");
}

#[test]
fn what_changed_is_marked_where_it_did() {
    let place = place();
    run(&place, "7.toml", "run", &[]);
    let other = ["--set", "clip.lr=0.0005", "--set", "clip.batch_size=4", "--continue", "clip"];
    run(&place, "14.toml", "run", &other);
    let marks = "select step, change from clip where change is not null";
    assert_eq!(place.ask("run", marks), ["8,option `batch_size`: 8 -> 4; option `lr`: 0.001 -> 0.0005"]);
    let seen = place.ask("run", "select max(samples_seen), min(lr) from clip where step > 7");
    assert_eq!(seen, ["84,0.0005"]);
    let report = place.done(&["report", "run", "--terminal"]);
    assert!(report.contains("clip, from step 8: option `batch_size`"), "{report}");
    // Once more: both marks are in the one log.
    place.write("20.toml", &pipeline(20));
    run(&place, "20.toml", "run", &["--set", "clip.lr=0.0001", "--continue", "clip"]);
    let steps = place.ask("run", "select step from clip where change is not null order by step");
    assert_eq!(steps, ["8", "15"]);
    assert_eq!(place.ask("run", "select max(samples_seen) from clip"), ["132"]);
}

#[test]
fn a_training_that_cannot_be_continued_says_why() {
    let place = place();
    let call = |more: &[&str]| {
        let output =
            place.output(&[&["run", "7.toml", "--progress", "never", "--dir", "run"], more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(call(&["--continue", "clip"]).contains("there is no training of it in run"));
    assert!(call(&["--continue", "words"]).contains("its trainings are clip"));
    run(&place, "7.toml", "run", &["--set", "clip.keep_state=false"]);
    let optimizer = ["--set", "clip.optimizer=true"];
    assert!(call(&optimizer).contains("`optimizer` needs `from`"));
    let missing = [&optimizer[..], &["--set", "clip.from=clip@5"]].concat();
    assert!(call(&missing).contains("there is no `clip@5` in run"));
    let stateless = ["--set", "clip.steps=9", "--continue", "clip"];
    assert!(call(&stateless).contains("it has no state.safetensors"));
    // Nothing was lost: the options of before bring it back.
    let said = run(&place, "7.toml", "run", &[]);
    assert!(said.contains("`clip@1` has this recipe and takes its place again"), "{said}");
    place.done(&["run", "7.toml", "--dir", "run", "--fresh"]);
    assert!(
        call(&["--set", "clip.lr=0.1", "--continue", "clip"])
            .contains("has made 7 steps, and this one ends after 7")
    );
}
