//! The tables under `[stages]`: each becomes the options of its kind, and a first plan.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use twinlens_dataset::protocol::Variant;

use crate::config::options::{Shape, build};
use crate::config::source::Strings;
use crate::config::sweep::{self, Choice};
use crate::config::vars::article;
use crate::error::Fault;
use crate::ports::{InputPort, Planned};
use crate::registry::{Built, Kind, Registry};
use crate::sql::SqlPlanner;
use crate::stage::{Product, Work};
use crate::suggest::{did_you_mean, list_names};

/// Names that have another meaning in SQL over a run.
pub(crate) const RESERVED: [&str; 6] = ["data", "rejects", "funnel", "information_schema", "stages", "views"];
/// Not the name of a stage, whose folder would be in the place of this file.
const LOCK: &str = "lock";
/// The longest name of a stage. Its files have longer ones, of at most 255 bytes.
const MAX_NAME: usize = 100;
/// The options of every kind.
const COMMON: [&str; 4] = ["kind", "rejects", "seed", "sweep"];
const SEED: &str = "seed";

/// A stage of the file, or a variant of one, as far as it could be built.
#[derive(Clone)]
pub(crate) struct Draft<'r> {
    pub(crate) name: String,
    /// Its name in the file.
    pub(crate) family: String,
    /// Which variant it is.
    pub(crate) variant: Option<Variant>,
    /// A suffix of the name for each of its own swept options.
    pub(crate) slugs: Vec<String>,
    /// The span of the name in the header; of a variant, that of its value.
    pub(crate) place: Range<usize>,
    /// `None` if there is no such kind.
    pub(crate) kind: Option<&'r Kind>,
    /// `None` if its options are invalid, which has been reported.
    pub(crate) options: Option<DraftOptions>,
    pub(crate) keep_rejects: bool,
    /// Overrides the pipeline's.
    pub(crate) seed: Option<u64>,
}

impl Draft<'_> {
    /// Its side tables. If its options are invalid, those of the kind's example, so that its
    /// readers get no follow-on errors.
    pub(crate) fn side_tables(&self, sql: &SqlPlanner) -> Vec<&'static str> {
        match (&self.options, self.kind) {
            (Some(options), _) => options.first.plan.side.keys().copied().collect(),
            (None, Some(kind)) => {
                let example = example(kind).map(|built| built.plan(sql, None, None));
                example.map_or(vec![], |planned| planned.plan.side.into_keys().collect())
            }
            (None, None) => vec![],
        }
    }

    /// Its inputs; none if its options are invalid.
    pub(crate) fn inputs(&self) -> &[InputPort] {
        self.options.as_ref().map_or(&[], |options| &options.first.plan.inputs)
    }

    /// Whether it is a query, which `funnel` and `rejects` leave out.
    pub(crate) fn is_query(&self) -> bool {
        self.options.as_ref().is_some_and(|options| matches!(options.first.work, Some(Work::Query(_))))
    }

    /// Whether it may read `funnel` and `rejects`.
    pub(crate) fn is_report(&self) -> bool {
        self.kind.is_some_and(|kind| kind.product == Product::Report)
    }
}

/// The options of a draft.
#[derive(Clone)]
pub(crate) struct DraftOptions {
    pub(crate) built: Built,
    /// Planned without any schema.
    pub(crate) first: Arc<Planned>,
}

/// The example of a kind.
fn example(kind: &Kind) -> Option<Built> {
    let mut root = DeTable::parse(kind.example).ok()?.into_inner();
    let DeValue::Table(stages) = root.remove("stages")?.into_inner() else { return None };
    let (_, stage) = stages.into_iter().next()?;
    let place = stage.span();
    let DeValue::Table(mut table) = stage.into_inner() else { return None };
    for common in COMMON {
        table.remove(common);
    }
    (kind.build)(Spanned::new(place, DeValue::Table(table)).into()).ok()
}

/// All stages, in the order of the file; a swept one once for each combination of its values.
pub(crate) fn drafts<'r>(
    stages: Option<Spanned<DeValue<'_>>>,
    cx: &Context<'r, '_>,
    faults: &mut Vec<Fault>,
) -> Vec<Draft<'r>> {
    let (span, stages) = match stages.map(|stages| (stages.span(), stages.into_inner())) {
        Some((span, DeValue::Table(stages))) => (span, stages),
        Some((span, _)) => {
            faults.push(Fault::at(span, "`stages` is not a table").label("expected tables `[stages.NAME]`"));
            return vec![];
        }
        None => (0..0, DeTable::new()),
    };
    if stages.is_empty() {
        faults.push(Fault::at(span, "the pipeline has no stages").hint("add a table `[stages.NAME]`"));
    }
    let mut entries: Vec<_> = stages.into_iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
        .into_iter()
        .flat_map(|(name, value)| stage(name.get_ref(), name.span(), value, cx, faults))
        .collect()
}

/// What stages are built with.
pub(crate) struct Context<'r, 'a> {
    pub(crate) registry: &'r Registry,
    pub(crate) strings: &'a Strings,
    pub(crate) sql: &'a SqlPlanner,
}

