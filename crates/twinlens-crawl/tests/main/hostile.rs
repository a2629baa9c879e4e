//! The fetch stage against servers that fail in all known ways: every row gets the right code, and
//! none is lost.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

use crate::support::{Lab, stage};
use twinlens_image::{Encode, Limits, Resize, process};
use twinlens_testkit::images::odd_images;
use twinlens_testkit::web::{FAULTS, png};
use twinlens_testkit::{Answer, Faults, Site, WebServer};

/// Stages that read and fetch pairs.
fn pipeline(fetch: &str) -> String {
    stage("pairs", "table", "files = [\"pairs.jsonl\"]\nkeep = [\"expected\"]")
        + &stage("images", "fetch", &format!("input = \"pairs\"\n{fetch}"))
}

/// A lab with a table of pairs and the host of their images.
fn lab(web: &WebServer, pairs: &str) -> Lab {
    let lab = Lab::new().host("img.test", web);
    lab.write("pairs.jsonl", pairs);
    lab
}

fn pair(lines: &mut String, path: &str, expected: Option<&str>) {
    let expected = expected.map_or("null".to_string(), |text| format!("\"{text}\""));
    writeln!(
        lines,
        "{{\"url\": \"http://img.test{path}\", \"caption\": \"{path}\", \"expected\": {expected}}}"
    )
    .unwrap();
}

#[tokio::test]
async fn odd_images_get_their_codes() {
    let (images, mut site, mut lines) = (odd_images(), Site::new(), String::new());
    for (number, image) in images.iter().enumerate() {
        let path = format!("/{number}");
        pair(&mut lines, &path, image.code);
        site = site.at(&path, Answer::body("image/jpeg", image.bytes.clone()));
    }
    let web = WebServer::start(site).await.unwrap();
    let stages = pipeline("resize = { size = 32 }\nhttp = { retries = 0, per_host = 16 }");
    let done = lab(&web, &lines).run(&stages).await;
    let wrong = done.rows("select caption, expected, reject_code from images.rejects where reject_code is distinct from expected",
    )
    .await;
    let kept = done.rows("select caption from images where expected is not null").await;
    let name = |row: &String| {
        let number: usize = row[1..].split(' ').next().unwrap().parse().unwrap();
        format!("{}: {row}", images[number].name)
    };
    let wrong: Vec<String> = wrong.iter().chain(&kept).map(name).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Number of rows for the failing server; the environment may set it.
fn rows() -> usize {
    std::env::var("TWINLENS_HOSTILE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1500)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_failure_in_five_requests_loses_no_row() {
    let (rows, faults) = (rows(), Faults { one_in: 5, seed: 3 });
    let image = png(24, 16);
    let site = Site::new()
        .at("/robots.txt", Answer::status(404))
        .fallback(move |_| Answer::body("image/png", image.clone()))
        .with_faults(faults)
        .keep_alive()
        .without_headers();
    let web = WebServer::start(site).await.unwrap();
    let (mut lines, mut expected) = (String::new(), BTreeMap::<&str, usize>::new());
    for row in 0..rows {
        let path = format!("/{row}.png");
        let code = faults.for_path(&path).map(|fault| fault.code);
        *expected.entry(code.unwrap_or("kept")).or_default() += 1;
        pair(&mut lines, &path, code);
    }
    let kinds: std::collections::BTreeSet<_> = FAULTS.iter().map(|fault| fault.code).collect();
    assert!(
        kinds.iter().all(|code| expected.contains_key(code)),
        "every kind of failure occurs: {expected:?}"
    );
    let stages = pipeline(&format!(
        "resize = {{ size = 16 }}\nencode = {{ format = \"png\" }}\nlimits = {{ max_bytes = 200000 }}\nconcurrency = 500\n\
         split_rows = {}\nhttp = {{ retries = 0, per_host = 500, headers_timeout = 4.0, body_timeout = 4.0 }}",
        500.max(rows / 10)
    ));
    let start = Instant::now();
    let done = lab(&web, &lines).run(&stages).await;
    println!("{rows} rows in {:.1} s", start.elapsed().as_secs_f64());
    let found = done.rows("select code, count(*) from (select 'kept' as code from images union all select reject_code from images.rejects) \
         group by code order by code",
    )
    .await;
    let expected: Vec<String> =
        expected.into_iter().map(|(code, count)| format!("{code} | {count}")).collect();
    assert_eq!(found, expected);
    let misplaced = done
        .rows(
            "select count(*) from images.rejects where reject_code is distinct from expected \
         union all select count(*) from images where expected is not null",
        )
        .await;
    assert_eq!(misplaced, ["0", "0"]);
    assert!(rows < 500 || web.connections() < rows * 9 / 10, "connections are reused: {}", web.connections());
}

#[tokio::test]
async fn an_unexpected_image_is_rejected() {
    let (a, b) = (png(64, 48), png(96, 20));
    let of =
        |bytes: &[u8]| process(bytes, &Limits::default(), &Resize::default(), &Encode::default()).unwrap();
    let (first, second) = (of(&a), of(&b));
    let near = format!("{:016X}", first.phash.cast_unsigned() ^ 0b11);
    let far = format!("{:016x}", second.phash);
    assert!((first.phash ^ second.phash).count_ones() > 8);
    let site =
        Site::new().at("/a.png", Answer::body("image/png", a)).at("/b.png", Answer::body("image/png", b));
    let web = WebServer::start(site).await.unwrap();
    let cases = [
        ("sha256", first.sha256.clone(), None),
        ("sha256", first.sha256.to_uppercase(), None),
        ("sha256", second.sha256, Some("sha256_mismatch")),
        ("sha256", "nonsense".into(), Some("sha256_mismatch")),
        ("phash", near, None),
        ("phash", far, Some("phash_mismatch")),
        ("phash", "nonsense".into(), Some("phash_mismatch")),
    ];
    for (hash, expected, code) in cases {
        let mut lines = String::new();
        // Two rows with the same image, one without an expected hash: that one is always kept.
        pair(&mut lines, "/a.png", Some(&expected));
        pair(&mut lines, "/a.png#2", None);
        let stages = pipeline(&format!("verify = {{ {hash} = \"expected\" }}\nhttp = {{ retries = 0 }}"));
        let done = lab(&web, &lines).run(&stages).await;
        let rejects = done.rows("select url, reject_code from images.rejects").await;
        let refused: Vec<String> =
            code.iter().map(|code| format!("http://img.test/a.png | {code}")).collect();
        assert_eq!(rejects, refused, "{hash} {expected}");
        let columns = done.rows("select count(*), min(expected), min(length(sha256)) from images").await;
        let kept = if code.is_some() { "1 | - | 64".to_string() } else { format!("2 | {expected} | 64") };
        assert_eq!(columns, [kept], "{hash} {expected}");
    }
}
