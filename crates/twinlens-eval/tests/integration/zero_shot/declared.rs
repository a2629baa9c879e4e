//! Declared sets: by name, and by a file of the user.

use super::*;

fn declare(bench: &Bench, name: &str, rest: &str) {
    let text = format!(
        "name = \"{name}\"\ntitle = \"T\"\nlicence = \"MIT\"\nsource = \"s\"\nhow_to_get = \"look under the sofa\"\n{rest}"
    );
    std::fs::write(bench.path(&format!("{name}.toml")), text).unwrap();
}

const SETS: &str = r#"
model = "./model"
data = "sets"
sets = ["./things.toml", "cifar10", "./twice.toml", { name = "plain", input = "./test.parquet", label = "class" }, "./words.toml", "flickr30k"]
prompts = ["{}", "own"]
"#;

#[tokio::test]
async fn unusable_declared_sets_are_skipped() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.path("sets/words")).unwrap();
    std::fs::copy(bench.path("test.parquet"), bench.path("sets/things.parquet")).unwrap();
    declare(
        &bench,
        "things",
        "classes = \"from the data\"\nclass_count = 7\ntemplates = [\"one {}\", \"two {}\"]",
    );
    declare(&bench, "twice", "classes = [\"a\", \"a\"]");
    // Its directory has no readable data.
    declare(&bench, "words", "classes = [\"a\"]");
    std::fs::write(bench.path("sets/words/readme.txt"), "-").unwrap();
    let dataset = bench.evaluate("out", SETS).await.unwrap();

    let found = sql(
        &dataset,
        "select a.value - b.value, a.n, b.n, a.split from accuracy a join accuracy b on a.metric = b.metric and a.prompts = b.prompts
        where a.set = 'things' and b.set = 'plain' and a.prompts = '{}'",
    )
    .await;
    assert_eq!(found.num_rows(), 3);
    assert_eq!(floats(&found, 0), [0.0; 3]);
    assert_eq!(found.column(3).as_string::<i32>().value(0), "test");
    let own = sql(&dataset, "select count(distinct prompts_hash) from accuracy where prompts = 'own'").await;
    assert_eq!(
        own.column(0).as_primitive::<Int64Type>().value(0),
        2,
        "templates of the set, and the default"
    );

    let warned =
        sql(&dataset, "select set, code, detail from warnings where code like 'set_%' order by set").await;
    let text = |column: usize, row: usize| warned.column(column).as_string::<i32>().value(row).to_string();
    let expected = [
        ("./twice.toml", "set_refused", "duplicate class name `a`"),
        ("./words.toml", "set_refused", "no readable files of the split"),
        ("cifar10", "set_missing", "cifar-10-binary.tar.gz"),
        ("flickr30k", "set_refused", "retrieval"),
    ];
    assert_eq!(warned.num_rows(), expected.len());
    for (row, (set, code, detail)) in expected.into_iter().enumerate() {
        assert_eq!((text(0, row).as_str(), text(1, row).as_str()), (set, code));
        assert!(text(2, row).contains(detail), "{}", text(2, row));
    }
    // Rejects of the conversion are in the ledger once per set.
    let ledger = sql(&dataset, "select reject_code, count(*) from rejects group by 1 order by 1").await;
    assert_eq!(
        ledger.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(),
        ["no_image", "no_label", "truncated"]
    );
    assert_eq!(ledger.column(1).as_primitive::<Int64Type>().values(), &[2, 2, 2]);
    // Every set is a split and is not evaluated again.
    assert_eq!(dataset.state().commits.len(), 6);
    assert!(!bench.path("out").join("work").join("sets").exists());
    let again = bench.evaluate("out", SETS).await.unwrap();
    assert_eq!(content(&again), content(&dataset));
}

#[tokio::test]
async fn without_any_usable_set_the_first_reports_why() {
    let bench = Bench::new();
    let options = "model = \"./model\"\ndata = \"sets\"\nsets = [\"mnist\", \"cifar10\"]";
    let RunError::User { message, .. } = bench.evaluate("out", options).await.unwrap_err() else { panic!() };
    assert!(message.contains("`mnist`") && message.contains("pipelines/evaluation/prepare"), "{message}");
}

#[test]
fn unknown_names_are_found_without_io() {
    let options = "model = \"./m\"\nsets = [\"cifar-10\", \"./own.toml\", \"mnist\", \"mnist\"]";
    let faults = support::plan::<ZeroShot>(options, |input| known(input, None)).err().unwrap();
    let hints: Vec<_> = faults.iter().filter_map(|fault| fault.hint.as_deref()).collect();
    assert!(hints.contains(&"did you mean `cifar10`?"), "{faults:?}");
    assert_eq!(faults.iter().filter(|fault| fault.message.contains("needs the option `data`")).count(), 4);
    assert!(faults.iter().any(|fault| fault.message.contains("two evaluation sets `mnist`")));
}
