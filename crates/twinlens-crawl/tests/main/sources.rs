//! Whole runs of sources that read files: web archives, tar files, directories, published lists.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::{FinishedRun, Lab, faults, gzip, stage};
use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use twinlens_crawl::stages::{SAMPLE_CODES, WARC_CODES};
use twinlens_dataset::reader::ShardReader;
use twinlens_testkit::tar::{END, member};
use twinlens_testkit::web::png;
use twinlens_testkit::{Answer, Site, WebServer};

/// A record of an archive.
pub(crate) fn record(kind: &str, content_type: &str, target: &str, block: &[u8]) -> Vec<u8> {
    let head = format!(
        "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {target}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        block.len()
    );
    [head.as_bytes(), block, b"\r\n\r\n"].concat()
}

pub(crate) fn response(target: &str, head: &str, body: &[u8]) -> Vec<u8> {
    let block = [b"HTTP/1.1 ".as_slice(), head.as_bytes(), b"\r\n\r\n", body].concat();
    record("response", "application/http; msgtype=response", target, &block)
}

/// An archive with a bit of everything; tests damage the sixth record.
fn archive() -> Vec<Vec<u8>> {
    let html = "200 OK\r\nContent-Type: text/html; charset=utf-8";
    vec![
        record("warcinfo", "application/warc-fields", "", b"software: x"),
        record("request", "application/http; msgtype=request", "http://a.test/", b"GET / HTTP/1.1\r\n\r\n"),
        response("http://a.test/cats/", html, b"<img src=cat.png alt='a cat' title='the cat'>"),
        response(
            "http://a.test/koi8",
            "200 OK\r\nContent-Type: text/html; charset=koi8-r",
            b"<img src=/k.png alt='\xcb\xcf\xd4'>",
        ),
        response(
            "http://a.test/latin",
            "200 OK\r\nContent-Type: text/html",
            b"<img src=/l.png alt='caf\xe9'>",
        ),
        response("http://a.test/lost", html, &b"<img src=/lost.png alt=lost>".repeat(9)),
        response(
            "http://a.test/gone",
            "404 Not Found\r\nContent-Type: text/html",
            b"<img src=/n.png alt=no>",
        ),
        response("http://a.test/image", "200 OK\r\nContent-Type: image/png", b"\x89PNG"),
        response("http://a.test/out", &format!("{html}\r\nX-Robots-Tag: noai"), b"<img src=/o.png alt=out>"),
        response(
            "http://a.test/chunks",
            &format!("{html}\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip"),
            &{
                let body = gzip(b"<img src=/z.png alt=zipped>");
                [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()
            },
        ),
        response("http://a.test/compress", &format!("{html}\r\nContent-Encoding: compress"), b"???"),
        response("ftp://a.test/x", html, b"<img src=http://a.test/f.png alt=ftp>"),
        record("response", "application/http", "http://a.test/bad", b"not http"),
        record("resource", "text/html", "<http://a.test/bare#x>", b"<img src=/b.png alt=bare>"),
        response("http://a.test/long", html, &vec![b'x'; 5000]),
    ]
}

const ARCHIVE: &str = "[stages.pages]\nkind = \"warc\"\nfiles = [\"a.warc*\"]\nmax_record_bytes = 4000\n";

#[tokio::test]
async fn an_archive_yields_pairs_and_rejects() {
    let expected = [
        "http://a.test/b.png | bare | http://a.test/bare | alt",
        "http://a.test/cats/cat.png | a cat | http://a.test/cats/ | alt",
        "http://a.test/cats/cat.png | the cat | http://a.test/cats/ | title",
        "http://a.test/k.png | кот | http://a.test/koi8 | alt",
        "http://a.test/l.png | café | http://a.test/latin | alt",
        "http://a.test/z.png | zipped | http://a.test/chunks | alt",
    ];
    let records = archive();
    let members: Vec<Vec<u8>> = records.iter().map(|record| gzip(record)).collect();
    for (name, parts) in [("a.warc", &records), ("a.warc.gz", &members)] {
        let lab = Lab::new();
        let place: usize = parts[..5].iter().map(Vec::len).sum();
        let mut bytes = parts.concat();
        // Within the compressed data; of a plain file, in the head.
        bytes[place + 60] ^= 0xff;
        bytes[place + 2] ^= 0xff;
        lab.write(name, bytes);
        let done = lab.run(ARCHIVE).await;
        let sql = "select url, caption, page_url, text_source from pages order by url, text_source";
        assert_eq!(done.rows(sql).await, expected, "{name}");
        let sql =
            "select reject_code, page_url, reject_detail from pages.rejects order by reject_code, page_url";
        let rejects = done.rows(sql).await;
        let at = |index: usize| parts[..index].iter().map(Vec::len).sum::<usize>();
        let damaged = if name == "a.warc" { "bad_record" } else { "damaged_gzip" };
        let mut refused = [
            (damaged, "-", 5),
            ("opted_out", "http://a.test/out", 8),
            ("content_encoding", "http://a.test/compress", 10),
            ("bad_url", "ftp://a.test/x", 11),
            ("bad_http", "http://a.test/bad", 12),
            ("record_too_long", "-", 14),
        ];
        refused.sort();
        assert_eq!(rejects.len(), refused.len(), "{name}: {rejects:#?}");
        for (row, (code, page, index)) in rejects.iter().zip(refused) {
            assert!(
                row.starts_with(&format!("{code} | {page} | {name} byte {}: ", at(index))),
                "{name}: {row}"
            );
            assert!(WARC_CODES.contains(&code));
        }
    }
}

#[tokio::test]
async fn archives_on_web_servers_are_downloaded_in_pieces() {
    let bytes: Vec<u8> = archive().iter().flat_map(|record| gzip(record)).collect();
    let total = bytes.len();
    let mut site = Site::new().at("/whole/a.warc.gz", Answer::body("application/gzip", bytes.clone()));
    for start in (0..total).step_by(1000) {
        let end = total.min(start + 1000);
        let part = Answer::Plain { status: 206, headers: Vec::new(), body: bytes[start..end].to_vec() };
        site = site.at(
            "/parts/a.warc.gz",
            part.header("content-range", &format!("bytes {start}-{}/{total}", end - 1)),
        );
    }
    let web = WebServer::start(site).await.unwrap();
    let pipeline = |path: &str| {
        stage("pages", "warc", &format!("files = [\"http://files.test/{path}\"]\nhttp = {{ retries = 0 }}"))
    };
    for folder in ["whole", "parts"] {
        let lab = Lab::new().host("files.test", &web);
        let done = lab.run(&pipeline(&format!("{folder}/a.warc.gz"))).await;
        assert_eq!(done.rows("select count(*) from pages").await, ["15"], "{folder}");
        let detail =
            done.rows("select reject_detail from pages.rejects where reject_code = 'opted_out'").await;
        assert!(detail[0].starts_with("a.warc.gz byte "), "{detail:?}");
        assert_eq!(std::fs::read_dir(lab.path("scratch")).unwrap().count(), 0, "the download is deleted");
    }
    let asked = web.requests().into_iter().filter(|request| request.path.starts_with("/parts"));
    let ranges: Vec<String> = asked.map(|request| request.header("range").unwrap().to_string()).collect();
    assert_eq!(ranges.len(), total.div_ceil(1000));
    assert_eq!(ranges[1], format!("bytes=1000-{}", 1000 + (8 << 20) - 1));
    let error = Lab::new().host("files.test", &web).run_error(&pipeline("gone")).await;
    assert!(error.to_string().contains("http://files.test/gone: HTTP 404"), "{error}");
}

#[tokio::test]
async fn tables_and_tar_files_on_web_servers_are_read() {
    let csv = "URL,TEXT\nhttp://a/1,one\nhttp://a/2,\n";
    let mut list = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut list, ipc_batches()[1].schema(), None).unwrap();
    writer.write(&ipc_batches()[1]).unwrap();
    writer.close().unwrap();
    let tar = [member("1.png", &png(30, 20)), member("1.txt", b"tarred"), END.to_vec()].concat();
    let site = Site::new()
        .at("/list.csv?version=2", Answer::body("text/csv", csv))
        .at("/list.parquet", Answer::file("p", list))
        .at("/bad.parquet", Answer::file("b", b"PAR1 damaged PAR1"))
        .at("/0.tar", Answer::file("t", tar));
    let web = WebServer::start(site).await.unwrap();
    let lab = Lab::new().host("files.test", &web);
    lab.write("here.csv", "url,caption\nhttp://a/0,zero\n");
    let files = "files = [\"http://files.test/list.csv?version=2\", \"here.csv\", \"http://files.test/list.parquet\"]";
    let tar = stage("images", "webdataset", "files = [\"http://files.test/0.tar\"]");
    let done = lab.run(&(stage("pairs", "table", files) + &tar)).await;
    let pairs = ["a/0 | zero", "a/1 | one", "a/3 | caption 3", "a/5 | caption 5", "a/6 | caption 6"];
    assert_eq!(
        done.rows("select url, caption from pairs order by url").await,
        pairs.map(|pair| format!("http://{pair}"))
    );
    let rejects = done.rows("select reject_detail from pairs.rejects order by reject_detail").await;
    assert_eq!(rejects, ["list.csv row 1, line 3: no caption", "list.parquet row 1: no URL"]);
    assert_eq!(done.rows("select caption, width from images").await, ["tarred | 30"]);
    assert_eq!(std::fs::read_dir(lab.path("scratch")).unwrap().count(), 0, "the downloads are deleted");

    // An error names the URL and not the copy.
    let bad = "files = [\"http://files.test/bad.parquet\"]";
    let error = lab.run_error(&stage("pairs", "table", bad)).await.to_string();
    assert!(error.contains("http://files.test/bad.parquet") && !error.contains("scratch"), "{error}");

    // The address policy applies: loopback is refused.
    let files = format!("files = [\"{}\"]", web.url("/list.csv"));
    let error = lab.run_error(&stage("pairs", "table", &files)).await.to_string();
    assert!(error.contains("127.0.0.1 is refused: loopback"), "{error}");
    let star = faults(&stage("pairs", "table", "files = [\"http://files.test/*.csv\"]")).unwrap();
    assert!(star.contains("URLs cannot contain wildcards"), "{star}");
}

