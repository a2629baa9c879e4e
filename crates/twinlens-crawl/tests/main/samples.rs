//! Tar files and directories as people have them: whatever the names, each file is a row, a part of
//! one, or a reject.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringArray};

use crate::support::{FinishedRun, Lab, gzip, parquet, stage};
use twinlens_crawl::stages::SAMPLE_CODES;
use twinlens_testkit::tar::{END, member, typed};
use twinlens_testkit::web::png;
use twinlens_testkit::xz;

/// Captions and the paths of their images, and rejects without the ends of their details.
async fn read(done: &FinishedRun) -> (Vec<String>, Vec<String>) {
    let rows = done.rows("select caption, image['path'] from images order by image['path'], caption").await;
    let rejects = done.rows("select reject_code, reject_detail from images.rejects").await;
    let mut rejects: Vec<String> =
        rejects.iter().map(|row| row.split(": ").next().unwrap_or_default().to_string()).collect();
    rejects.sort();
    for reject in &rejects {
        let code = reject.split(" | ").next().unwrap_or_default();
        assert!(SAMPLE_CODES.contains(&code) || twinlens_image::CODES.contains(&code), "{code}");
    }
    (rows, rejects)
}

fn webdataset(options: &str) -> String {
    stage("images", "webdataset", &format!("files = [\"*.tar\"]\n{options}"))
}

fn folder(options: &str) -> String {
    stage("images", "folder", &format!("folders = [\"photos\"]\n{options}"))
}

/// Files with names as people give them. Both readers must agree on what is a row.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("235 Track 2.0 (clean).jpg", png(9, 9)),
        ("235 Track 2.0 (clean).txt", b"a track".to_vec()),
        ("photo.2020.01.JPEG", png(10, 9)),
        ("photo.2020.01.TXT", b"first".to_vec()),
        ("photo.2020.02.png", png(11, 9)),
        ("photo.2020.02.Text", b"second".to_vec()),
        ("in/d\u{e9}j\u{e0} vu.jfif", png(12, 9)),
        ("in/d\u{e9}j\u{e0} vu.caption", "d\u{e9}j\u{e0} vu".into()),
        ("in/deep/er/5.jpe", png(13, 9)),
        ("in/deep/er/5.json", br#"{"TEXT": "upper", "caption": null}"#.to_vec()),
        ("6.img", png(14, 9)),
        ("6.txt", b"an image of no known kind".to_vec()),
        ("7.png", png(15, 9)),
        ("7.jpg", png(16, 9)),
        ("7.txt", b"two images".to_vec()),
        ("8.tga", b"not decodable".to_vec()),
        ("8.txt", b"a reject".to_vec()),
        ("9.png", png(17, 9)),
        ("9.cls", b"3".to_vec()),
        ("README", b"words".to_vec()),
        (".hidden.png", png(18, 9)),
    ]
}

