//! A list that grows by one URL costs one image, and the result is that of a run from nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use twinlens_testkit::web::{Answer, Site, WebServer, png};

use crate::support::Place;

/// A server with images, one of them missing and one that fails; and pipelines over a list.
struct Fixture {
    place: Place,
    web: WebServer,
    _runtime: tokio::runtime::Runtime,
}

const ROWS: usize = 90;
const MISSING: &str = "/5.png";
const FAILING: &str = "/7.png";

impl Fixture {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let image = png(24, 16);
        let site = Site::new()
            .at("/robots.txt", Answer::status(404))
            .at(MISSING, Answer::status(404))
            .at(FAILING, Answer::status(503))
            .fallback(move |_| Answer::body("image/png", image.clone()))
            .keep_alive();
        let web = runtime.block_on(WebServer::start(site)).unwrap();
        let place = Place::new();
        place.write("queries.txt", "image\n");
        let pipeline = format!(
            r#"
            name = "grows"
            [stages.list]
            kind = "table"
            files = ["list.tsv"]
            [stages.known]
            kind = "match"
            input = "list"
            queries = "./queries.txt"
            [stages.long]
            kind = "filter"
            input = "known"
            where = "caption <> 'image number 11'"
            [stages.images]
            kind = "fetch"
            input = "long"
            split_rows = 20
            http = {{ resolve = {{ "img.test" = "{}" }}, retries = 0, per_host = 50 }}
            "#,
            web.addr()
        );
        place.write("grows.toml", &pipeline);
        Self { place, web, _runtime: runtime }
    }

    /// Writes the list with a line for each number.
    fn list(&self, numbers: impl Iterator<Item = usize>) {
        let lines = numbers.map(|row| format!("http://img.test/{row}.png\timage number {row}\n"));
        self.place.write("list.tsv", &format!("url\tcaption\n{}", lines.collect::<String>()));
    }

    /// Runs in `dir`; gives what was said, and the images that were requested, sorted.
    fn run(&self, dir: &str, more: &[&str]) -> (String, Vec<String>) {
        let before = self.web.paths().len();
        let args = ["run", "grows.toml", "--progress", "never", "--dir", dir];
        let said = self.place.done(&[&args[..], more].concat());
        let mut paths = self.web.paths().split_off(before);
        paths.retain(|path| path.ends_with(".png"));
        paths.sort();
        (said, paths)
    }

    fn shards(&self, dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for table in ["data", "rejects"] {
            let folder = self.place.path(dir).join("images").join(table);
            for file in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap()) {
                found.insert(PathBuf::from(table).join(file.file_name()), fs::read(file.path()).unwrap());
            }
        }
        found
    }

    /// That a run in `dir` is the same as one from nothing.
    fn assert_same(&self, dir: &str) {
        self.run("nothing", &["--fresh"]);
        assert!(self.shards(dir) == self.shards("nothing"), "not as from nothing");
        assert!(!self.place.done(&["status", dir]).contains("NOT ok"));
    }
}

#[test]
fn one_more_url_fetches_one_image() {
    let fixture = Fixture::new();
    fixture.list(0..ROWS);
    let (_, requested) = fixture.run("run", &[]);
    assert_eq!(requested.len(), ROWS - 1, "all but the filtered one");

    // One in the middle, which shifts all others: it is fetched, and what may have passed is tried.
    fixture.list((0..30).chain([1000]).chain(30..ROWS));
    let (said, requested) = fixture.run("run", &[]);
    assert_eq!(requested, ["/1000.png", FAILING], "{said}");
    assert!(said.contains("images: 89 rows are taken over from `images@1`"), "{said}");
    fixture.assert_same("run");

    // Rows that left are gone, others are not asked for again.
    fixture.list((20..50).chain([1000]));
    assert_eq!(fixture.run("run", &[]).1, [] as [&str; 0]);
    fixture.assert_same("run");

    // Another caption is another row; --fresh takes nothing over.
    let list = fs::read_to_string(fixture.place.path("list.tsv")).unwrap();
    fixture.place.write("list.tsv", &list.replace("image number 33", "image of a cat"));
    assert_eq!(fixture.run("run", &[]).1, ["/33.png"]);
    fixture.assert_same("run");
    assert_eq!(fixture.run("run", &["--fresh"]).1.len(), 31);
}

#[test]
fn other_options_and_other_queries_take_nothing_over() {
    let fixture = Fixture::new();
    fixture.list(20..40);
    fixture.run("run", &[]);
    fixture.list(20..41);
    assert_eq!(fixture.run("run", &["--set", "images.lenient=true"]).1.len(), 21);
    fixture.place.write("queries.txt", "image\nnumber\n");
    fixture.list(20..42);
    assert_eq!(fixture.run("run", &["--set", "images.lenient=true"]).1.len(), 22);
}

