//! `fetch` accepts damaged images and undecoded originals if it is told to, and says so.

use crate::support::Lab;
use twinlens_testkit::{Answer, Site, WebServer, web::png};

const FETCH: &str = r#"
[stages.pairs]
kind = "table"
files = ["pairs.jsonl"]

[stages.images]
kind = "fetch"
input = "pairs"
encode = { format = "keep" }
resize = { mode = "none" }
http = { retries = 0 }
"#;

const SVG: &str = "<svg xmlns='http://www.w3.org/2000/svg'/>";

async fn fetched(options: &str, sql: &str) -> (Vec<String>, Vec<String>) {
    let whole = png(40, 30);
    let endless = whole[..whole.len() - 12].to_vec();
    let mut checksum = whole.clone();
    // The last byte of the checksum of the pixels, before the end marker.
    let at = whole.len() - 13;
    checksum[at] ^= 1;
    let site = Site::new()
        .at("/whole.png", Answer::body("image/png", whole.clone()))
        .at("/endless.png", Answer::body("image/png", endless))
        .at("/checksum.png", Answer::body("image/png", checksum))
        .at("/cut.png", Answer::body("image/png", whole[..whole.len() - 20].to_vec()))
        .at("/drawing.svg", Answer::body("image/svg+xml", SVG));
    let web = WebServer::start(site).await.unwrap();
    let lab = Lab::new().host("img.test", &web);
    let lines = ["whole.png", "endless.png", "checksum.png", "cut.png", "drawing.svg"]
        .map(|name| format!("{{\"url\": \"http://img.test/{name}\", \"caption\": \"{name}\"}}\n"));
    lab.write("pairs.jsonl", lines.concat());
    let done = lab.run(&FETCH.replace("input = \"pairs\"", &format!("input = \"pairs\"\n{options}"))).await;
    let rejects = "select caption, reject_code from images.rejects order by caption";
    (done.rows(sql).await, done.rows(rejects).await)
}

#[tokio::test]
async fn damaged_and_undecoded_images_are_rejected_by_default() {
    let (kept, rejects) = fetched("", "select caption from images").await;
    assert_eq!(kept, ["whole.png"]);
    let codes = ["checksum.png | decode_failed", "cut.png | truncated", "drawing.svg | unsupported_format"];
    assert_eq!(rejects, [codes[0], codes[1], codes[2], "endless.png | truncated"]);
}

#[tokio::test]
async fn lenient_repairs_what_is_complete_and_names_the_damage() {
    // The hash is that of the body.
    let sql =
        "select caption, damage, width, count(*) over (partition by sha256) from images order by caption";
    let (kept, rejects) = fetched("lenient = true", sql).await;
    let expected = [("checksum.png", "checksum"), ("endless.png", "no_end_marker"), ("whole.png", "-")]
        .map(|(name, damage)| format!("{name} | {damage} | 40 | 1"));
    assert_eq!(kept, expected);
    assert_eq!(rejects, ["cut.png | truncated", "drawing.svg | unsupported_format"]);
}

#[tokio::test]
async fn originals_that_are_not_decoded_can_be_kept() {
    let sql = "select caption, width, phash, length(sha256), arrow_cast(image['bytes'], 'LargeUtf8') from images \
               where caption like '%.svg'";
    let (kept, rejects) = fetched("originals = \"keep\"", sql).await;
    assert_eq!(kept, [format!("drawing.svg | - | - | 64 | {SVG}")]);
    assert_eq!(rejects.len(), 3, "{rejects:?}");
}
