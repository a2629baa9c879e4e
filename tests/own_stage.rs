//! A program of somebody else's with a source, a stage and a function of its own
//! (`crates/twinlens/examples/own_stage.rs`).

use std::path::Path;
use std::process::Command;

use crate::support::{Place, stderr, stdout};

const PIPELINE: &str = r#"
name = "own"

[stages.sheep]
kind = "sheep"
flocks = 2
size = 3

[stages.loud]
kind = "shout"
input = "sheep"
column = "caption"
max_length = 9

[stages.counted]
kind = "sql"
query = "select uid, caption, vowels(caption) as vowels from loud order by uid"
"#;

#[test]
fn a_program_with_its_own_stages_is_the_whole_command() {
    let program = Path::new(env!("CARGO_BIN_EXE_twinlens")).with_file_name("examples").join("own_stage");
    let place = Place::new();
    let call = |args: &[&str]| {
        let output = Command::new(&program).args(args).current_dir(place.folder()).output();
        output.unwrap_or_else(|error| panic!("{}: {error}; build it with --examples", program.display()))
    };
    place.write("own.toml", PIPELINE);
    let run = call(&["run", "own.toml", "--progress", "never"]);
    assert!(run.status.success(), "{}", stderr(&run));

    let rows = |query: &str| stdout(&call(&["sql", "runs/own", "--format", "csv", query]));
    assert_eq!(
        rows("select uid, caption, vowels from counted"),
        "uid,caption,vowels\n0-0,SHEEP,2\n0-1,BIG SHEEP,3\n1-0,SHEEP,2\n1-1,BIG SHEEP,3\n"
    );
    assert_eq!(
        rows("select uid, reject_stage, reject_code, reject_detail from rejects order by uid"),
        "uid,reject_stage,reject_code,reject_detail\n0-2,loud,too_long,13\n1-2,loud,too_long,13\n"
    );

    let help = stdout(&call(&["stages", "shout"]));
    assert!(help.contains("Writes a column in capital letters") && help.contains("max_length"), "{help}");
    place.write("wrong.toml", &PIPELINE.replace("\"caption\"", "\"captoin\""));
    let check = call(&["check", "wrong.toml"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(stderr(&check).contains("did you mean `caption`?"), "{}", stderr(&check));
}
