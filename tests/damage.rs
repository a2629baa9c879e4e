//! Full disks, truncated, damaged and unreadable files: the error names the file and what to do,
//! and after a repair `run` resumes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Place, long_captions, program, stderr, stdout};

/// A directory with a list of `rows` rows and the pipeline.
fn site(rows: usize) -> Place {
    let place = Place::new();
    let mut csv = String::from("url,caption\n");
    for row in 0..rows {
        // A hash in each caption, so that the rows do not compress to nothing on the small disk.
        let noise = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (row as u64) << 17;
        csv.push_str(&format!("http://a.example/{row}.png,caption {row} {noise:016x}\n"));
    }
    place.write("captions.csv", &csv);
    place.write("pipeline.toml", &long_captions("damage", ""));
    place
}

fn run(site: &Place) -> Output {
    site.output(&["run", "pipeline.toml", "--progress", "never", "--dir", "run"])
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, messages: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for message in messages {
        assert!(text.contains(message), "`{message}` is not in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[track_caller]
fn assert_succeeds(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_truncated_shard_is_named_and_can_be_rebuilt() {
    let site = site(500);
    assert_succeeds(&run(&site));
    edit(&site.path("run/long/data/000000-000.parquet"), |bytes| bytes.truncate(bytes.len() / 2));
    assert_fails(&run(&site), 1, &["long/data/000000-000.parquet", "damaged", "twinlens repair"]);
    assert_fails(&site.output(&["check", "run"]), 1, &["long/data/000000-000.parquet"]);
    assert_succeeds(&site.output(&["repair", "pipeline.toml", "--progress", "never", "--dir", "run"]));
    assert_succeeds(&site.output(&["check", "run"]));
    assert_eq!(site.ask("run", "select rows from counts"), ["500"]);
}

/// A flipped bit in a shard is an error that names the file, or changes nothing.
#[test]
fn a_flipped_bit_is_found_by_who_reads_it() {
    let site = site(2000);
    assert_succeeds(&run(&site));
    let query = "select count(*), min(url), max(caption), sum(char_length(caption)) from long";
    let wanted = site.ask("run", query);
    let path = site.path("run/long/data/000000-000.parquet");
    let sound = fs::read(&path).unwrap();
    for part in 0..12 {
        edit(&path, |bytes| {
            let at = (part * 2 + 1) * bytes.len() / 24;
            bytes[at] ^= 1 << (part % 8);
        });
        let output = site.output(&["sql", "run", "--format", "csv", query]);
        let answer: Vec<String> = stdout(&output).lines().skip(1).map(String::from).collect();
        if output.status.success() {
            assert_eq!(answer, wanted, "part {part}");
        } else {
            assert_fails(&output, 1, &["long/data/000000-000.parquet", "twinlens repair"]);
        }
        fs::write(&path, &sound).unwrap();
    }
    // One that is certainly read: the repair makes the same bytes.
    edit(&path, |bytes| bytes[100] ^= 1);
    assert_fails(&site.output(&["sql", "run", "select * from long"]), 1, &["bytes 0 to"]);
    assert_succeeds(&site.output(&["repair", "pipeline.toml", "--progress", "never", "--dir", "run"]));
    assert!(fs::read(&path).unwrap() == sound);
}

#[test]
fn a_damaged_manifest_line_is_named() {
    let site = site(500);
    assert_succeeds(&run(&site));
    edit(&site.path("run/long/manifest.jsonl"), |bytes| {
        let second = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 40;
        bytes[second] ^= 1;
    });
    assert_fails(&run(&site), 1, &["long/manifest.jsonl:2", "damaged manifest line", "delete"]);
    fs::remove_dir_all(site.path("run/long")).unwrap();
    assert_succeeds(&run(&site));
}

#[test]
fn an_unreadable_source_is_named() {
    let site = site(5);
    let pipeline = long_captions("damage", "").replace("captions.csv", "captions.parquet");
    fs::write(site.path("pipeline.toml"), pipeline).unwrap();
    assert_fails(&run(&site), 1, &["captions.parquet", "does not exist"]);
    fs::write(site.path("captions.parquet"), b"PAR1 this is not a Parquet file PAR1").unwrap();
    assert_fails(&run(&site), 1, &["captions.parquet"]);
}

/// A disk of 600 KB in a separate mount namespace: it fills up, is enlarged, and the run resumes.
#[test]
fn a_full_disk_is_reported_and_the_run_resumes_when_there_is_space() {
    let site = site(60_000);
    fs::create_dir(site.path("run")).unwrap();
    let script = r#"
        set -u
        mount -t tmpfs -o size=600k none "$DIR" || exit 77
        "$TWINLENS" run --progress never --dir "$DIR" "$PIPELINE"; echo "first: $?" >&2
        mount -o remount,size=64m "$DIR" || exit 77
        "$TWINLENS" run --progress never --dir "$DIR" "$PIPELINE"; echo "second: $?" >&2
        "$TWINLENS" status "$DIR" >&2
    "#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .env("DIR", site.path("run"))
        .env("PIPELINE", site.path("pipeline.toml"))
        .env("TWINLENS", program())
        .output()
        .unwrap();
    let text = stderr(&output);
    assert_ne!(output.status.code(), Some(77), "cannot mount a tmpfs: {text}");
    assert!(text.contains("free space on the disk"), "{text}");
    assert!(text.contains("first: 1\n"), "{text}");
    assert!(text.contains("second: 0\n"), "{text}");
}
