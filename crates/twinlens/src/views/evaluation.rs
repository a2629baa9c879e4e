//! Views over accuracies and predictions.

use datafusion::scalar::ScalarValue;
use twinlens_dataset::variants::swept_values;

use super::run::{Run, Table};
use crate::syntax::{identifier, literal};

/// The baseline prompts: the bare class name.
const BARE: &str = "{}";
/// The part that is the whole set.
const WHOLE: &str = "all";

/// The union of queries; `None` if there are none.
pub(super) fn union(queries: Vec<String>) -> Option<String> {
    (!queries.is_empty()).then(|| queries.join("\nunion all\n"))
}

/// All accuracies with their stages.
fn accuracies(run: &Run<'_>) -> Option<String> {
    let tables = run.accuracies();
    let swept = swept(&tables);
    let one = |(index, table): (usize, &Table<'_>)| {
        let swept = swept
            .iter()
            .map(|(name, values)| format!(", {} as {}", scalar(&values[index]), identifier(name)));
        format!(
            "select {} as stage, model, {}, set, {}, coalesce({}, '{WHOLE}') as part, task, prompts, metric, value, ci_low,
    ci_high, chance, n{} from {}",
            literal(table.stage()),
            table.aliased_column("checkpoint", "varchar"),
            table.aliased_column("split", "varchar"),
            table.column_or_null("part", "varchar"),
            swept.collect::<String>(),
            table.sql()
        )
    };
    union(tables.iter().enumerate().map(one).collect())
}

/// The columns of swept options, with their values in each table.
fn swept(tables: &[Table<'_>]) -> Vec<(String, Vec<ScalarValue>)> {
    swept_values(&tables.iter().map(|table| table.dataset).collect::<Vec<_>>())
}

/// A value as SQL.
fn scalar(value: &ScalarValue) -> String {
    match value {
        ScalarValue::Utf8(Some(text)) => literal(text),
        ScalarValue::Int64(None) => "cast(null as bigint)".into(),
        ScalarValue::Float64(None) => "cast(null as double)".into(),
        ScalarValue::Float64(Some(number)) => format!("cast({number:?} as double)"),
        ScalarValue::Boolean(None) => "cast(null as boolean)".into(),
        ScalarValue::Utf8(None) => "cast(null as varchar)".into(),
        other => other.to_string(),
    }
}

pub(super) fn leaderboard(run: &Run<'_>) -> Option<String> {
    let swept = swept(&run.accuracies()).into_iter().map(|(name, _)| format!(", {}", identifier(&name)));
    Some(format!(
        "select set, task, metric, rank() over (partition by set, part, task, metric order by value desc) as rank,
    model, prompts, value, ci_low, ci_high, chance, value / chance as times_chance, n, part, stage, checkpoint, split{}
from ({})",
        swept.collect::<String>(),
        accuracies(run)?
    ))
}

/// Predictions, and whether they are correct.
fn answers(table: &Table<'_>) -> String {
    let stage = literal(table.stage());
    format!(
        "select {stage} as stage, set, prompts, example, label = predicted as correct from {}",
        table.sql()
    )
}

pub(super) fn prompt_gain(run: &Run<'_>) -> Option<String> {
    let bare = literal(BARE);
    let (compared, low, high, p) = match union(run.predictions().iter().map(answers).collect()) {
        Some(answers) => (
            format!(
                ",
answers as ({answers}),
compared as (
    select a.stage, a.set, a.prompts, 'top1' as metric, paired_bootstrap(a.correct, b.correct) as test
    from answers a join answers b on a.stage = b.stage and a.set = b.set and a.example = b.example
    where a.prompts <> {bare} and b.prompts = {bare} group by a.stage, a.set, a.prompts
)"
            ),
            "c.test['low']",
            "c.test['high']",
            "c.test['p']",
        ),
        None => (String::new(), "cast(null as double)", "cast(null as double)", "cast(null as double)"),
    };
    let join = if compared.is_empty() {
        ""
    } else {
        "left join compared c on a.stage = c.stage and a.set = c.set and a.prompts = c.prompts and a.metric = c.metric and a.part = 'all'"
    };
    Some(format!(
        "with accuracies as ({}){compared}
select a.stage, a.model, a.set, a.metric, a.prompts, a.value, b.value as bare, a.value - b.value as gain,
    {low} as gain_low, {high} as gain_high, {p} as p, a.n, a.part
from accuracies a
join accuracies b on a.stage = b.stage and a.model = b.model and a.set = b.set and a.part = b.part and a.task = b.task
    and a.metric = b.metric
{join}
where a.prompts <> {bare} and b.prompts = {bare}",
        accuracies(run)?
    ))
}

pub(super) fn confusions(run: &Run<'_>) -> Option<String> {
    let one = |table: &Table<'_>| {
        let classes = run.classes_of(table)?;
        let (stage, model) = (literal(table.stage()), run.model_of(table));
        let model = model.map_or("cast(null as varchar)".into(), |model| literal(&model));
        Some(format!(
            "select {stage} as stage, {model} as model, p.set, p.prompts, c.class_name as class_name,
    d.class_name as predicted_name, count(*) as times, max(c.n) as of_examples
from {predictions} p
join {classes} c on p.set = c.set and p.prompts = c.prompts and p.label = c.class_id
join {classes} d on p.set = d.set and p.prompts = d.prompts and p.predicted = d.class_id
where p.label <> p.predicted
group by p.set, p.prompts, c.class_name, d.class_name",
            predictions = table.sql(),
            classes = classes.sql(),
        ))
    };
    union(run.predictions().iter().filter_map(one).collect())
}
