//! `twinlens eval` and `twinlens search` with a model of random weights.

use std::fs;

use twinlens_gallery::Catalog;
use twinlens_model::{Clip, ClipConfig, Objective, TOKENIZER_FILE, TextConfig, Tokenizer, VitConfig};

use crate::support::{Place, stderr, stdout, training};

/// A user-defined set of two classes of emoji, and a model.
fn place() -> Place {
    let place = Place::new();
    let catalog = Catalog::load();
    for (slug, count) in [("food-and-drink", 20), ("flags", 15)] {
        let group = catalog.groups.iter().find(|group| group.slug == slug).unwrap();
        let folder = place.path("data").join("emoji").join(slug);
        fs::create_dir_all(&folder).unwrap();
        for concept in group.concepts.iter().take(count) {
            fs::write(folder.join(format!("{}.png", concept.slug)), concept.variants[0].png).unwrap();
        }
    }
    fs::write(place.path("data/emoji/flags/broken.png"), b"no image").unwrap();
    place.write(
        "emoji.toml",
        r#"
name = "emoji"
title = "Two groups of emoji"
classes = [{ name = "flag", label = "flags" }, { name = "food or drink", label = "food-and-drink" }]
templates = ["an emoji of a {c}."]
licence = "CC-BY-4.0"
source = "https://github.com/jdecked/twemoji"
how_to_get = "it is made by a test"
"#,
    );
    let model = place.path("model");
    fs::create_dir(&model).unwrap();
    let captions = ["a photo of a flag", "an emoji of food or drink"].map(String::from);
    Tokenizer::train(captions.into_iter(), 300).unwrap().save(&model.join(TOKENIZER_FILE)).unwrap();
    let vision = VitConfig { image_size: 16, patch: 8, width: 16, layers: 1, heads: 2 }.into();
    let text = TextConfig { context: 24, vocab: 300, width: 16, layers: 1, heads: 2 };
    let config = ClipConfig {
        embed: 8,
        vision,
        text,
        activation: Default::default(),
        objective: Objective::CONTRASTIVE,
    };
    Clip::new(config, 5).unwrap().save(&model).unwrap();
    place
}

