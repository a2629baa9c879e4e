//! An image that kills the process that decodes it costs one restart and one reject.
//!
//! In debug builds, decoding an image that holds the value of `TWINLENS_ABORT_ON` aborts.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use twinlens_testkit::web::png;
use twinlens_testkit::{Answer, Site, WebServer};

use crate::support::{Place, stderr};

const POISON: &str = "POISON";
const PHOTOS: usize = 60;

/// Images that are decoded by a source, and others that are fetched.
fn pipeline(server: &WebServer) -> String {
    format!(
        r#"name = "poisoned"

[stages.photos]
kind = "folder"
folders = ["photos"]
split_rows = 7
resize = {{ size = 8 }}

[stages.list]
kind = "table"
files = ["list.csv"]

[stages.images]
kind = "fetch"
input = "list"
split_rows = 7

[stages.images.http]
resolve = {{ "web.test" = "{}" }}
robots = false
per_host = 100
"#,
        server.addr()
    )
}

fn image(number: usize, is_poisoned: bool) -> Vec<u8> {
    let mut bytes = png(16 + number as u32, 16);
    if is_poisoned {
        bytes.extend(POISON.as_bytes());
    }
    bytes
}

async fn place() -> (Place, WebServer) {
    let place = Place::new();
    fs::create_dir(place.path("photos")).unwrap();
    let (mut site, mut list) = (Site::new(), "url,caption\n".to_string());
    for number in 0..PHOTOS {
        fs::write(place.path(&format!("photos/{number:02}.png")), image(number, number == 40)).unwrap();
        place.write(&format!("photos/{number:02}.txt"), &format!("photo {number}"));
        let fetched = image(100 + number, number == 20);
        site = site.at(&format!("/{number}.png"), Answer::body("image/png", fetched));
        list += &format!("http://web.test/{number}.png,image {number}\n");
    }
    place.write("list.csv", &list);
    let server = WebServer::start(site).await.unwrap();
    place.write("poisoned.toml", &pipeline(&server));
    (place, server)
}

fn run(place: &Place, dir: &str) -> Output {
    let args = ["run", "poisoned.toml", "--dir", dir, "--progress", "never"];
    place.command(&args).env("TWINLENS_ABORT_ON", POISON).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_row_costs_one_restart_and_one_reject() {
    let (place, _server) = place().await;
    let healthy = place.command(&["run", "poisoned.toml", "--dir", "healthy"]).output().unwrap();
    assert!(healthy.status.success(), "{}", stderr(&healthy));
    // One death for each of the two.
    for _ in 0..2 {
        let died = run(&place, "run");
        assert_eq!(died.status.code(), None, "{}", stderr(&died));
        assert!(place.path("run/.inflight").exists());
    }
    let done = run(&place, "run");
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(!place.path("run/.inflight").exists());
    let rejects = "select reject_stage, reject_code, reject_detail from rejects order by 1";
    let found = place.ask("run", rejects);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("images,killed_the_process,\"http://web.test/20.png: "), "{found:?}");
    assert!(found[1].starts_with("photos,killed_the_process,\"photos/40.png: "), "{found:?}");
    for (table, poisoned) in [("photos", "photo 40"), ("images", "image 20")] {
        let rows = |dir: &str| -> BTreeSet<String> {
            let query = format!(
                "select uid, caption, sha256, phash, width, encode(image['bytes'], 'hex') from {table} \
                 where caption <> '{poisoned}'"
            );
            place.ask(dir, &query).into_iter().collect()
        };
        assert_eq!(rows("run").len(), PHOTOS - 1);
        assert_eq!(rows("run"), rows("healthy"), "{table}");
    }
    // With `--isolate`, no restart: the process that dies is one that decodes.
    let args = ["run", "poisoned.toml", "--dir", "isolated", "--isolate", "--progress", "never"];
    let done = place.command(&args).env("TWINLENS_ABORT_ON", POISON).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(!place.path("isolated/.inflight").exists());
    let found = place.ask("isolated", rejects);
    assert_eq!(found.len(), 2, "{found:?}");
    for (row, place) in found.iter().zip(["images,killed_the_process,", "photos,killed_the_process,"]) {
        assert!(row.starts_with(place) && row.contains("it aborted"), "{row}");
    }
    for table in ["photos", "images"] {
        let query = format!(
            "select uid, caption, sha256, phash, width, encode(image['bytes'], 'hex') from {table} order by uid"
        );
        assert_eq!(place.ask("isolated", &query), place.ask("run", &query), "{table}");
    }
}
