//! Names of inputs to edges, and an order in which the stages can run.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use twinlens_dataset::{MAIN, REJECTS};

use crate::config::pipeline::Resolved;
use crate::config::source::{Part, Source};
use crate::config::stages::Draft;
use crate::config::variants;
use crate::earlier;
use crate::error::Fault;
use crate::located::Input;
use crate::ports::InputPort;
use crate::sql::{SqlPlanner, find_word};
use crate::suggest::{Suggestions, did_you_mean, list_names};

/// The table of counts about the run itself.
pub(crate) const FUNNEL: &str = "funnel";

/// What the names of data files end in, beside `.parquet`.
const FILE_ENDINGS: [&str; 6] = ["csv", "tsv", "json", "jsonl", "txt", "arrow"];

/// The edges between drafts, and the order.
pub(crate) struct Graph {
    /// The inputs of each draft, as indices of drafts; `None` if one is unknown, which has been
    /// reported.
    pub(crate) inputs: Vec<Option<Vec<Resolved>>>,
    /// Each draft after its inputs, otherwise as in the file; without those in or behind a cycle.
    pub(crate) order: Vec<usize>,
}

/// Looks up every input, and orders the stages.
pub(crate) fn resolve(
    drafts: &[Draft<'_>],
    source: &Source,
    sql: &SqlPlanner,
    faults: &mut Vec<Fault>,
) -> Graph {
    let names = Names::new(drafts, drafts.iter().map(|draft| draft.side_tables(sql)).collect());
    let mut inputs = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        inputs.push(draft.options.as_ref().and_then(|_| {
            let found = draft.inputs().iter().map(|port| {
                let place = place_of(source, &port.input);
                names.resolve(index, port).map_err(|fault| faults.push(Fault { span: place, ..*fault })).ok()
            });
            // All of them, not up to the first that is unknown.
            found.collect::<Vec<_>>().into_iter().collect()
        }));
    }
    let order = order(drafts, &inputs, source, faults);
    Graph { inputs, order }
}

/// The span of an input's name: in a query, that of the word.
pub(crate) fn place_of(source: &Source, input: &Input) -> Range<usize> {
    let span = input.0.span();
    let Part { text, range: local, .. } = source.part(&span);
    let raw = &text[local];
    if raw.len() <= input.name().len() + 2 {
        return span;
    }
    let found = find_word(raw, input.name());
    found.map_or(span.clone(), |found| span.start + found.start..span.start + found.end)
}

struct Names<'a> {
    drafts: &'a [Draft<'a>],
    side: Vec<Vec<&'static str>>,
    /// The drafts of each stage of the file, of each name, and with each side table.
    families: BTreeMap<&'a str, Vec<usize>>,
    names: BTreeMap<&'a str, usize>,
    owners: BTreeMap<&'static str, Vec<usize>>,
    suggestions: Suggestions,
}