const EVAL: [&str; 9] =
    ["eval", "--weights", "model", "--sets", "./emoji.toml", "--data", "data", "--dir", "out"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    EVAL.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn new_prompts_reuse_embeddings_and_images_are_found() {
    let place = place();
    let first = place.output(&with(&["--prompts", "{}", "--prompts", "own", "--format", "csv"]));
    assert!(first.status.success(), "{}", stderr(&first));
    let rows: Vec<String> = stdout(&first).lines().map(String::from).collect();
    assert_eq!(rows[0], "set,split,task,prompts,metric,value,ci_low,ci_high,chance,n");
    let top1: Vec<&String> = rows.iter().filter(|row| row.contains(",top1,")).collect();
    assert_eq!(top1.len(), 2, "{rows:?}");
    assert!(top1.iter().all(|row| row.starts_with("emoji,") && row.ends_with(",0.5,35")), "{top1:?}");
    let manifest = || fs::read(place.path("out/emoji_vectors/manifest.jsonl")).unwrap();
    let (before, began) = (manifest(), stderr(&first));
    assert!(began.contains("emoji_vectors") && began.contains("zero_shot"), "{began}");
    // Other prompts, from a file: the embeddings are reused.
    place.write("mine.txt", "a {c}\n\nthe {c}\n");
    let second = place.output(&with(&["--prompts", "@mine.txt", "--format", "csv"]));
    assert!(second.status.success(), "{}", stderr(&second));
    assert_eq!(stdout(&second).lines().filter(|row| row.contains(",mine,top1,")).count(), 1);
    assert_eq!(manifest(), before);
    // The same command again: everything is reused, and the table is the same.
    let third = place.output(&with(&["--prompts", "@mine.txt", "--format", "csv"]));
    assert_eq!(stdout(&third), stdout(&second));

    // An image finds itself.
    let image = "data/emoji/flags/chequered-flag.png";
    let found = place.output(&[
        "search",
        "out",
        "--image",
        image,
        "-k",
        "2",
        "--columns",
        "place,class_name",
        "--format",
        "csv",
    ]);
    assert!(found.status.success(), "{}", stderr(&found));
    let found: Vec<String> = stdout(&found).lines().map(String::from).collect();
    assert_eq!((found.len(), found[0].as_str()), (3, "cosine,place,class_name"));
    let first = found[1].split(',').collect::<Vec<_>>();
    assert!(
        first[0].parse::<f32>().unwrap() > 0.9999
            && first[1].contains("chequered-flag")
            && first[2] == "flag",
        "{found:?}"
    );
    let table = place.done(&["search", "out/emoji_vectors", "a flag", "--model", "model"]);
    assert!(table.trim_start().starts_with("cosine"), "{table}");
}

/// Also the names of the evaluation's own stages, and of the stage that embeds another set.
#[test]
fn sets_may_have_any_name() {
    let place = place();
    let names = ["results", "zero_shot", "pets_vectors", "pets"];
    for (name, class) in names.iter().flat_map(|name| ["flags", "food-and-drink"].map(|class| (name, class)))
    {
        let (from, to) = (place.path("data/emoji").join(class), place.path(name).join(class));
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(from).unwrap().map(|file| file.unwrap()) {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
    let sets = names.map(|name| format!("./{name}/"));
    let mut args = vec!["eval", "--weights", "model", "--prompts", "a {}", "--dir", "out", "--format", "csv"];
    args.extend(sets.iter().flat_map(|set| ["--sets", set]));
    let output = place.output(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let rows = stdout(&output);
    for name in names {
        let is_of_set = |row: &&str| row.starts_with(&format!("{name},")) && row.contains(",top1,");
        assert_eq!(rows.lines().filter(is_of_set).count(), 1, "{rows}");
    }
}

#[test]
fn user_errors_have_hints() {
    let place = place();
    let fails = |args: &[&str], expected: &str| {
        let output = place.output(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
    };
    fails(&with(&["--prompts", "a photo"]), "neither a template nor a template set");
    fails(&["eval", "--weights", "nowhere", "--data", "data"], "nowhere");
    fails(&["eval", "--weights", "model", "--data", "data", "--sets", "cifar-10"], "did you mean `cifar10`?");
    fails(
        &["eval", "--weights", "model", "--data", "data", "--sets", "cifar10"],
        "no evaluation set is in data",
    );
    place.done(&with(&["--prompts", "{}"]));
    fails(&["search", "out", "a flag", "--dataset", "emoji_vector"], "did you mean `emoji_vectors`?");
    fails(&["search", "out", "a flag", "--columns", "plaec"], "did you mean `place`?");
    fails(&["search", "out", "--image", "data/emoji/flags/broken.png"], "broken.png");
    fails(&["search", "out"], "required");
    fails(&["search", "model", "a flag"], "is not a run directory");
    // A set that exists, and one that does not.
    let sets = "./emoji.toml,cifar10";
    let both = place.done(&[
        "eval",
        "--weights",
        "model",
        "--sets",
        sets,
        "--data",
        "data",
        "--dir",
        "out",
        "--prompts",
        "{}",
    ]);
    assert!(both.contains("not in data: cifar10"), "{both}");
}

#[test]
fn mistakes_in_the_data_point_at_the_argument() {
    let place = place();
    for (class, from) in [("flags", "chequered-flag"), ("flags ", "crossed-flags")] {
        let folder = place.path("data/twice").join(class);
        fs::create_dir_all(&folder).unwrap();
        let image = place.path("data/emoji/flags").join(format!("{from}.png"));
        fs::copy(image, folder.join("1.png")).unwrap();
    }
    let declared = fs::read_to_string(place.path("emoji.toml")).unwrap();
    let classes = declared.lines().find(|line| line.starts_with("classes")).unwrap();
    let twice = declared
        .replace("name = \"emoji\"", "name = \"twice\"")
        .replace(classes, "classes = \"from the data\"\nclass_count = 2");
    place.write("twice.toml", &twice);
    let output = place.output(&["eval", "--weights", "model", "--sets", "twice.toml", "--data", "data"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for expected in ["occurs twice", "--> --sets:1:1", "1 | twice.toml", "in the command line"] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn filters_can_use_scores_of_a_model_of_the_same_run() {
    let place = Place::new();
    place.write("pairs.csv", "url,caption\nhttp://a.example/1.png,a flag\n");
    let pipeline = r#"
name = "scores"
[stages.pairs]
kind = "table"
files = ["pairs.csv"]
[stages.images]
kind = "fetch"
input = "pairs"
[stages.words]
kind = "tokenizer"
input = "images"
[stages.clip]
kind = "train"
input = "images"
tokenizer = "words"
model = "vit-tiny-48"
epochs = 1
[stages.vectors]
kind = "embed"
input = "images"
model = "clip"
captions = "caption"
WIDTH
[stages.good]
kind = "filter"
input = "vectors"
where = "clip_score > 0.25 and char_length(url) > 3"
[stages.alike]
kind = "sql"
query = "select a.uid, cosine(a.embedding, b.embedding) as alike from good a cross join good b where a.uid < b.uid"
"#;
    place.write("scores.toml", &pipeline.replace("WIDTH", ""));
    place.done(&["check", "scores.toml"]);
    place.write("scores.toml", &pipeline.replace("WIDTH", "width = 7"));
    let wrong = place.output(&["check", "scores.toml"]);
    assert!(stderr(&wrong).contains("the embeddings of `clip` have"), "{}", stderr(&wrong));
}

/// An evaluation of a checkpoint of a training on emoji.
const EARLY: &str = r#"
[stages.early]
kind = "zero-shot"
model = "clip@step-2"
sets = ["./emoji.toml"]
data = "./data"
"#;

const ELSEWHERE: &str = r#"
name = "elsewhere"

[stages.early]
kind = "zero-shot"
model = "./run/clip@step-2"
sets = ["./emoji.toml"]
data = "./data"
"#;

#[test]
fn any_checkpoint_is_evaluated_also_of_a_training_that_runs() {
    let place = place();
    training::write_images(&place);
    let pipeline = |steps: u32| {
        let options = "schedule = \"constant\"\nwarmup = 0\ncheckpoint_every = 2\nkeep_every = 2";
        training::pipeline("training", &format!("{options}\nsteps = {steps}"))
    };
    place.write("long.toml", &pipeline(1_000_000));
    place.write("short.toml", &format!("{}{EARLY}", pipeline(4)));
    place.write("elsewhere.toml", ELSEWHERE);
    let eval = |weights: &str| {
        let args = ["eval", "--sets", "./emoji.toml", "--data", "data", "--format", "csv", "--weights"];
        place.output(&[&args[..], &[weights]].concat())
    };
    let accuracy = |weights: &str| {
        let output = eval(weights);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).lines().find(|row| row.contains(",top1,")).unwrap().to_string()
    };
    let mut child =
        place.command(&["run", "long.toml", "--progress", "never", "--dir", "long"]).spawn().unwrap();
    let kept = || {
        let files = fs::read_dir(place.path("long/clip").join("work/checkpoints")).into_iter().flatten();
        files.filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with("kept-")).count()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while kept() < 2 {
        assert!(std::time::Instant::now() < deadline, "no weights were kept");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let running = accuracy("long/clip@step-2");
    accuracy("long/clip");
    assert!(child.try_wait().unwrap().is_none(), "it does not run any more");
    child.kill().unwrap();
    child.wait().unwrap();

    place.done(&["run", "short.toml", "--progress", "never", "--dir", "run"]);
    place.done(&["run", "elsewhere.toml", "--progress", "never", "--dir", "elsewhere"]);
    let top1 = "select value from early where metric = 'top1'";
    assert_eq!(place.ask("run", top1), place.ask("elsewhere", top1));
    assert_eq!(accuracy("run/clip@step-2"), running, "the same steps give the same weights");
    assert_eq!(accuracy("run/clip@step-4"), accuracy("run/clip"));
    let output = eval("run/clip@step-3");
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("no weights of step 3") && message.contains("steps 2, 4"), "{message}");
}
