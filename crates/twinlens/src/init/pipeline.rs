//! The text of the pipeline.

use super::found::{Classes, Found, Material, Pairs, quoted};
use crate::errors::Failure;

/// With fewer, no batch has negatives, or nothing can be held out.
const FEWEST: u64 = 8;
/// Most images that the evaluation holds out.
const MOST_HELD_OUT: u64 = 500;

/// The sizes of a training that takes a minute or two on a CPU.
struct Sizes {
    held_out: u64,
    batch_size: u64,
    steps: u64,
}

impl Sizes {
    /// For `pairs` pairs, of which a part is held out; `distinct` is the number of different
    /// captions, if that is known: the captions of a batch should differ.
    fn new(pairs: u64, distinct: Option<u64>) -> Self {
        let held_out = (pairs / 5).clamp(1, MOST_HELD_OUT);
        let train = pairs.saturating_sub(held_out).max(2);
        let most = distinct.unwrap_or(128).min(train / 2).clamp(2, 128);
        let batch_size = 1 << most.ilog2();
        Self { held_out, batch_size, steps: (train * 20 / batch_size).clamp(40, 400) }
    }
}

pub(super) fn text(found: &Found, name: &str, data: &str) -> Result<String, Failure> {
    let head = format!(
        "# {}\n# Written by `twinlens init` for {}.\n#\n#     twinlens run {name}.toml\n#     twinlens report runs/{name}\n\
         #\n# `twinlens stages KIND` describes the options of a stage.\nname = {}\nseed = 17\n",
        one_line(&found.what),
        one_line(data),
        quoted(name)
    );
    let body = match &found.material {
        Material::Images(stages) => images(stages),
        Material::Pairs(pairs) => {
            enough(found, found.count.rows)?;
            self::pairs(pairs, found.count.rows)
        }
        Material::Classes(classes) => {
            enough(found, found.count.rows)?;
            self::classes(classes, found.count.rows)
        }
    };
    Ok(format!("{head}\n{body}"))
}

fn enough(found: &Found, rows: u64) -> Result<(), Failure> {
    if rows >= FEWEST {
        return Ok(());
    }
    let message = format!("{}: too few to train with", found.what);
    Err(Failure::user(message).hint(format!("a training needs at least {FEWEST} images")))
}

/// Comments are lines.
fn one_line(text: &str) -> String {
    crate::text::one_line(text)
}

fn vars(sizes: &Sizes, with_held_out: bool, share: Option<f64>) -> String {
    let mut text = String::from("[vars]\n");
    if let Some(share) = share {
        text += &format!("share = {share:<29}# of the rows; 1 is all of them\n");
    }
    if with_held_out {
        text += &format!("held_out = {:<26}# images for the evaluation\n", sizes.held_out);
    }
    text += &format!("model = {:<29}# `twinlens model list` has larger ones\n", quoted("vit-tiny-48"));
    text += &format!(
        "batch_size = {:<24}# larger is better: each caption has more negatives\n",
        sizes.batch_size
    );
    text + &format!(
        "steps = {:<29}# a toy that trains in a minute or two; for a real model take 10,000 and more\n",
        sizes.steps
    )
}

const TRAINING: &str = r#"
[stages.words]                       # a tokenizer, learned from the captions
kind = "tokenizer"
input = "train_pairs"

[stages.clip]
kind = "train"
input = "train_pairs"
tokenizer = "words"
model = "${model}"
steps = "${steps}"
batch_size = "${batch_size}"
random_crop = 0.7
"#;

const RESULTS: &str = r#"
[stages.accuracy]                    # beside the accuracy of guessing
kind = "sql"
query = """
select set, task, prompts, metric, round(value, 3) as value, round(ci_low, 3) as ci_low, round(ci_high, 3) as ci_high,
       round(chance, 4) as chance, n
from EVALUATION order by set, metric, value desc
"""
"#;

