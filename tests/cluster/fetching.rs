//! Executors fetch: politely all together, and each image once.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use twinlens_testkit::web::{Answer, Site, WebServer, png};

use crate::cluster::{Cluster, assert_same, reference, url};
use crate::crash::SHARDS;
use crate::support::{Place, RandomTimes};

fn serve(site: Site) -> (Runtime, WebServer) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let web = runtime.block_on(WebServer::start(site)).unwrap();
    (runtime, web)
}

/// Writes a pipeline that fetches images of one host.
fn write_images(place: &Place, web: &WebServer, images: usize, split_rows: usize, http: &str) {
    let list: String =
        (0..images).map(|row| format!("http://images.example/{row}.png,image number {row}\n")).collect();
    place.write("list.csv", &format!("url,caption\n{list}"));
    let pipeline = format!(
        r#"
        name = "images"
        [stages.list]
        kind = "table"
        files = ["list.csv"]
        [stages.images]
        kind = "fetch"
        input = "list"
        split_rows = {split_rows}
        http = {{ resolve = {{ "images.example" = "{}" }}, {http} }}
        "#,
        web.addr()
    );
    place.write("pipeline.toml", &pipeline);
}

#[test]
fn a_crawl_whose_images_executors_fetch_is_that_of_one_process() {
    let place = Place::new();
    place.write("pipeline.toml", SHARDS);
    reference(&place);
    let cluster = Cluster::new(&place);
    let _executors = cluster.executors(2);
    cluster.run("shared").ends_well();
    assert_same(&place, "shared");
}

#[test]
fn limits_of_a_host_are_those_of_all_executors_together() {
    let pause = Duration::from_millis(200);
    // A request takes 200 ms: when the fourth is seen, the first of four has been answered. Of
    // eleven, one executor sends four, 300 ms apart. Requests are seen a little after they were
    // sent.
    // With all images of the host in one split, one executor asks it, and robots.txt once.
    let (allowed, slow) = ("User-agent: *\nAllow: /\n", "User-agent: *\nCrawl-delay: 0.1\n");
    for (split_by, per_host, robots, apart, least) in [
        ("rows", 3, allowed, 3, 150),
        ("rows", 9, slow, 10, 750),
        ("host", 3, allowed, 3, 150),
        ("host", 9, slow, 10, 750),
    ] {
        let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (times, image) = (asked.clone(), png(64, 48));
        let site = Site::new().at("/robots.txt", Answer::body("text/plain", robots));
        let (_runtime, web) = serve(site.fallback(move |path| {
            if !path.ends_with(".png") {
                return Answer::status(404);
            }
            times.lock().unwrap().push(Instant::now());
            Answer::Delayed(pause, Box::new(Answer::body("image/png", image.clone())))
        }));
        let place = Place::new();
        write_images(&place, &web, 60, 10, &format!("per_host = {per_host}"));
        let text = fs::read_to_string(place.path("pipeline.toml")).unwrap();
        let split_rows = "split_rows = 10\n";
        place.write(
            "pipeline.toml",
            &text.replace(split_rows, &format!("{split_rows}split_by = \"{split_by}\"\n")),
        );
        let cluster = Cluster::new(&place);
        let _executors = cluster.executors(3);
        cluster.run("shared").ends_well();
        let most = if split_by == "host" { 1 } else { 3 };
        assert!((1..=most).contains(&web.count("/robots.txt")), "{split_by} {robots}");
        let seen = asked.lock().unwrap();
        assert_eq!(seen.len(), 60, "{robots}");
        let shortest = seen.windows(apart + 1).map(|times| times[apart] - times[0]).min().unwrap();
        assert!(shortest >= Duration::from_millis(least), "{robots}: {shortest:?}");
    }
}

#[test]
fn images_that_differ_each_time_are_recorded_once() {
    let requests = AtomicU32::new(0);
    // No two answers are alike.
    let (_runtime, web) = serve(Site::new().fallback(move |path| {
        if !path.ends_with(".png") {
            return Answer::status(404);
        }
        let number = requests.fetch_add(1, Ordering::Relaxed);
        let image = png(40 + number % 300, 40 + number / 300);
        Answer::Delayed(Duration::from_millis(20), Box::new(Answer::body("image/png", image)))
    }));
    let place = Place::new();
    write_images(&place, &web, 240, 6, "robots = false, per_host = 4");
    let cluster = Cluster::new(&place);
    let mut executors = cluster.executors(3);
    let mut run = cluster.run("shared");
    let (mut times, mut lost) = (RandomTimes(20_261_204), 0);
    while !run.has_ended() {
        std::thread::sleep(times.next(Duration::from_secs(3)));
        let one = executors.remove(0);
        if lost % 2 == 0 {
            one.kill();
        } else {
            // It is taken for lost, and then goes on.
            one.signal("-STOP");
            std::thread::sleep(Duration::from_secs(5));
            one.signal("-CONT");
            std::thread::sleep(Duration::from_secs(1));
        }
        executors.push(cluster.executor());
        lost += 1;
    }
    run.ends_well();
    assert!(lost > 1);
    assert!(web.requests().len() > 240, "no split was made twice");
    // Reads each shard, and compares it with the checksums of the manifest.
    let query = "select count(*), count(distinct uid), count(distinct sha256), \
                 min(length(encode(image['bytes'], 'hex'))) > 0 from images";
    assert_eq!(place.ask(&url(&place, "shared"), query), ["240,240,240,true"]);
}