fn stage<'r>(
    name: &str,
    place: Range<usize>,
    value: Spanned<DeValue<'_>>,
    cx: &Context<'r, '_>,
    faults: &mut Vec<Fault>,
) -> Vec<Draft<'r>> {
    check_name(name, &place, faults);
    let mut draft = Draft {
        name: name.into(),
        family: name.into(),
        variant: None,
        slugs: vec![],
        place: place.clone(),
        kind: None,
        options: None,
        keep_rejects: true,
        seed: None,
    };
    let span = value.span();
    let DeValue::Table(mut table) = value.into_inner() else {
        faults.push(
            Fault::at(span, format!("the stage `{name}` is not a table"))
                .label(format!("expected `[stages.{name}]`")),
        );
        return vec![draft];
    };
    let rejects = table.remove("rejects").map(|rejects| keep_rejects(rejects, faults));
    draft.keep_rejects = rejects.unwrap_or(true);
    draft.kind = kind(name, &place, table.remove("kind"), cx.registry, faults);
    let Some(kind) = draft.kind else { return vec![draft] };
    let axes = table.remove("sweep").map(|sweep| {
        let known: Vec<String> = kind.option_names().into_iter().chain([SEED.to_string()]).collect();
        sweep::axes(name, sweep, &known, &table, faults)
    });
    let what = format!("the stage `{name}`");
    let axes = axes.unwrap_or_default();
    let swept: Vec<String> = axes.iter().map(|axis| axis.name().to_string()).collect();
    let schema = kind.own_schema();
    let shape = Shape { what: &what, header: place, schema: &schema, swept: &swept, taken: &COMMON };
    let choices = sweep::choices(name, &axes);
    let variant = |choice| variant(&draft, kind, choice, table.clone(), &shape, cx, faults);
    choices.into_iter().map(variant).collect()
}

/// The stage with one choice of its swept values.
fn variant<'i, 'r>(
    stage: &Draft<'r>,
    kind: &Kind,
    choice: Choice<'i>,
    mut table: DeTable<'i>,
    shape: &Shape<'_>,
    cx: &Context<'r, '_>,
    faults: &mut Vec<Fault>,
) -> Draft<'r> {
    let mut draft = stage.clone();
    if !choice.settings.is_empty() {
        draft.variant = Some(Variant { of: stage.family.clone(), settings: choice.settings });
        (draft.slugs, draft.place) = (choice.slugs, choice.place);
    }
    table.extend(choice.entries);
    draft.seed = table.remove(SEED).and_then(|seed| self::seed(seed, faults));
    match build(table, shape, cx.strings, |table| (kind.build)(table)) {
        Ok(built) => {
            let first = Arc::new(built.plan(cx.sql, None, None));
            draft.options = Some(DraftOptions { built, first });
        }
        Err(found) => faults.extend(found),
    }
    draft
}

fn seed(value: Spanned<DeValue<'_>>, faults: &mut Vec<Fault>) -> Option<u64> {
    let (span, kind) = (value.span(), value.get_ref().type_str());
    let seed = u64::deserialize(ValueDeserializer::from(value)).ok();
    if seed.is_none() {
        faults.push(
            Fault::at(span, format!("`{SEED}` is {}", article(kind)))
                .label("expected a whole number of at least 0"),
        );
    }
    seed
}

fn check_name(name: &str, place: &Range<usize>, faults: &mut Vec<Fault>) {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !good {
        let fault = Fault::at(place.clone(), format!("`{name}` cannot be the name of a stage"));
        let fault = fault.label("expected a small letter, then small letters, digits and `_`");
        let better: String =
            name.to_lowercase().chars().map(|c| if c == '-' || c == ' ' { '_' } else { c }).collect();
        faults.push(if better != name { fault.hint(format!("write `{better}`")) } else { fault });
    } else if RESERVED.contains(&name) {
        faults.push(
            Fault::at(place.clone(), format!("`{name}` is a reserved name in SQL over a run"))
                .label("expected another name"),
        );
    } else if name == LOCK {
        let fault = Fault::at(place.clone(), format!("`{name}` is the name of a file of the run directory"));
        faults.push(fault.label("expected another name"));
    } else if name.len() > MAX_NAME {
        let fault = Fault::at(place.clone(), "the name of the stage is too long for a folder");
        faults.push(fault.label(format!("expected at most {MAX_NAME} letters, found {}", name.len())));
    }
}

fn kind<'r>(
    name: &str,
    place: &Range<usize>,
    value: Option<Spanned<DeValue<'_>>>,
    registry: &'r Registry,
    faults: &mut Vec<Fault>,
) -> Option<&'r Kind> {
    let names = || registry.kinds().map(|kind| kind.name);
    let Some(value) = value else {
        faults.push(
            Fault::at(place.clone(), format!("the stage `{name}` has no `kind`"))
                .label(format!("known kinds: {}", list_names(names()))),
        );
        return None;
    };
    let Some(written) = value.get_ref().as_str() else {
        faults.push(
            Fault::at(value.span(), format!("`kind` is {}", article(value.get_ref().type_str())))
                .label("expected a string"),
        );
        return None;
    };
    let found = registry.kind(written);
    if found.is_none() {
        let fault = Fault::at(value.span(), format!("unknown kind of stage `{written}`"))
            .label(format!("known: {}", list_names(names())));
        faults.push(did_you_mean(written, names()).into_iter().fold(fault, Fault::hint));
    }
    found
}

fn keep_rejects(value: Spanned<DeValue<'_>>, faults: &mut Vec<Fault>) -> bool {
    match value.get_ref().as_str() {
        Some("keep") => return true,
        Some("count") => return false,
        _ => {}
    }
    let fault = Fault::at(value.span(), "`rejects` is neither \"keep\" nor \"count\"");
    let hint = value.get_ref().as_str().and_then(|text| did_you_mean(text, ["keep", "count"]));
    faults.push(hint.into_iter().fold(fault.label("expected `\"keep\"` or `\"count\"`"), Fault::hint));
    true
}