#[tokio::test]
async fn a_download_resumes_only_if_the_file_has_not_changed() {
    let list = |word: &str| {
        let row = |row: usize| format!("http://a/{row:03}\t{}\n", word.repeat(30_000));
        Answer::file(word, (0..150).map(row).collect::<String>())
    };
    for (then, rows) in [(list("one "), "one | 150"), (list("other"), "oth | 150")] {
        let site = Site::new().at("/list.tsv", list("one ")).at("/list.tsv", Answer::status(500));
        let web = WebServer::start(site.at("/list.tsv", then)).await.unwrap();
        let lab = Lab::new().host("files.test", &web);
        let pipeline =
            stage("pairs", "table", "files = [\"http://files.test/list.tsv\"]\nhttp = { retries = 0 }");
        let error = lab.run_error(&pipeline).await.to_string();
        assert!(error.contains("http://files.test/list.tsv: HTTP 500"), "{error}");
        let done = lab.run(&pipeline).await;
        assert_eq!(done.rows("select left(caption, 3), count(*) from pairs group by 1").await, [rows]);
        let asked = web.requests();
        let ranges: Vec<&str> = asked.iter().map(|request| request.header("range").unwrap()).collect();
        assert_eq!(ranges[..3], ["bytes=0-8388607", "bytes=8388608-16777215", "bytes=8388608-16777215"]);
        assert_eq!(asked[2].header("if-range"), Some("\"one \""));
        // A changed file is downloaded from the start.
        let fourth = if rows == "one | 150" { "bytes=16777216-25165823" } else { "bytes=0-8388607" };
        assert_eq!(ranges[3], fourth);
        assert_eq!(std::fs::read_dir(lab.path("scratch")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn wat_records_yield_pairs() {
    let wat = |target: &str, html: &str| {
        let json = format!(
            r#"{{"Container":{{"Filename":"x"}},"Envelope":{{"Format":"WARC","WARC-Header-Metadata":{{"WARC-Type":"response","WARC-Target-URI":"{target}"}},
            "Payload-Metadata":{{"HTTP-Response-Metadata":{{"Response-Message":{{"Status":"200"}},"Headers":{{"X":"y"}},"HTML-Metadata":{html}}}}}}}}}"#
        );
        record("metadata", "application/json", target, json.as_bytes())
    };
    let links = r#"{"Head":{"Base":"/base/","Metas":[{"name":"viewport","content":"x"},{"property":"og:image","content":"/og.png"},{"property":"og:image:alt","content":"graphed"}]},
        "Links":[{"path":"A@/href","url":"/x","text":"no image"},{"path":"IMG@/src","url":"cat.png","alt":"a cat &amp; I","title":"cut \ud83d"},
        {"path":"IMG@/srcset","url":"s.png 1x, l.png 2x","alt":"sets"},{"path":"IMG@/src","url":"/bare.png"},{"path":"IMG@/longdesc","url":"/d","alt":"no"}]}"#;
    let latin = wat("http://w.test/latin", r#"{"Links":[{"path":"IMG@/src","url":"/l.png","alt":"caf#"}]}"#);
    let latin: Vec<u8> = latin.iter().map(|byte| if *byte == b'#' { 0xe9 } else { *byte }).collect();
    let members = [
        wat("http://w.test/a/", links),
        latin,
        wat(
            "http://w.test/out",
            r#"{"Head":{"Metas":[{"name":"Robots","content":"noindex"}]},"Links":[{"path":"IMG@/src","url":"/o.png","alt":"o"}]}"#,
        ),
        record("metadata", "application/json", "http://w.test/bad", b"{\"Envelope\": oops}"),
        record(
            "metadata",
            "application/json",
            "http://w.test/info",
            br#"{"Envelope":{"Payload-Metadata":{"Actual-Content-Type":"x"}}}"#,
        ),
        record("metadata", "application/warc-fields", "http://w.test/other", b"via: x"),
    ];
    let lab = Lab::new();
    let bytes: Vec<u8> = members.iter().flat_map(|member| gzip(member)).collect();
    lab.write("a.warc.wat.gz", bytes);
    let pipeline = format!("{ARCHIVE}captions = [\"alt\", \"title\", \"open-graph\"]\n");
    let done = lab.run(&pipeline).await;
    let expected = [
        "http://w.test/base/cat.png | a cat & I | http://w.test/a/ | alt",
        "http://w.test/base/cat.png | cut \u{fffd} | http://w.test/a/ | title",
        "http://w.test/base/l.png | sets | http://w.test/a/ | alt",
        "http://w.test/l.png | café | http://w.test/latin | alt",
        "http://w.test/og.png | graphed | http://w.test/a/ | open-graph",
    ];
    let sql = "select url, caption, page_url, text_source from pages order by url, text_source";
    assert_eq!(done.rows(sql).await, expected);
    let rejects = done.rows("select reject_code, page_url from pages.rejects order by page_url").await;
    assert_eq!(rejects, ["malformed_json | http://w.test/bad", "opted_out | http://w.test/out"]);
}