impl<'a> Names<'a> {
    fn new(drafts: &'a [Draft<'a>], side: Vec<Vec<&'static str>>) -> Self {
        let (mut families, mut names) = (BTreeMap::<_, Vec<usize>>::new(), BTreeMap::new());
        let mut owners: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        for (index, draft) in drafts.iter().enumerate() {
            families.entry(draft.family.as_str()).or_default().push(index);
            names.entry(draft.name.as_str()).or_insert(index);
            side[index].iter().for_each(|table| owners.entry(table).or_default().push(index));
        }
        Self { drafts, side, families, names, owners, suggestions: Suggestions::default() }
    }

    fn resolve(&self, reader: usize, port: &InputPort) -> Result<Resolved, Box<Fault>> {
        let (input, all) = (&port.input, port.all_variants);
        let Some(stage) = input.stage() else {
            return Ok(Resolved::Path(input.name().into()));
        };
        if let Some(family) = self.families.get(stage) {
            return self.variant(reader, family, self.table_of(family[0], input)?, all);
        }
        // One variant, by its own name.
        if let Some(&node) = self.names.get(stage) {
            return Ok(Resolved::Stage { node, table: self.table_of(node, input)?.into() });
        }
        if let Some((of, _)) = earlier::parts(stage).filter(|(of, _)| self.names.contains_key(of)) {
            return match input.table() {
                None => Ok(Resolved::Earlier { name: stage.into(), of: self.names[of] }),
                Some(_) => {
                    Err(Box::new(Fault::at(0..0, format!("of `{stage}` only the main table is an input"))))
                }
            };
        }
        if input.table().is_none() && (stage == REJECTS || stage == FUNNEL) {
            return self.system(reader, stage);
        }
        let nodes = self.owners.get(stage).map_or(&[][..], Vec::as_slice);
        let mut owners: Vec<&str> = nodes.iter().map(|node| self.drafts[*node].family.as_str()).collect();
        owners.dedup();
        match (owners.as_slice(), input.table()) {
            ([_], None) => self.variant(reader, nodes, stage, all),
            ([], _) | (_, Some(_)) => Err(Box::new(self.unknown(stage, input))),
            (several, None) => {
                let names: Vec<String> = several.iter().map(|owner| format!("{owner}.{stage}")).collect();
                Err(Box::new(
                    Fault::at(0..0, format!("several stages have a table `{stage}`"))
                        .label(format!("expected one of {}", list_names(names.iter().map(String::as_str)))),
                ))
            }
        }
    }

    /// A table of the variant of a stage that goes with the reader; or of all of them.
    fn variant(
        &self,
        reader: usize,
        nodes: &[usize],
        table: &str,
        all: bool,
    ) -> Result<Resolved, Box<Fault>> {
        let of = |node: &usize| (*node, self.drafts[*node].variant.as_ref());
        let variants: Vec<_> = nodes.iter().map(of).collect();
        let swept = variants.iter().any(|(_, variant)| variant.is_some());
        if swept && all {
            return Ok(Resolved::Variants { nodes: nodes.into(), table: table.into() });
        }
        match variants::matching(self.drafts[reader].variant.as_ref(), &variants) {
            Some(node) => Ok(Resolved::Stage { node, table: table.into() }),
            None => Err(Box::new(Fault::at(0..0, "no variant of this input has the same swept values"))),
        }
    }

    fn table_of<'t>(&self, node: usize, input: &'t Input) -> Result<&'t str, Box<Fault>> {
        let table = input.table().unwrap_or(MAIN);
        let broken = self.drafts[node].options.is_none();
        if broken || table == MAIN || table == REJECTS || self.side[node].contains(&table) {
            return Ok(table);
        }
        let known = || self.side[node].iter().copied().chain([REJECTS]);
        let stage = &self.drafts[node].family;
        let fault = Fault::at(0..0, format!("the stage `{stage}` has no table `{table}`"))
            .label(format!("its side tables are {}", list_names(known())));
        let meant = did_you_mean(table, known());
        Err(Box::new(meant.into_iter().fold(fault, Fault::hint)))
    }

    /// `funnel` and `rejects`: for stages that report on others.
    fn system(&self, reader: usize, table: &str) -> Result<Resolved, Box<Fault>> {
        if !self.drafts[reader].is_report() {
            let fault = Fault::at(0..0, format!("`{table}` covers all stages: only a query can read it"));
            return Err(Box::new(fault.hint(format!("name one stage: `stage.{REJECTS}`"))));
        }
        let nodes = (0..reader).filter(|node| !self.drafts[*node].is_query()).collect();
        Ok(Resolved::System { table: table.into(), nodes })
    }

    fn unknown(&self, stage: &str, input: &Input) -> Fault {
        let fault = Fault::at(0..0, format!("unknown input `{stage}`"));
        if !self.suggestions.next() {
            return fault;
        }
        let stages = || {
            let mut names: Vec<&str> = self.drafts.iter().map(|draft| draft.family.as_str()).collect();
            names.dedup();
            names.into_iter()
        };
        let all = stages().chain(self.side.iter().flatten().copied()).chain([REJECTS, FUNNEL]);
        let fault = fault.label(format!("the stages are {}", list_names(stages())));
        let hint = did_you_mean(stage, all).or_else(|| {
            // `list.csv`
            let file = input.table().is_some_and(|ending| FILE_ENDINGS.contains(&ending));
            file.then(|| format!("a value is a path if it contains `/`: `./{}`", input.name()))
        });
        hint.into_iter().fold(fault, Fault::hint)
    }
}

