//! Tables of local images: paths instead of URLs, from the list to the stored images.

use std::os::unix::fs::symlink;

use twinlens_testkit::{Answer, Site, WebServer, web::png};

use crate::support::{FinishedRun, Lab, faults, stage};

/// A lab whose directory `photos` has a list and images, beside which there is a secret one.
fn photos() -> Lab {
    let lab = Lab::new();
    lab.write("photos/a.png", png(64, 32));
    lab.write("photos/deep/b c.png", png(96, 32));
    lab.write("photos/tiny.png", png(4, 4));
    lab.write("photos/page.html", "<html><body>not an image</body></html>");
    lab.write("photos/long.png", vec![0_u8; 300_000]);
    lab.write("secret/s.png", png(40, 40));
    symlink("../secret/s.png", lab.path("photos/out.png")).unwrap();
    symlink("deep", lab.path("photos/same")).unwrap();
    let (secret, inside) = (lab.path("secret/s.png"), lab.path("photos/a.png"));
    lab.write(
        "photos/pairs.csv",
        format!(
            "image,caption\na.png,one\n./deep/b c.png,two\nsame/b c.png,linked\n{},absolute\n\
             file://{},a URL\na.png,again\ntiny.png,tiny\npage.html,page\nlong.png,long\ngone.png,gone\n\
             deep,directory\nout.png,link\n../secret/s.png,up\n{},elsewhere\n/dev/zero,device\n\
             file:///etc/passwd,passwords\nfile://other/a.png,other\n",
            inside.display(),
            inside.display(),
            secret.display(),
        ),
    );
    lab
}

const FETCH: &str = "input = \"pairs\"\nlimits = { min_side = 8, max_bytes = 200000 }\nsplit_rows = 4";

fn pipeline(table: &str, fetch: &str) -> String {
    stage("pairs", "table", table) + &stage("images", "fetch", fetch)
}

const KEPT: &str = "select url, caption, original_width, length(sha256) from images order by caption";
const REJECTS: &str = "select caption, reject_stage, reject_code from images.rejects union all \
                       select caption, reject_stage, reject_code from pairs.rejects";

async fn rejects(done: &FinishedRun) -> Vec<String> {
    let mut rejects = done.rows(REJECTS).await;
    rejects.sort();
    rejects.dedup();
    rejects
}

#[tokio::test]
async fn images_of_a_list_are_read_from_its_folder() {
    let lab = photos();
    let done = lab.run(&pipeline("files = [\"photos/*.csv\"]", FETCH)).await;
    let kept = [
        "photos/a.png | a URL | 64 | 64",
        "photos/a.png | absolute | 64 | 64",
        "photos/a.png | again | 64 | 64",
        "photos/same/b c.png | linked | 96 | 64",
        "photos/a.png | one | 64 | 64",
        "photos/deep/b c.png | two | 96 | 64",
    ];
    assert_eq!(done.rows(KEPT).await, kept);
    let refused = [
        "device | pairs | outside_root",
        "directory | images | not_a_file",
        "elsewhere | pairs | outside_root",
        "gone | images | file_not_found",
        "link | pairs | outside_root",
        "long | images | too_many_bytes",
        "other | pairs | outside_root",
        "page | images | not_an_image",
        "passwords | pairs | outside_root",
        "tiny | images | too_small",
        "up | pairs | outside_root",
    ];
    assert_eq!(rejects(&done).await, refused);
    let unnamed = "select count(*) from images.rejects where reject_detail not like '%' || url || '%'";
    assert_eq!(done.rows(unnamed).await, ["0"], "each detail names its file");
}

#[tokio::test]
async fn an_interrupted_run_gives_the_same_dataset() {
    let stages = pipeline("files = [\"photos/pairs.csv\"]", FETCH);
    let (whole, lab) = (photos(), photos());
    // The absolute paths of the list are those of its lab.
    lab.write(
        "photos/pairs.csv",
        "image,caption\na.png,one\ngone.png,x\ndeep/b c.png,two\ntiny.png,y\nout.png,z\n",
    );
    whole.write("photos/pairs.csv", std::fs::read(lab.path("photos/pairs.csv")).unwrap());
    let expected = whole.run(&stages).await.files();
    for stops in 0.. {
        assert!(stops < 20, "each run commits a split");
        if let Some(done) = lab.run_until(1, &stages).await {
            assert_eq!(done.files(), expected);
            break;
        }
    }
}

