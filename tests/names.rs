//! Names of files, columns and directories are shown, and do not control the terminal.

use std::fs;
use std::process::Output;

use crate::support::Place;

/// Clears the screen, by an escape sequence of two bytes and of one, rings, and turns the text
/// around; with a line break.
const NAME: &str = "a\u{1b}[2J\u{9b}2J\u{7}\u{202e}\nb";

/// What is written must contain nothing of it but the line break.
fn assert_harmless(what: &str, output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(text);
        let found = text.chars().find(|c| "\u{1b}\u{9b}\u{7}\u{202e}".contains(*c));
        assert_eq!(found, None, "{what}:\n{}", text.escape_debug());
    }
}

/// A directory with such a name, a run there, and in it a file of the user's.
fn place() -> (Place, String) {
    let place = Place::new();
    let dir = format!("{NAME}-run");
    place.write(
        "rows.csv",
        &format!("url,caption\nhttp://a.example/{NAME},{NAME} is a caption\n").replace("\nb", "b"),
    );
    place.write(
        "pipeline.toml",
        "name = \"names\"\n[stages.rows]\nkind = \"table\"\nfiles = [\"rows.csv\"]\n\
         [stages.long]\nkind = \"filter\"\ninput = \"rows\"\nwhere = \"length(caption) > 1000\"\n",
    );
    let run = place.output(&["run", "pipeline.toml", "--dir", &dir]);
    assert_harmless("run", &run);
    fs::write(place.path(&dir).join("long").join(NAME), "").unwrap();
    place.write(&format!("{NAME}.csv"), &format!("{NAME}\n1\n").replace("\nb\n", "b\n"));
    place.write(&format!("{NAME}.toml"), &format!("name = \"{NAME}\"\n[stages.{NAME}]\n"));
    place.write("deep/x.csv", "url,caption\nhttp://a.example/1.png,one\n");
    fs::create_dir(place.path(&format!("deep/{NAME}"))).unwrap();
    place.write(&format!("deep/{NAME}/run.json"), "{\"format\":1,\"pipeline\":\"x\"}");
    (place, dir)
}

#[test]
fn names_do_not_control_the_terminal() {
    let (place, dir) = place();
    let (csv, toml, missing) = (format!("{NAME}.csv"), format!("{NAME}.toml"), format!("{NAME}-missing"));
    let dataset = place.path(&dir).join("long");
    let calls: [&[&str]; 28] = [
        &["run", "pipeline.toml", "--dir", &dir],
        &["run", &toml],
        &["run", &missing],
        &["run", "pipeline.toml", "--set", &format!("stages.{NAME}=1")],
        &["check", &toml],
        &["check", &dir],
        &["plan", "pipeline.toml", "--dir", &dir],
        &["plan", "pipeline.toml", "--dir", &dir, "--columns"],
        &["status", &dir],
        &["status", "deep"],
        &["status", &missing],
        &["watch", &dir],
        &["prune", &dir],
        &["repair", "pipeline.toml", "--dir", &dir],
        &["retry", "pipeline.toml", NAME, "--dir", &dir],
        &["report", &dir, "-o", &format!("{NAME}.html")],
        &["export", dataset.to_str().unwrap(), &format!("{NAME}-out"), "--to", "parquet"],
        &["sql", &dir, &format!("select \"{NAME}\" from rows")],
        &["sql", &dir, "select * from rows"],
        &["sql", &dir, "select * from rows", "-o", &format!("{NAME}/x.csv")],
        &["init", &csv],
        &["init", "deep", "-o", &format!("{NAME}-new.toml")],
        &["show", dataset.to_str().unwrap(), "-o", &format!("{NAME}-show.html")],
        &["schema", "--write", &format!("{NAME}-schemas")],
        &["sets", &toml],
        &["help", NAME],
        &["search", &missing, "x"],
        &[NAME],
    ];
    for args in calls {
        assert_harmless(&format!("{args:?}"), &place.output(args));
    }
}
