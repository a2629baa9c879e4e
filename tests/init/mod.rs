//! `twinlens init` on the layouts that tools write, and the commands of a first day: each pipeline
//! runs as it was written.

mod layouts;

use std::fs;

use layouts::Layout;
use twinlens_testkit::{Answer, Site, WebServer};

use crate::support::{Place, stderr, stdout};

/// Writes a layout, and a pipeline for it; gives what was said and the pipeline.
fn init(layout: Layout, more: &[&str]) -> (Place, String, String) {
    let place = Place::new();
    let data = layout(&place, &layouts::pairs());
    let mut args = vec!["init", data.as_str(), "-o", "mine.toml"];
    args.extend(more);
    let said = place.done(&args);
    let pipeline = fs::read_to_string(place.path("mine.toml")).unwrap();
    (place, said, pipeline)
}

/// Runs the pipeline in a few seconds: fewer steps of a smaller model.
fn run(place: &Place, pipeline: &str) -> String {
    let name = pipeline.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"');
    let mut args = vec!["run", "mine.toml", "--dir", "out"];
    if pipeline.contains("[vars]") {
        args.extend(["--set", "steps=2", "--set", "batch_size=4", "--set", "model=vit-tiny-32"]);
    }
    let output = place.output(&args);
    assert!(output.status.success(), "{name}\n{pipeline}\n{}", stderr(&output));
    stdout(&output)
}

/// Rows of the source that are refused for another reason than what the layout has beside images.
const UNEXPECTED: &str = "select reject_code, count(*) from rejects \
    where reject_stage = 'pairs' and reject_code not in ('no_image', 'unread_file') group by 1";

/// Trains and evaluates on a layout; `expected` is in what `init` says.
fn trained(layout: Layout, more: &[&str], expected: &str) {
    let (place, said, pipeline) = init(layout, more);
    assert!(said.contains(expected), "{expected}\n{said}");
    run(&place, &pipeline);
    let steps = place.ask("out", "select max(step) from clip");
    assert_eq!(steps, ["2"]);
    let evaluated = place.ask("out", "select count(*) from accuracy where n > 0 and value between 0 and 1");
    assert_ne!(evaluated, ["0"], "{pipeline}");
    place.done(&["report", "out", "-o", "report.html"]);
    let rejected = place.ask("out", UNEXPECTED);
    assert_eq!(rejected, Vec::<String>::new(), "{pipeline}");
}

macro_rules! layouts {
    ($($name:ident: $more:expr, $expected:expr;)*) => {
        $(#[test]
        fn $name() {
            trained(layouts::$name, $more, $expected);
        })*
    };
}

layouts! {
    open_clip_csv: &[], "a table of 30 rows with paths of images and captions";
    captions_csv: &[], "the paths start in ./flickr/Images";
    jsonl: &[], "a table of 30 rows with paths of images and captions";
    parquet_of_paths: &[], "a table of 30 rows with paths of images and captions";
    hub_file: &[], "Parquet of 30 rows with images in `image` and captions in `text`";
    hub_splits: &[], "Parquet of 24 rows with images in `image` and captions in `text`; evaluated on ./small-set/data/test-00000-of-00001.parquet";
    lists_of_captions: &["--caption", "sayings"], "images in `picture` and captions in `sayings`";
    img2dataset_parquet: &[], "Parquet of 30 rows with images in `jpg` and captions in `caption`";
    img2dataset_tars: &[], "tar files of 30 samples (webdataset)";
    one_tar: &[], "tar files of 30 samples (webdataset)";
    img2dataset_files: &[], "a directory of 30 images with captions in files beside them";
    imagefolder_csv: &[], "a directory of about 30 images with captions in a metadata file";
    imagefolder_jsonl: &["--caption", "saying"], "a directory of about 30 images with captions in a metadata file";
    sidecars: &[], "a directory of 30 images with captions in files beside them";
    class_folders: &[], "30 images of 3 classes (flags, food and drink, objects); a fifth is held out";
    class_splits: &[], "30 images of 3 classes (flags, food and drink, objects); trained on `train`, evaluated on `val`";
    hub_labels: &[], "30 images of 3 classes";
}

#[test]
fn images_alone() {
    let (place, said, pipeline) = init(layouts::images_alone, &[]);
    assert!(said.contains("a directory of 30 images without captions"), "{said}");
    assert!(run(&place, &pipeline).contains("30"));
}

#[test]
fn a_table_of_urls_is_fetched_from_ones_own_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pairs = layouts::pairs();
    let site = pairs.iter().fold(Site::new(), |site, pair| {
        site.at(&format!("/{}.png", pair.name), Answer::body("image/png", pair.png))
    });
    let server = runtime.block_on(WebServer::start(site)).unwrap();
    let place = Place::new();
    let rows = pairs
        .iter()
        .map(|pair| format!("{},\"{}\"\n", server.url(&format!("/{}.png", pair.name)), pair.caption));
    place.write("urls.csv", &format!("URL,TEXT\n{}", rows.collect::<String>()));
    let said = place.done(&["init", "urls.csv", "-o", "mine.toml"]);
    assert!(said.contains("a table of 30 rows with image URLs and captions"), "{said}");
    run(&place, &fs::read_to_string(place.path("mine.toml")).unwrap());
    assert_eq!(place.ask("out", "select count(*) from pairs"), ["30"]);
}