/// Options of the table, options of the fetch, the list, and what a row gives: its URL, or the
/// stage and code of its reject.
type Case = (&'static str, &'static str, &'static str, &'static str);

#[tokio::test]
async fn the_options_say_which_folders_are_read() {
    let cases: &[Case] = &[
        ("", "", "photos/a.png", "photos/a.png"),
        ("", "local = [\"photos\"]", "./photos/a.png", "photos/a.png"),
        ("", "local = [\"secret\"]", "photos/a.png", "images | outside_root"),
        ("", "local = []", "photos/a.png", "images | outside_root"),
        ("root = \"photos\"", "", "a.png", "photos/a.png"),
        ("root = \"photos\"", "", "photos/a.png", "images | file_not_found"),
        ("root = \"photos\"", "", "../secret/s.png", "pairs | outside_root"),
        // Out of what the fetch may read, though below the folder of the list.
        ("root = \"..\"", "", "elsewhere.png", "images | file_not_found"),
        ("", "", "secret/%2e%2e/s.png", "images | file_not_found"),
        ("", "", "a:b.png", "images | scheme"),
        ("", "", "./a:b.png", "images | file_not_found"),
        ("", "", "www.example.com/a.png", "images | file_not_found"),
    ];
    for (table, fetch, path, expected) in cases {
        let lab = photos();
        // A row that no folder matters to: an input of which nothing can be used is an error.
        let other = "{\"file_name\": \"s3://bucket/a.png\", \"text\": \"other\"}";
        lab.write("list.jsonl", format!("{{\"file_name\": \"{path}\", \"text\": \"x\"}}\n{other}\n"));
        let stages =
            pipeline(&format!("files = [\"list.jsonl\"]\n{table}"), &format!("input = \"pairs\"\n{fetch}"));
        let done = lab.run(&stages).await;
        let mut found = done.rows("select url from images").await;
        let refused = rejects(&done).await;
        found.extend(refused.iter().filter_map(|row| Some(row.strip_prefix("x | ")?.to_string())));
        assert_eq!(found, [*expected], "{table} {fetch} {path}");
    }
}

#[tokio::test]
async fn other_lists_name_no_local_files() {
    let lab = photos();
    let list = format!(
        "url,caption\nphotos/a.png,relative\n{},absolute\ns3://bucket/a.png,other\n",
        lab.path("photos/a.png").display()
    );
    let web = WebServer::start(Site::new().at("/list.csv", Answer::body("text/csv", list))).await.unwrap();
    let lab = lab.host("lists.test", &web);
    let done = lab.run(&pipeline("files = [\"http://lists.test/list.csv\"]", "input = \"pairs\"")).await;
    let refused =
        ["absolute | pairs | outside_root", "other | images | scheme", "relative | pairs | outside_root"];
    assert_eq!(rejects(&done).await, refused);
    // With a folder that it may name.
    let table = "files = [\"http://lists.test/list.csv\"]\nroot = \".\"";
    let done = lab.run(&pipeline(table, "input = \"pairs\"")).await;
    assert_eq!(done.rows("select url from images").await, ["photos/a.png", "photos/a.png"]);
}

#[tokio::test]
async fn a_folder_that_is_missing_is_an_error() {
    let lab = photos();
    let cases = [
        ("files = [\"photos/pairs.csv\"]\nroot = \"fotos\"", "input = \"pairs\"", "fotos"),
        (
            "files = [\"photos/pairs.csv\"]",
            "input = \"pairs\"\nlocal = [\"photos/a.png\"]",
            "not a directory",
        ),
    ];
    for (table, fetch, expected) in cases {
        let error = lab.run_error(&pipeline(table, fetch)).await.to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(faults(&pipeline(cases[0].0, cases[0].1)), None, "`check` does no I/O");
}