#[tokio::test]
async fn each_file_of_any_name_is_a_row_or_a_reject() {
    let rows = |root: &str| {
        [
            ("a track", "235 Track 2.0 (clean).jpg"),
            ("two images", "7.jpg"),
            ("upper", "in/deep/er/5.jpe"),
            ("d\u{e9}j\u{e0} vu", "in/d\u{e9}j\u{e0} vu.jfif"),
            ("first", "photo.2020.01.JPEG"),
            ("second", "photo.2020.02.png"),
        ]
        .map(|(caption, path)| format!("{caption} | {root}{path}"))
        .to_vec()
    };
    let rejects = |root: &str| {
        let mut rejects = [
            "no_caption | 9",
            "no_image | 6",
            "not_an_image | 8",
            "unread_file | .hidden.png",
            "unread_file | 6.img",
            "unread_file | 7.png",
            "unread_file | 9.cls",
            "unread_file | README",
        ]
        .map(|reject| reject.replacen(" | ", &format!(" | {root}"), 1))
        .to_vec();
        rejects.sort();
        rejects
    };
    let lab = Lab::new();
    // In the order of directories, in which the second of two images is unread.
    let mut sorted = files();
    sorted.sort_by_key(|(name, _)| *name);
    let members = sorted.iter().map(|(name, bytes)| member(name, bytes));
    let tar = members.chain([END.to_vec()]).collect::<Vec<_>>().concat();
    // A compressed file under the name of a plain one gives the same.
    for bytes in [tar.clone(), gzip(&tar), xz::stored(&tar, 16)] {
        lab.write("0.tar", bytes);
        let (found, refused) = read(&lab.run(&webdataset("")).await).await;
        assert_eq!(found, rows(""));
        assert_eq!(refused, rejects("0.tar/"));
    }
    for (name, bytes) in files() {
        lab.write(&format!("photos/{name}"), bytes);
    }
    let (found, refused) = read(&lab.run(&folder("split_rows = 4")).await).await;
    assert_eq!(found, rows("photos/"));
    let named = |reject: String| match reject.as_str() {
        // A reject of a sample is named by its image.
        "no_caption | photos/9" => "no_caption | photos/9.png".to_string(),
        "not_an_image | photos/8" => "not_an_image | photos/8.tga".to_string(),
        _ => reject,
    };
    assert_eq!(refused, rejects("photos/").into_iter().map(named).collect::<Vec<_>>());
    let ignoring = "ignore = [\"img\", \".CLS\", \"README\"]";
    let (_, refused) = read(&lab.run(&folder(ignoring)).await).await;
    assert_eq!(refused.len(), 6, "{refused:?}");
}