#[test]
fn a_written_pipeline_trains_without_any_edit() {
    let place = Place::new();
    let data = layouts::sidecars(&place, &layouts::pairs());
    place.done(&["init", &data]);
    let said = place.done(&["run", "my-photos.toml"]);
    assert!(said.contains("image_retrieval_recall@1") && said.contains("1/1 tests passed"), "{said}");
    // Nothing is overwritten.
    let again = place.output(&["init", &data]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("my-photos.toml exists already"), "{}", stderr(&again));
    let printed = place.output(&["init", &data, "-o", "-"]);
    assert!(stdout(&printed).contains("[stages.clip]"));
}

#[test]
fn what_is_not_recognised_is_said() {
    let place = Place::new();
    let pairs = layouts::pairs();
    place.write("empty/notes.md", "-");
    place.write("two/a.csv", "url,caption\nhttp://a.example/1.png,a\n");
    place.write("two/b.tsv", "url\tcaption\nhttp://a.example/1.png\ta\n");
    place.write("lost.csv", "image_path,caption\nnowhere/1.png,a cat\n");
    place.write("words.csv", "a,b\n1,2\n");
    place.write("mine.toml", "name = \"x\"\n");
    place.write("page.html", "<!doctype html><p>");
    fs::create_dir_all(place.path("few")).unwrap();
    for pair in &pairs[..3] {
        fs::write(place.path("few").join(format!("{}.png", pair.name)), pair.png).unwrap();
        place.write(&format!("few/{}.txt", pair.name), &pair.caption);
    }
    layouts::hub_file(&place, &pairs);
    let cases: [(&[&str], &str); 11] = [
        (&["nowhere"], "nowhere does not exist"),
        (&["empty"], "empty is not recognised: it has 1 .md"),
        (&["two"], "tables of several kinds: .csv and .tsv"),
        (&["lost.csv"], "the image `nowhere/1.png` of the first row does not exist"),
        (&["words.csv"], "--caption COLUMN"),
        (&["mine.toml"], "is a pipeline or a set already"),
        (&["page.html"], "page.html is"),
        (&["empty/notes.md"], "empty/notes.md is plain text"),
        (&["few"], "too few to train with"),
        (&["hub.parquet", "--caption", "txet"], "did you mean `text`?"),
        (&["few/grapes.png"], "is one image"),
    ];
    for (args, expected) in cases {
        let output = place.output(&[&["init"], args, &["-o", "out.toml"]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {expected}\n{}", stderr(&output));
        assert!(!place.path("out.toml").exists());
    }
}

#[test]
fn images_are_embedded_and_shown_in_one_line() {
    let (place, _, pipeline) = init(layouts::sidecars, &[]);
    run(&place, &pipeline);
    place.done(&["embed", "My Photos", "-o", "vectors.parquet", "--weights", "out/clip"]);
    let rows = stdout(&place.output(&["show", "vectors.parquet", "--format", "csv", "-n", "500"]));
    assert_eq!(rows.lines().count(), 31, "{rows}");
    assert!(rows.lines().next().unwrap().contains("clip_score"), "{rows}");
    let found = place.output(&[
        "search",
        "vectors.parquet",
        "a picture of grapes",
        "--model",
        "out/clip",
        "-k",
        "2",
        "--format",
        "csv",
    ]);
    assert_eq!(stdout(&found).lines().count(), 3, "{}", stderr(&found));
    place.done(&["show", "out/pairs", "-o", "page.html", "--where", "caption like '%grapes%'"]);
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    assert!(page.contains("a picture of grapes") && page.matches("<img").count() == 1, "{page}");
    let table = stdout(&place.output(&["show", "out/pairs", "-n", "1"]));
    assert!(table.contains("caption") && table.lines().count() >= 3, "{table}");
}

/// Runs go to `runs/` of the working directory, which may be the data.
#[test]
fn run_directories_are_no_data() {
    let place = Place::new();
    let data = layouts::sidecars(&place, &layouts::pairs());
    let at = |args: &[&str]| place.command(args).current_dir(place.path(&data)).output().unwrap();
    let pipeline =
        "name = \"own\"\n[stages.pairs]\nkind = \"folder\"\nfolders = [\".\"]\nignore = [\"toml\"]\n";
    fs::write(place.path(&data).join("own.toml"), pipeline).unwrap();
    let first = at(&["run", "own.toml"]);
    assert!(first.status.success(), "{}", stderr(&first));
    let again = stderr(&at(&["run", "own.toml"]));
    assert!(again.contains("pairs") && again.contains("reused"), "{again}");
    let rejects = stdout(&at(&["sql", "runs/own", "--format", "csv", "select count(*) from pairs.rejects"]));
    assert_eq!(rejects.lines().last(), Some("0"), "{rejects}");

    let said = stderr(&at(&["init", ".", "-o", "new.toml"]));
    assert!(said.contains("a directory of 30 images with captions in files beside them"), "{said}");
    assert!(said.contains("not read: the run directory runs/own"), "{said}");
    let pipeline = fs::read_to_string(place.path(&data).join("new.toml")).unwrap();
    assert!(!pipeline.contains("parquet"), "{pipeline}");
    let refused = stderr(&at(&["init", "runs/own", "-o", "other.toml"]));
    assert!(refused.contains("runs/own is a run directory"), "{refused}");
    // Directories that are not runs but contain them.
    for command in ["status", "prune", "report", "watch"] {
        for (dir, run) in [(".", "./runs/own"), ("runs", "runs/own")] {
            let output = at(&[command, dir]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{command} {dir}: {said}");
            assert!(said.contains(&format!("it holds runs: {run}")), "{command} {dir}: {said}");
        }
    }
}