const SAMPLE: &str = "select url, caption, text_source, width, height, original_width, original_height, image['path'], \
    fetched_at from images order by caption";

/// The stored bytes of all images, by caption.
fn stored(done: &FinishedRun) -> BTreeMap<String, Vec<u8>> {
    let mut stored = BTreeMap::new();
    for batch in ShardReader::new(done.dataset("images"), "data", &["caption", "image"], 100) {
        let batch = batch.unwrap();
        let captions = batch.column_by_name("caption").unwrap().as_string::<i32>().clone();
        let images = batch
            .column_by_name("image")
            .unwrap()
            .as_struct()
            .column_by_name("bytes")
            .unwrap()
            .as_binary::<i64>()
            .clone();
        stored.extend(
            captions
                .iter()
                .zip(images.iter())
                .map(|(caption, bytes)| (caption.unwrap().into(), bytes.unwrap().to_vec())),
        );
    }
    stored
}

#[tokio::test]
async fn tar_files_of_img2dataset_are_read() {
    let hash = "ab".repeat(32);
    let json = format!(
        r#"{{"caption":"from the json","url":"http://i.test/1.png","key":"000000001","status":"success","width":30,"height":20,"original_width":300,"original_height":200,"exif":"{{}}","sha256":"{hash}","similarity":0.25}}"#
    );
    let image = png(30, 20);
    let damaged = {
        let mut bytes = png(40, 40);
        bytes.truncate(60);
        bytes
    };
    let members = [
        member("000000001.png", &image),
        member("000000001.json", json.as_bytes()),
        member("000000001.txt", b"a text\n"),
        member("b/000000002.json", br#"{"TEXT":"only json"}"#),
        member("000000003.txt", b"caf\xe9 of latin-1"),
        member("b/000000002.png", &png(10, 10)),
        member("000000003.png", &png(11, 10)),
        member("000000004.png", &damaged),
        member("000000004.txt", b"damaged"),
        member("000000005.txt", b"no image"),
        member("000000006.png", &png(12, 10)),
        member("000000007.png", &png(13, 10)),
        member("000000007.json", b"{oops"),
        member("000000008.txt", b"lost head"),
        member("000000009.png", &png(14, 10)),
        member("000000009.txt", b"after it"),
        END.to_vec(),
    ];
    let lost: usize = members[..13].iter().map(Vec::len).sum();
    let mut bytes = members.concat();
    bytes[lost + 1] ^= 0xff;
    let lab = Lab::new();
    lab.write("00000.tar", &bytes);
    let pipeline = |split: usize| {
        let options = format!("files = [\"*.tar\"]\nkeep = [\"similarity\"]\nsplit_bytes = {split}");
        stage("images", "webdataset", &options)
    };
    let done = lab.run(&pipeline(1 << 20)).await;
    let pairs = done.rows(SAMPLE).await;
    let expected = [
        "http://i.test/1.png | a text | webdataset | 30 | 20 | 300 | 200 | 000000001.png | -",
        "- | after it | webdataset | 14 | 10 | 14 | 10 | 000000009.png | -",
        "- | café of latin-1 | webdataset | 11 | 10 | 11 | 10 | 000000003.png | -",
        "- | only json | webdataset | 10 | 10 | 10 | 10 | b/000000002.png | -",
    ];
    assert_eq!(pairs, expected);
    assert_eq!((&stored(&done)["a text"], &stored(&done)["after it"]), (&image, &png(14, 10)));
    let first = done
        .rows("select sha256, similarity, phash is not null, length(uid) from images where url is not null")
        .await;
    assert_eq!(first, [format!("{hash} | 0.25 | true | 32")]);
    let sql = "select reject_code, reject_detail from images.rejects order by reject_detail";
    let rejects = done.rows(sql).await;
    let expected = [
        ("damaged_archive", format!("00000.tar byte {lost}: ")),
        ("truncated", "00000.tar/000000004: ".into()),
        ("no_image", "00000.tar/000000005: ".into()),
        ("no_caption", "00000.tar/000000006: ".into()),
        ("malformed_json", "00000.tar/000000007: ".into()),
    ];
    assert_eq!(rejects.len(), expected.len(), "{rejects:#?}");
    for (row, (code, place)) in rejects.iter().zip(expected) {
        assert!(row.starts_with(&format!("{code} | {place}")), "{row}");
        assert!(SAMPLE_CODES.contains(&code) || twinlens_image::CODES.contains(&code), "{code}");
    }
    // Smaller splits give the same rows and rejects.
    for split in [700, 3000] {
        let done = lab.run(&pipeline(split)).await;
        assert_eq!((done.rows(SAMPLE).await, done.rows(sql).await), (pairs.clone(), rejects.clone()));
    }
    let caption = format!(
        "{}caption = \"caption\"\nresize = {{ size = 5 }}\nencode = {{ format = \"png\" }}\n",
        pipeline(1 << 20)
    );
    let done = lab.run(&caption).await;
    let sql = "select caption, width, height, original_width from images";
    assert_eq!(done.rows(sql).await, ["from the json | 8 | 5 | 300"]);
}

#[tokio::test]
async fn directories_of_images_are_read_with_captions() {
    let lab = Lab::new();
    let write = |name: &str, bytes: &[u8]| lab.write(&format!("photos/{name}"), bytes);
    write("a.b.png", &png(20, 10));
    write("a.b.txt", b" a fox \n");
    write("deep/c.JPEG", &png(21, 10));
    write("deep/c.json", br#"{"url": "http://i.test/c", "caption": "in depth", "sha256": "short"}"#);
    write("deep/er/d.png", &png(22, 10));
    write("deep/er/d.txt", b"");
    write("page.jpg", b"<html>");
    write("page.txt", b"a page");
    write("readme.txt", b"of no image");
    let pipeline = stage("images", "folder", "folders = [\"photos\"]\nsplit_rows = 3");
    let done = lab.run(&pipeline).await;
    let expected = [
        "- | a fox | folder | 20 | 10 | 20 | 10 | photos/a.b.png | -",
        "http://i.test/c | in depth | folder | 21 | 10 | 21 | 10 | photos/deep/c.JPEG | -",
    ];
    assert_eq!(done.rows(SAMPLE).await, expected);
    let rejects =
        done.rows("select reject_code, reject_detail from images.rejects order by reject_code").await;
    assert_eq!(rejects.len(), 3, "{rejects:#?}");
    assert!(rejects[0].starts_with("no_caption | photos/deep/er/d.png: "), "{rejects:#?}");
    assert!(rejects[1].starts_with("no_image | photos/readme: "), "{rejects:#?}");
    assert!(rejects[2].starts_with("not_an_image | photos/page.jpg: "), "{rejects:#?}");
    // A changed text file is noticed at any depth.
    write("deep/er/d.txt", b"found in the deep");
    let done = lab.run(&pipeline).await;
    assert_eq!(done.rows("select caption from images where width = 22").await, ["found in the deep"]);
}

fn ipc_batches() -> Vec<RecordBatch> {
    let batch = |from: usize, to: usize| {
        let text = |name: &str| -> ArrayRef {
            Arc::new((from..to).map(|n| (n != 4).then(|| format!("{name}{n}"))).collect::<StringArray>())
        };
        let similarity: ArrayRef =
            Arc::new((from..to).map(|n| Some(n as f64 / 4.0)).collect::<Float64Array>());
        RecordBatch::try_from_iter_with_nullable([
            ("URL", text("http://a/"), true),
            ("TEXT", text("caption "), true),
            ("similarity", similarity, true),
        ])
        .unwrap()
    };
    vec![batch(0, 3), batch(3, 7)]
}

#[tokio::test]
async fn arrow_files_and_streams_are_tables() {
    use arrow::ipc::writer::{FileWriter, StreamWriter};
    let batches = ipc_batches();
    for stream in [false, true] {
        let lab = Lab::new();
        let file = std::fs::File::create(lab.path("part.arrow")).unwrap();
        let schema = batches[0].schema();
        if stream {
            let mut writer = StreamWriter::try_new(file, &schema).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        } else {
            let mut writer = FileWriter::try_new(file, &schema).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        }
        for rows in [2, 3, 1000] {
            let options = format!("files = [\"part.arrow\"]\nkeep = [\"similarity\"]\nsplit_rows = {rows}");
            let done = lab.run(&stage("pairs", "table", &options)).await;
            let found = done.rows("select url, caption, similarity from pairs order by url").await;
            let expected: Vec<String> = [0, 1, 2, 3, 5, 6]
                .map(|n| format!("http://a/{n} | caption {n} | {:?}", f64::from(n) / 4.0))
                .to_vec();
            assert_eq!(found, expected);
            let rejects = done.rows("select reject_code, reject_detail from pairs.rejects").await;
            assert_eq!(rejects, ["no_url | part.arrow row 4: no URL"]);
        }
        let bytes = std::fs::read(lab.path("part.arrow")).unwrap();
        lab.write("part.arrow", &bytes[..bytes.len() / 2]);
        let error = lab.run_error(&stage("pairs", "table", "files = [\"part.arrow\"]")).await;
        assert!(error.to_string().contains("part.arrow: damaged"), "{error:?}");
    }
}

#[tokio::test]
async fn published_lists_without_a_header_are_read() {
    let lab = Lab::new();
    lab.write(
        "Train_GCC-training.tsv",
        "a very typical bus station\thttp://a/1.jpg\nsierra looked stunning\thttp://a/2.jpg\n",
    );
    lab.write("cc12m.tsv", "https://b/1.jpg\tMetal wall art\nhttps://b/2.jpg\tbroken\trow\n");
    lab.write("laion.csv", "URL,TEXT,similarity\nhttp://c/1.jpg,\"a, quoted\",0.5\n");
    let files = "files = [\"*.tsv\", \"laion.csv\"]\nsplit_rows = 1";
    let done = lab.run(&stage("pairs", "table", files)).await;
    let expected = [
        "http://a/1.jpg | a very typical bus station",
        "http://a/2.jpg | sierra looked stunning",
        "http://c/1.jpg | a, quoted",
        "https://b/1.jpg | Metal wall art",
    ];
    assert_eq!(done.rows("select url, caption from pairs order by url").await, expected);
    let rejects = done.rows("select reject_code, reject_detail from pairs.rejects").await;
    assert_eq!(rejects, ["malformed_row | cc12m.tsv row 1, line 2: 3 fields, but the header has 2"]);
}