#[tokio::test]
async fn several_captions_are_rows_as_asked() {
    let lab = Lab::new();
    let tar = [
        member("1.png", &png(9, 9)),
        member("1.txt", b"one\ntwo\n"),
        member("2.png", &png(10, 9)),
        member("2.json", br#"{"caption": ["three", "four"]}"#),
        END.to_vec(),
    ];
    lab.write("0.tar", tar.concat());
    let error = lab.run_error(&webdataset("")).await.to_string();
    assert!(error.contains("0.tar/1: 2 captions for one image"), "{error}");
    let each = ["one | 1.png", "two | 1.png", "four | 2.png", "three | 2.png"];
    assert_eq!(read(&lab.run(&webdataset("captions = \"each\"")).await).await.0, each);
    let first = ["one | 1.png", "three | 2.png"];
    assert_eq!(read(&lab.run(&webdataset("captions = \"first\"")).await).await.0, first);
    let lists = "select caption, captions, image['path'] from images order by 3";
    let done = lab.run(&webdataset("captions = \"random\"")).await;
    assert_eq!(done.rows(lists).await, ["one | [one, two] | 1.png", "three | [three, four] | 2.png"]);
    let none = lab.run(&webdataset("captions = \"none\"")).await;
    assert_eq!(read(&none).await, (vec!["- | 1.png".into(), "- | 2.png".into()], Vec::new()));
    let uids = lab.run(&webdataset("captions = \"each\"")).await;
    assert_eq!(uids.rows("select count(distinct uid), count(distinct sha256) from images").await, ["4 | 2"]);
}

#[tokio::test]
async fn values_of_other_types_are_no_texts() {
    let lab = Lab::new();
    for (name, json) in [
        ("1", r#"{"caption": "one", "url": "http://a/1", "image": {"width": 9}}"#),
        ("2", r#"{"caption": 2}"#),
        ("3", r#"{"caption": "three", "url": ["http://a/3"]}"#),
        ("4", r#"{"caption": "four", "page_url": {"a": 1}}"#),
        ("5", r#"{"caption": "five", "url": null, "image_url": "http://a/5", "score": NaN}"#),
        ("6", "{\"caption\": \"half \\ud83d\", \"url\": \"http://a/6\"}"),
    ] {
        lab.write(&format!("photos/{name}.png"), png(9, 9));
        lab.write(&format!("photos/{name}.json"), json);
    }
    let done = lab.run(&folder("")).await;
    let rows = done.rows("select caption, url from images order by url").await;
    assert_eq!(rows, ["one | http://a/1", "five | http://a/5", "half \u{fffd} | http://a/6"]);
    let rejects = ["no_caption | photos/2.png", "wrong_type | photos/3.png", "wrong_type | photos/4.png"];
    assert_eq!(read(&done).await.1, rejects);
}

#[tokio::test]
async fn images_without_captions_are_rows_if_asked() {
    let lab = Lab::new();
    for name in ["1.png", "in/2.png"] {
        lab.write(&format!("photos/{name}"), png(9, 9));
    }
    lab.write("photos/1.txt", "a\u{200b}b\u{ad}c\n");
    let rows = |rows: [&str; 2]| rows.map(String::from).to_vec();
    let (found, rejects) = read(&lab.run(&folder("captions = \"none\"")).await).await;
    assert_eq!((found, rejects.len()), (rows(["- | photos/1.png", "- | photos/in/2.png"]), 0));
    let (found, rejects) = read(&lab.run(&folder("")).await).await;
    assert_eq!(
        (found, rejects),
        (vec!["abc | photos/1.png".into()], vec!["no_caption | photos/in/2.png".into()])
    );
    let (found, _) = read(&lab.run(&folder("keep_invisible = true")).await).await;
    assert_eq!(found, ["a\u{200b}b\u{ad}c | photos/1.png"]);
}

#[tokio::test]
async fn captions_of_an_imagefolder_are_in_its_metadata() {
    let lab = Lab::new();
    let write = |name: &str, bytes: &[u8]| lab.write(&format!("photos/{name}"), bytes);
    for (name, width) in
        [("0.png", 9), ("sub/1.png", 10), ("sub/2.png", 11), ("sub/3.png", 12), ("4.png", 13)]
    {
        write(name, &png(width, 9));
    }
    write("4.txt", b"from its text");
    write(
        "metadata.jsonl",
        concat!(
            "{\"file_name\": \"0.png\", \"text\": \"zero\", \"score\": 0.5}\n\n",
            "{\"file_name\": \"./sub/1.png\", \"text\": \"one\"}\n",
            "{\"file_name\": \"4.png\", \"text\": \"four\", \"score\": 4}\n",
            "{\"file_name\": \"gone.png\", \"text\": \"x\"}\n",
            "{\"file_name\": \"../photos/0.png\", \"text\": \"x\"}\n",
            "{\"text\": \"x\"}\nnonsense\n",
        )
        .as_bytes(),
    );
    write(
        "sub/metadata.csv",
        b"\xef\xbb\xbffile_name,text\n2.png,\"a \"\"quoted\"\"\ncaption\"\n3.png,three,too many\n4.png,\"never closed\n",
    );
    let done = lab.run(&folder("keep = [\"score\"]")).await;
    let rows = done.rows("select caption, score, image['path'] from images order by 3").await;
    let expected = [
        "zero | 0.5 | photos/0.png",
        "from its text | 4 | photos/4.png",
        "one | - | photos/sub/1.png",
        "a \"quoted\"\ncaption | - | photos/sub/2.png",
    ];
    assert_eq!(rows, expected);
    let rejects = [
        "malformed_json | photos/metadata.jsonl line 8",
        "malformed_row | photos/sub/metadata.csv line 4",
        "malformed_row | photos/sub/metadata.csv line 5",
        "no_caption | photos/sub/3.png",
        "no_image | photos/metadata.jsonl line 5",
        "no_image | photos/metadata.jsonl line 6",
        "no_image | photos/metadata.jsonl line 7",
    ];
    assert_eq!(read(&done).await.1, rejects);
    // Two rows about one image are two captions.
    write("sub/metadata.csv", b"file_name,text\n2.png,a\n2.png,b\n3.png,three\n");
    let error = lab.run_error(&folder("")).await.to_string();
    assert!(error.contains("photos/sub/2.png: 2 captions for one image"), "{error}");
    let (rows, _) = read(&lab.run(&folder("captions = \"each\"")).await).await;
    assert_eq!(rows[3..], ["a | photos/sub/2.png", "b | photos/sub/2.png", "three | photos/sub/3.png"]);
    // As Parquet, beside a file that is none.
    fs::remove_file(lab.path("photos/sub/metadata.csv")).unwrap();
    let names: ArrayRef = Arc::new(StringArray::from(vec!["1.png", "2.png", "gone.png"]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec![None, Some("two"), Some("x")]));
    let scores: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 0.25, 1.0]));
    write(
        "sub/metadata.parquet",
        &parquet(vec![("file_name", names), ("text", texts.clone()), ("score", scores)]),
    );
    let done = lab.run(&folder("captions = \"first\"\nkeep = [\"score\"]")).await;
    let rows = done.rows("select caption, score, image['path'] from images order by 3").await;
    assert_eq!(rows[2..], ["one | - | photos/sub/1.png", "two | 0.25 | photos/sub/2.png"]);
    let rejects = read(&done).await.1;
    assert!(rejects.contains(&"no_image | photos/sub/metadata.parquet row 2".to_string()), "{rejects:?}");
    for (bytes, why) in [
        (parquet(vec![("name", texts)]), "damaged: it has no column `file_name`; its columns are name"),
        (b"PAR1".to_vec(), "it ends within its header"),
        (b"file_name\n".to_vec(), "metadata.parquet is plain text, not a Parquet file"),
    ] {
        write("sub/metadata.parquet", &bytes);
        let error = lab.run_error(&folder("")).await.to_string();
        assert!(error.contains(why), "{error}");
    }
    fs::remove_file(lab.path("photos/sub/metadata.parquet")).unwrap();
    for (bytes, why) in [
        (
            &b"image,text\n"[..],
            "metadata.csv: damaged: it has no column `file_name`; its columns are image, text",
        ),
        (b"\xff\xfef\0i\0", "metadata.csv is UTF-16 text, not UTF-8 text"),
    ] {
        write("sub/metadata.csv", bytes);
        let error = lab.run_error(&folder("")).await.to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn labels_are_classes_of_tar_files_and_names_of_directories() {
    let lab = Lab::new();
    let tar = [
        member("1.png", &png(9, 9)),
        member("1.cls", b"7\n"),
        member("2.png", &png(10, 9)),
        member("2.txt", b"text"),
        END.to_vec(),
    ];
    lab.write("0.tar", tar.concat());
    for name in ["cat/1.png", "dog/big/2.png", "3.png"] {
        lab.write(&format!("photos/{name}"), png(9, 9));
    }
    lab.write("photos/cat/1.txt", "a cat");
    let sql = "select image['path'], caption, label from images order by 1";
    let done = lab.run(&webdataset("label = true")).await;
    assert_eq!(done.rows(sql).await, ["1.png | - | 7", "2.png | text | -"]);
    let done = lab.run(&folder("label = true")).await;
    let expected = ["photos/cat/1.png | a cat | cat", "photos/dog/big/2.png | - | big"];
    assert_eq!(done.rows(sql).await, expected);
    assert_eq!(read(&done).await.1, ["no_caption | photos/3.png"]);
}

#[tokio::test]
async fn files_that_are_something_else_stop_the_stage() {
    let lab = Lab::new();
    let zipped_csv = gzip(b"url,caption\n");
    let cases: [(&[u8], &str); 5] = [
        (b"", "0.tar is an empty file, not a tar archive"),
        (b"<!doctype html><p>log in", "0.tar is an HTML page, not a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "0.tar is a Git LFS pointer, not a tar archive"),
        (&zipped_csv, "0.tar is plain text, not a tar archive"),
        (&[1; 2000], "0.tar: damaged: not a tar archive"),
    ];
    for (bytes, expected) in cases {
        lab.write("0.tar", bytes);
        let error = lab.run_error(&webdataset("")).await.to_string();
        assert!(error.contains(expected), "{error}");
    }
    // What was compressed and is cut off loses what is missing, and says so.
    let tar =
        [member("1.png", &png(9, 9)), member("1.txt", b"one"), typed("2.png", b'0', &[7; 3000])].concat();
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(9000)
    .collect();
    let packed = gzip(&[tar, member("3.png", &noise), END.to_vec()].concat());
    lab.write("0.tar", &packed[..packed.len() - 2000]);
    let (rows, rejects) = read(&lab.run(&webdataset("")).await).await;
    assert_eq!(rows, ["one | 1.png"]);
    assert!(rejects.iter().any(|reject| reject.starts_with("truncated_archive")), "{rejects:?}");
}