/// The stages `held_out`, of the images of `source`, and `train_pairs`. `comment` is that of the
/// first.
fn split(source: &str, comment: &str) -> String {
    format!(
        r#"
[stages.held_out]                    # {comment}
kind = "sql"
query = """
select * from {source} where sha256 in (
    select sha256 from (select distinct sha256 from {source}) order by hash_fraction(sha256, 'held out'), sha256 limit ${{held_out}}
) order by uid, sha256
"""

[stages.train_pairs]
kind = "sql"
query = "select * from pairs where sha256 not in (select sha256 from held_out) order by uid, sha256"
"#
    )
}

/// The split of data without pairs for the evaluation.
fn split_of_pairs() -> String {
    split("pairs", "random images, which the training does not see with any caption")
}

const TEST: &str = r#"
[[tests]]
that = "no held-out image is in the training data"
sql = "select sha256 from train_pairs intersect select sha256 from held_out"
expect = "empty"
"#;

fn pairs(pairs: &Pairs, rows: u64) -> String {
    let used = (rows as f64 * pairs.share.unwrap_or(1.0)) as u64;
    let sizes = Sizes::new(used, None);
    let mut text = vars(&sizes, true, pairs.share) + "\n" + &pairs.stages;
    text += &pairs.test.as_ref().map_or(String::new(), |test| format!("\n{test}"));
    text += &match pairs.test {
        Some(_) => split("test_pairs", "random images of the test data"),
        None => split_of_pairs(),
    };
    text += TRAINING;
    if pairs.has_lists {
        text +=
            "captions = \"random\"                  # another one of the captions of an image each time\n";
    }
    text += r#"
[stages.found]                       # the image of a caption among the held-out ones, and the caption of an image
kind = "retrieval"
model = "clip"
sets = [{ name = "held_out", input = "held_out" }]
ks = [1, 5]
"#;
    text + &RESULTS.replace("EVALUATION", "found") + TEST
}

fn classes(classes: &Classes, rows: u64) -> String {
    let sizes = Sizes::new(rows, Some(classes.classes as u64));
    let set = quoted(&classes.path);
    let split = classes.train.as_ref().map_or(String::new(), |split| format!("split = {}\n", quoted(split)));
    let pairs = if classes.has_test { "train_pairs" } else { "pairs" };
    let mut text = vars(&sizes, !classes.has_test, None);
    text += &format!(
        "\n[stages.images]                      # the names of the classes become captions\nkind = \"evaluation-set\"\nset = {set}\n{split}\n\
         [stages.{pairs}]\nkind = \"select\"\ninput = \"images\"\ndrop = [\"captions\", \"labels\", \"ignored_labels\"]\n\
         columns = {{ caption = \"'a photo of a ' || class_name\", sha256 = \"image_sha256(image)\" }}\n"
    );
    if !classes.has_test {
        text += &split_of_pairs();
    }
    text += TRAINING;
    let evaluated = if classes.has_test {
        set
    } else {
        "{ name = \"held_out\", input = \"held_out\", label = \"class_name\", classes = \"pairs\" }".into()
    };
    text += &format!(
        "\n[stages.zero_shot]\nkind = \"zero-shot\"\nmodel = \"clip\"\nsets = [{evaluated}]\nprompts = [\"a photo of a {{}}\"]\n"
    );
    text += &RESULTS.replace("EVALUATION", "zero_shot");
    if !classes.has_test {
        text += TEST;
    }
    text
}

fn images(stages: &str) -> String {
    format!(
        r#"{stages}
[stages.sizes]
kind = "sql"
query = "select count(*) as images, count(distinct image_sha256(image)) as different from images"

# With a model, images can be searched: twinlens search runs/NAME "a red bicycle"
#
# [stages.vectors]
# kind = "embed"
# input = "images"
# model = "hf://openai/clip-vit-base-patch32"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit_the_number_of_pairs() {
        for (pairs, distinct, expected) in [
            (8, None, (1, 2, 70)),
            (100, None, (20, 32, 50)),
            (2000, None, (400, 128, 250)),
            (20_000, None, (500, 128, 400)),
            (1000, Some(9), (200, 8, 400)),
            (1000, Some(2), (200, 2, 400)),
        ] {
            let sizes = Sizes::new(pairs, distinct);
            assert_eq!((sizes.held_out, sizes.batch_size, sizes.steps), expected, "{pairs} {distinct:?}");
        }
    }
}