/// The drafts that must run before one.
fn before(inputs: Option<&Vec<Resolved>>) -> Vec<usize> {
    inputs.into_iter().flatten().flat_map(Resolved::nodes).copied().collect()
}

fn order(
    drafts: &[Draft<'_>],
    inputs: &[Option<Vec<Resolved>>],
    source: &Source,
    faults: &mut Vec<Fault>,
) -> Vec<usize> {
    let needs: Vec<Vec<usize>> = inputs.iter().map(|inputs| before(inputs.as_ref())).collect();
    let mut readers = vec![Vec::new(); drafts.len()];
    let mut missing: Vec<usize> = Vec::new();
    for (node, needed) in needs.iter().enumerate() {
        missing.push(needed.len());
        needed.iter().for_each(|need| readers[*need].push(node));
    }
    // The first in the file of those that can run next.
    let mut ready: BTreeSet<usize> = (0..drafts.len()).filter(|node| missing[*node] == 0).collect();
    let mut order: Vec<usize> = Vec::new();
    let mut placed = vec![false; drafts.len()];
    while let Some(next) = ready.pop_first() {
        placed[next] = true;
        order.push(next);
        for &reader in &readers[next] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    // The remaining ones wait for a cycle: walk from each to one of its inputs until the walk meets
    // itself.
    let mut reported = placed;
    for start in 0..drafts.len() {
        let mut walk: Vec<usize> = Vec::new();
        let mut next = Some(start).filter(|node| !reported[*node]);
        while let Some(node) = next {
            if let Some(at) = walk.iter().position(|seen| *seen == node) {
                faults.push(cycle(&walk[at..], drafts, inputs, source));
                break;
            }
            walk.push(node);
            next = needs[node].iter().copied().find(|need| !reported[*need]);
        }
        for node in walk {
            reported[node] = true;
        }
    }
    order
}

/// The fault of stages that read each other, with the place of each link.
fn cycle(nodes: &[usize], drafts: &[Draft<'_>], inputs: &[Option<Vec<Resolved>>], source: &Source) -> Fault {
    let first = (0..nodes.len()).min_by_key(|at| nodes[*at]).unwrap_or(0);
    let ring: Vec<usize> = nodes[first..].iter().chain(&nodes[..first]).copied().collect();
    let links: Vec<(Range<usize>, String)> = (ring.iter().zip(ring.iter().cycle().skip(1)))
        .map(|(node, next)| {
            let draft = &drafts[*node];
            let link = inputs[*node]
                .iter()
                .flatten()
                .position(|input| before(Some(&vec![input.clone()])).contains(next));
            let written = link.and_then(|link| draft.inputs().get(link));
            let place = written.map_or(draft.place.clone(), |port| place_of(source, &port.input));
            (place, format!("`{}` reads `{}`", draft.name, drafts[*next].name))
        })
        .collect();
    let names: Vec<String> =
        ring.iter().chain(ring.first()).map(|node| format!("`{}`", drafts[*node].name)).collect();
    let places = links.iter().map(|(place, link)| format!("{link} at line {}", source.line(place.start)));
    let hint = format!("take out one of: {}", places.collect::<Vec<_>>().join(", "));
    let mut links = links.into_iter();
    let (place, label) = links.next().unwrap_or((0..0, String::new()));
    let mut fault = Fault::at(place, format!("stages wait for each other: {}", names.join(" <- ")))
        .label(label)
        .hint(hint);
    fault.related = links.collect();
    fault
}
