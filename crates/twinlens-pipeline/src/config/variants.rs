//! The variants of swept stages and of their readers.

use std::collections::{BTreeMap, BTreeSet};

use twinlens_dataset::protocol::{Setting, Variant};

use crate::config::stages::Draft;
use crate::config::sweep::MAX_VARIANTS;
use crate::error::Fault;
use crate::sql::SqlPlanner;

/// The longest name of a variant. Its files have longer ones, of at most 255 bytes.
const MAX_NAME: usize = 200;

/// Repeats each stage for every variant of its inputs; the resulting names must be unique.
pub(crate) fn expand<'r>(
    declared: Vec<Draft<'r>>,
    sql: &SqlPlanner,
    faults: &mut Vec<Fault>,
) -> Vec<Draft<'r>> {
    if declared.iter().all(|draft| draft.variant.is_none()) {
        return declared;
    }
    let families = Families::new(&declared, sql);
    let mut expanded: BTreeMap<String, Vec<Expanded>> = BTreeMap::new();
    for draft in &declared {
        families.expand(&draft.family, &mut BTreeSet::new(), &mut expanded, faults);
    }
    let mut drafts: Vec<Draft<'r>> = Vec::new();
    for (index, draft) in declared.iter().enumerate() {
        for variant in expanded.get(&draft.family).into_iter().flatten().filter(|variant| variant.of == index)
        {
            let mut draft = draft.clone();
            if !variant.settings.is_empty() {
                draft.name = format!("{}_{}", draft.family, variant.slugs.join("_"));
                draft.variant =
                    Some(Variant { of: draft.family.clone(), settings: variant.settings.clone() });
            }
            drafts.push(draft);
        }
    }
    for draft in drafts.iter().filter(|draft| draft.name.len() > MAX_NAME) {
        let start: String = draft.name.chars().take(40).collect();
        let message = format!("the variant `{start}...` has a name that is too long");
        let fault = Fault::at(draft.place.clone(), message);
        faults.push(fault.hint("give the stages shorter names, or sweep fewer options"));
    }
    let mut names: BTreeMap<&str, &Draft<'_>> = BTreeMap::new();
    for draft in &drafts {
        if let Some(first) = names.insert(&draft.name, draft) {
            let mut fault =
                Fault::at(draft.place.clone(), format!("two variants would be called `{}`", draft.name));
            fault.related = [(first.place.clone(), "the first one".to_string())].into();
            faults.push(fault.hint("rename one of the values or stages"));
        }
    }
    drafts
}

/// A variant of a stage: the index of its declared draft, and the values that it depends on.
#[derive(Clone)]
struct Expanded {
    of: usize,
    settings: Vec<Setting>,
    slugs: Vec<String>,
}

impl Expanded {
    /// Merges both; `None` if they differ in a swept option.
    fn merge(&self, other: &Expanded) -> Option<Expanded> {
        let mut merged = self.clone();
        for (setting, slug) in other.settings.iter().zip(&other.slugs) {
            match self.settings.iter().find(|own| own.same_axis(setting)) {
                Some(own) if own.value != setting.value => return None,
                Some(_) => {}
                None => {
                    merged.settings.push(setting.clone());
                    merged.slugs.push(slug.clone());
                }
            }
        }
        Some(merged)
    }
}

struct Families<'a, 'r> {
    declared: &'a [Draft<'r>],
    /// The stages that have a side table, by the name of the table.
    sides: BTreeMap<&'static str, BTreeSet<&'a str>>,
}

impl<'a, 'r> Families<'a, 'r> {
    fn new(declared: &'a [Draft<'r>], sql: &SqlPlanner) -> Self {
        let mut sides: BTreeMap<&'static str, BTreeSet<&'a str>> = BTreeMap::new();
        for draft in declared {
            for side in draft.side_tables(sql) {
                sides.entry(side).or_default().insert(&draft.family);
            }
        }
        Self { declared, sides }
    }

    /// The stage of the file that an input names; `None` for a path, a table of the whole run, or
    /// an unknown name.
    fn find_stage(&self, name: &str) -> Option<&'a str> {
        let stage =
            self.declared.iter().find(|draft| draft.family == name).map(|draft| draft.family.as_str());
        stage.or_else(|| self.sides.get(name).filter(|owners| owners.len() == 1)?.first().copied())
    }

    /// Computes the variants of a stage, after those of its inputs. Cycles are reported elsewhere;
    /// a stage in a cycle has only its own variants.
    fn expand(
        &self,
        family: &'a str,
        above: &mut BTreeSet<&'a str>,
        done: &mut BTreeMap<String, Vec<Expanded>>,
        faults: &mut Vec<Fault>,
    ) {
        if done.contains_key(family) || !above.insert(family) {
            return;
        }
        let mut all: Vec<Expanded> = Vec::new();
        for (index, draft) in self.declared.iter().enumerate().filter(|(_, draft)| draft.family == family) {
            let own = draft.variant.as_ref().map_or(vec![], |variant| variant.settings.clone());
            let mut found = vec![Expanded { of: index, settings: vec![], slugs: vec![] }];
            for port in draft.inputs().iter().filter(|port| !port.all_variants) {
                let Some(before) = port.input.stage().and_then(|name| self.find_stage(name)) else {
                    continue;
                };
                self.expand(before, above, done, faults);
                let Some(variants) = done.get(before) else { continue };
                found = found
                    .iter()
                    .flat_map(|one| variants.iter().filter_map(move |other| one.merge(other)))
                    .collect();
                found.truncate(MAX_VARIANTS + 1);
            }
            let own = Expanded { of: index, settings: own, slugs: draft.slugs.clone() };
            all.extend(found.iter().filter_map(|one| one.merge(&own)));
            if all.len() > MAX_VARIANTS {
                faults.push(Fault::at(
                    draft.place.clone(),
                    format!("the variants of its inputs give `{family}` more than {MAX_VARIANTS} variants"),
                ));
                all.truncate(1);
                break;
            }
        }
        above.remove(family);
        done.insert(family.into(), all);
    }
}

/// The variant of an input that matches a reader: it agrees in every value.
pub(crate) fn matching(reader: Option<&Variant>, variants: &[(usize, Option<&Variant>)]) -> Option<usize> {
    let settings = reader.map_or(&[][..], |variant| &variant.settings[..]);
    let agrees = |variant: &Variant| variant.settings.iter().all(|setting| settings.contains(setting));
    let fitting = variants.iter().filter(|(_, variant)| variant.is_none_or(agrees));
    fitting
        .max_by_key(|(_, variant)| variant.map_or(0, |variant| variant.settings.len()))
        .map(|(node, _)| *node)
}