#[test]
fn a_trial_and_an_interrupted_run_are_taken_over() {
    let fixture = Fixture::new();
    fixture.list(20..60);
    assert_eq!(fixture.run("run", &["--max-rows", "10"]).1.len(), 10);
    assert_eq!(fixture.run("run", &[]).1.len(), 30);
    // Only the splits that were committed are there to be taken over.
    let manifest = fixture.place.path("run/images/manifest.jsonl");
    let text = fs::read_to_string(&manifest).unwrap();
    let begin_and_one: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(&manifest, begin_and_one).unwrap();
    fixture.list(20..61);
    assert_eq!(fixture.run("run", &[]).1.len(), 21);
    fixture.assert_same("run");
}

#[test]
fn a_parquet_file_that_grows_is_an_input_that_grows() {
    let fixture = Fixture::new();
    let place = &fixture.place;
    let text = fs::read_to_string(place.path("grows.toml")).unwrap();
    let options = &text[text.find("split_rows").unwrap()..];
    let stage = "[stages.images]\nkind = \"fetch\"\ninput = \"./list.parquet\"\n";
    place.write("direct.toml", &format!("name = \"direct\"\n{stage}{options}"));
    let mut requested = Vec::new();
    for end in [40, 41] {
        fixture.list(20..end);
        fixture.run("run", &["--until", "list"]);
        place.done(&["sql", "run", "select * from list", "-o", "list.parquet"]);
        let before = fixture.web.paths().len();
        place.done(&["run", "direct.toml", "--progress", "never", "--dir", "direct"]);
        requested = fixture.web.paths().split_off(before);
        requested.retain(|path| path.ends_with(".png"));
    }
    assert_eq!(requested, ["/40.png"]);
}

const VECTORS: &str = r#"
name = "vectors"
[stages.base]
kind = "folder"
folders = ["base"]
[stages.words]
kind = "tokenizer"
input = "base"
vocab_size = 300
[stages.clip]
kind = "train"
input = "base"
tokenizer = "words"
steps = 1
batch_size = 8
model = { embed = 16, vision = { image_size = 32, patch = 16, width = 32, layers = 2, heads = 2 }, text = { context = 12, width = 32, layers = 2, heads = 2 } }
[stages.photos]
kind = "folder"
folders = ["photos"]
[stages.vectors]
kind = "embed"
input = "photos"
model = "clip"
captions = "caption"
text_embeddings = true
split_rows = 16
batch_size = 8
"#;

/// One more image is encoded alone, and the result has the bits of a run from nothing.
#[test]
fn one_more_image_is_embedded_alone() {
    let place = Place::new();
    place.write("vectors.toml", VECTORS);
    let photo = |folder: &str, number: u32, caption: &str| {
        fs::create_dir_all(place.path(folder)).unwrap();
        fs::write(place.path(&format!("{folder}/{number:03}.png")), png(20 + number, 30)).unwrap();
        place.write(&format!("{folder}/{number:03}.txt"), caption);
    };
    (0..12).for_each(|number| photo("base", number, "a thing"));
    (0..40)
        .filter(|number| *number != 17)
        .for_each(|number| photo("photos", number, &format!("photo {number}")));
    let run = |dir: &str, set: &[&str]| {
        let args = ["run", "vectors.toml", "--progress", "never", "--dir", dir];
        place.done(&[&args[..], set].concat())
    };
    let rows = |dir: &str, columns: &str| {
        let columns =
            format!("{columns}, array_to_string(embedding, ' '), array_to_string(text_embedding, ' ')");
        place.ask(dir, &format!("select {columns} from vectors order by uid"))
    };
    let exact = |dir: &str| rows(dir, "uid, caption, image_sha256, clip_score, embedding_model");
    run("run", &[]);
    let before = exact("run");
    assert_eq!(before.len(), 39);

    photo("photos", 17, "one more");
    let said = run("run", &[]);
    assert!(said.contains("vectors: 39 rows are taken over from `vectors@1`"), "{said}");
    let after = exact("run");
    assert_eq!(before.iter().filter(|row| after.contains(row)).count(), 39);
    run("nothing", &[]);
    assert_eq!(after, exact("nothing"));

    // Another caption is another row; another option takes nothing over.
    photo("photos", 30, "another text");
    let said = run("run", &[]);
    assert!(said.contains("vectors: 39 rows are taken over"), "{said}");
    run("nothing", &["--fresh"]);
    assert_eq!(exact("run"), exact("nothing"));
    // The run has a tokenizer, so captions have lengths in tokens.
    let counted = "select min(token_count(caption)), max(token_count(caption, 'words')) from photos";
    let counts = place.ask("run", counted);
    let counts: Vec<u32> = counts[0].split(',').map(|count| count.parse().unwrap()).collect();
    assert!(3 <= counts[0] && counts[0] < counts[1] && counts[1] < 20, "{counts:?}");
    place.done(&["export", "run/photos", "out", "--to", "parquet"]);
    let card = fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains(&format!("the longest has {}.", counts[1])), "{card}");
    photo("photos", 50, "the last");
    let said = run("run", &["--set", "vectors.dtype=f16"]);
    assert!(!said.contains("taken over"), "{said}");
}
