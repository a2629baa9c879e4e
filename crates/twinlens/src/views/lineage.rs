//! Views from classes to queries in their names, to training pairs that matched these, and to their
//! pages.
//!
//! A query belongs to a class if the matcher finds it in the class name: for "red apple" these are
//! "red", "apple" and "red apple".

use std::collections::BTreeSet;

use super::evaluation::union;
use super::run::{Run, Table};
use crate::syntax::literal;

/// The longest queries considered, in words and punctuation marks. A phrase of the paper's list has
/// two words, and titles rarely have more than eight.
const MAX_WORDS: usize = 8;

/// Classes with their evaluation and the training pairs of its model.
fn classes(run: &Run<'_>) -> Option<String> {
    let one = |table: &Table<'_>| {
        let pairs = run.pairs_of(table, &["query_ids"])?;
        let model = run.model_of(table)?;
        Some(format!(
            "select {} as stage, {} as model, {} as pairs, set, prompts, class_id, class_name, n, correct from {}",
            literal(table.stage()),
            literal(&model),
            literal(&pairs.sql()),
            table.sql()
        ))
    };
    union(run.per_class().iter().filter_map(one).collect())
}

/// The training pairs of all evaluations, without duplicates.
fn training_pairs<'a>(run: &Run<'a>) -> Vec<(String, Table<'a>)> {
    let mut seen = BTreeSet::new();
    let tables = run.per_class();
    let found = tables.iter().filter_map(|table| run.pairs_of(table, &["query_ids"]));
    found.map(|table| (table.sql(), table)).filter(|(name, _)| seen.insert(name.clone())).collect()
}

/// The common table expressions `classes`, `queries` and `class_queries` (class_name, query_id,
/// query, whole_name).
fn class_queries(run: &Run<'_>) -> Option<String> {
    Some(format!(
        "with classes as (
{classes}
), queries as (
    select distinct query_id, query, tokens(query) as phrase from ({texts})
), names as (
    select distinct class_name, string_to_array(tokens(class_name), ' ') as words from classes
), starts as (
    select class_name, words, unnest(range(1, cast(array_length(words) as bigint) + 1)) as first from names
), runs as (
    select class_name, words, first,
        unnest(range(first, least(cast(array_length(words) as bigint), first + {more}) + 1)) as last
    from starts
), phrases as (
    select class_name, array_to_string(array_slice(words, first, last), ' ') as phrase,
        bool_or(first = 1 and last = cast(array_length(words) as bigint)) as whole_name
    from runs group by class_name, array_to_string(array_slice(words, first, last), ' ')
), class_queries as (
    select class_name, query_id, query, whole_name from phrases join queries using (phrase)
)",
        classes = classes(run)?,
        texts = run.query_texts()?,
        more = MAX_WORDS - 1,
    ))
}

pub(super) fn class_support(run: &Run<'_>) -> Option<String> {
    let one = |(name, table): &(String, Table<'_>)| {
        format!("select {} as pairs, uid, unnest(query_ids) as query_id from {}", literal(name), table.sql())
    };
    let matched = union(training_pairs(run).iter().map(one).collect())?;
    Some(format!(
        "{shared}, matched as (
{matched}
), support as (
    select pairs, class_name, count(distinct case when whole_name then uid end) as training_pairs,
        count(distinct uid) as related_pairs
    from class_queries join matched using (query_id) group by pairs, class_name
)
select stage, model, set, prompts, class_id, class_name, n, correct, cast(correct as double) / nullif(n, 0) as accuracy,
    wilson_low(correct, n) as ci_low, wilson_high(correct, n) as ci_high,
    coalesce(training_pairs, 0) as training_pairs, coalesce(related_pairs, 0) as related_pairs
from classes left join support using (pairs, class_name)",
        shared = class_queries(run)?,
    ))
}

pub(super) fn lineage(run: &Run<'_>) -> Option<String> {
    let one = |(name, table): &(String, Table<'_>)| {
        let column = |name: &str| table.aliased_column(name, "varchar");
        format!(
            "select {} as pairs, uid, caption, {}, {}, unnest(query_ids) as query_id from {}",
            literal(name),
            column("url"),
            column("page_url"),
            table.sql()
        )
    };
    let matched = union(training_pairs(run).iter().map(one).collect())?;
    Some(format!(
        "{shared}, matched as (
{matched}
), supporting as (
    select pairs, class_name, query_id, query, whole_name, uid, caption, url, page_url
    from class_queries join matched using (query_id)
), listed as (
    select distinct stage, model, pairs, set, class_id, class_name from classes
)
select stage, model, set, class_id, class_name, query_id, query, whole_name, uid, caption, url, page_url
from listed left join supporting using (pairs, class_name)",
        shared = class_queries(run)?,
    ))
}
