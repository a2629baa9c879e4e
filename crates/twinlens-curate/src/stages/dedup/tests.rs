//! Which rows are kept.

use super::super::testing::*;
use datafusion::arrow::array::RecordBatch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use twinlens_dataset::contracts;

/// What became of rows.
const REJECTS: [&str; 3] = ["uid", "reject_code", "reject_detail"];

fn dedup(options: &str, rows: &RecordBatch) -> StageTest {
    stage("dedup", &format!("input = \"rows.parquet\"\n{options}")).table("rows", rows)
}

/// These columns of the rows, which are the same however many groups are decided about.
async fn decided(options: &str, columns: &[&str], rows: &RecordBatch) -> Vec<String> {
    let whole = dedup(options, rows).run().await.unwrap().rows(columns);
    for group_rows in [1, 2, 4] {
        let grouped = dedup(&format!("{options}\ngroup_rows = {group_rows}"), rows);
        assert_eq!(grouped.run().await.unwrap().rows(columns), whole, "groups of {group_rows}");
    }
    whole
}

#[tokio::test]
async fn the_smallest_uid_is_kept() {
    // "\0" stands for null, which is never a duplicate.
    let mut rows =
        vec![("c", "dog"), ("a", "cat"), ("b", "dog"), ("d", "dog"), ("e", "\0"), ("f", "\0"), ("a", "cat")];
    let expected = [
        "a|cat|duplicate|duplicate of a",
        "a|cat||",
        "b|dog||",
        "c|dog|duplicate|duplicate of b",
        "d|dog|duplicate|duplicate of b",
        "e|||",
        "f|||",
    ];
    for _ in 0..rows.len() {
        rows.rotate_left(1);
        let columns = ["uid", "caption", "reject_code", "reject_detail"];
        assert_eq!(decided("by = [\"caption\"]", &columns, &pairs(&rows)).await, expected);
    }
}

#[tokio::test]
async fn frequent_captions_are_rejected() {
    let rows =
        [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "y"), ("f", "\0"), ("g", "\0"), ("h", "\0")];
    let made = decided("by = [\"caption\"]\nmore_than = 2", &REJECTS, &pairs(&rows)).await;
    let frequent = |uid: &str| format!("{uid}|too_frequent|3 rows have it");
    assert_eq!(
        made,
        [
            "a||".into(),
            "b||".into(),
            frequent("c"),
            frequent("d"),
            frequent("e"),
            "f||".into(),
            "g||".into(),
            "h||".into()
        ]
    );
}

#[tokio::test]
async fn near_duplicates_leave_the_first() {
    // b is near a; c is near b, which is rejected, but not near a; d equals b; e is far; f
    // equals e; g has no hash.
    let mut rows = vec![
        ("a", Some(0b0)),
        ("b", Some(0b11)),
        ("c", Some(0b1111)),
        ("d", Some(0b11)),
        ("e", Some(-1)),
        ("f", Some(-1)),
        ("g", None),
    ];
    let expected = [
        "a||",
        "b|near_duplicate|2 bits from a",
        "c||",
        "d|near_duplicate|2 bits from a",
        "e||",
        "f|duplicate|duplicate of e",
        "g||",
    ];
    for _ in 0..rows.len() {
        rows.rotate_left(1);
        assert_eq!(decided("by = [\"phash\"]\ndistance = 2", &REJECTS, &hashed(&rows)).await, expected);
    }
}

#[tokio::test]
async fn groups_change_nothing_for_random_rows() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for distance in [0, 2, 6] {
        let mut random = |most: i64| rng.random_range(0..most);
        // Many hashes are near others: they differ in the lowest eleven bits.
        let rows: Vec<(String, Option<i64>)> = (0..60)
            .map(|_| (format!("{:02}", random(40)), Some(random(2048)).filter(|hash| hash % 9 > 0)))
            .collect();
        let rows: Vec<(&str, Option<i64>)> = rows.iter().map(|(uid, hash)| (uid.as_str(), *hash)).collect();
        let options = format!("by = [\"phash\"]\ndistance = {distance}");
        let made = decided(&options, &REJECTS, &hashed(&rows)).await;
        assert!(distance == 0 || made.iter().filter(|row| row.contains("bits from")).count() > 5, "{made:?}");
        let several = decided("by = [\"uid\", \"phash\"]", &REJECTS, &hashed(&rows)).await;
        assert_eq!(several.len(), 60);
    }
}

#[test]
fn options_are_checked() {
    let rows = RecordBatch::new_empty(contracts::pairs());
    let faults = |options: &str| dedup(options, &rows).faults().join("; ");
    assert!(faults("by = []").contains("names no columns"));
    let found = faults("by = [\"image\", \"ulr\"]");
    assert!(found.contains("the column `image`") && found.contains("no column `ulr`"), "{found}");
    assert!(faults("by = [\"url\"]\nmore_than = 0").contains("every row"));
    assert!(faults("by = [\"url\"]\ngroup_rows = 0").contains("groups without rows"));
    let found = faults("by = [\"url\"]\ndistance = 13\nmore_than = 1");
    for part in ["cannot be combined", "too large", "64-bit integers"] {
        assert!(found.contains(part), "{found}");
    }
}
