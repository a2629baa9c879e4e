//! What a run will do: which stages are fused, and which datasets are reused, resumed or rebuilt,
//! and why.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::Field;
use serde::Serialize;
use serde_json::Value;
use twinlens_dataset::MAIN;
use twinlens_dataset::protocol::{Recovery, State};
use twinlens_dataset::storage::Location;

use crate::config::{Node, Pipeline, Resolved};
use crate::error::RunError;
use crate::files::Files;
use crate::run::cost::Cost;
use crate::run::fingerprint::{self, Recipe, Recorded, difference, recipes};
use crate::run::generations::{self, Change, Generations, Kept};
use crate::stage::Work;

/// The stages that make one dataset: row stages fused into one plan. The last one gives the dataset
/// its name.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Indices of its nodes, first to last.
    pub nodes: Vec<usize>,
    /// What will be done.
    pub decision: Decision,
    /// The recipe of the dataset.
    pub recipe: Recipe,
    /// The recipes of the fused stages before the last.
    pub fused: Vec<Recipe>,
    /// What happens to the dataset that has the name now.
    pub change: Change,
    /// The datasets of the stage that are deleted when this one is complete.
    pub deletes: Vec<Deleted>,
}

/// A dataset that a run deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The name of its folder before the run.
    pub name: String,
    /// What it cost.
    pub cost: Cost,
}

impl Unit {
    /// The recipe that the dataset keeps.
    pub fn kept(&self, pipeline: &Pipeline) -> Value {
        let names = self.nodes.iter().map(|&node| pipeline.nodes[node].name.as_str());
        fingerprint::kept(&self.recipe, names.zip(&self.fused))
    }

    /// What happens to the dataset that has the stage's name now, in words.
    pub fn change_in_words(&self, pipeline: &Pipeline) -> Option<String> {
        let node = &pipeline.nodes[self.last()];
        let words = match &self.change {
            Change::None => return None,
            Change::SetAside { next, cost } => {
                let old = generations::name(&node.name, *next);
                match node.plan.generations {
                    0 | 1 => {
                        format!("the previous one ({cost}) is kept as `{old}` until this one is complete")
                    }
                    count => {
                        format!("the previous one ({cost}) is kept as `{old}` (the newest {count} stay)")
                    }
                }
            }
            Change::BringBack { number, .. } => {
                let old = generations::name(&node.name, *number);
                format!("`{old}` has this recipe and takes its place again")
            }
        };
        let others = self.deletes.iter().filter(|deleted| deleted.name != node.name);
        let others: Vec<String> =
            others.map(|Deleted { name, cost }| format!("; `{name}` ({cost}) is deleted then")).collect();
        Some(words + &others.concat())
    }

    /// The node that gives the dataset its name.
    pub fn last(&self) -> usize {
        self.nodes[self.nodes.len() - 1]
    }
}

/// What will be done with a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// It is complete and current.
    Reuse {
        /// Rows of its main table.
        rows: u64,
    },
    /// Some splits are committed; the others will be made.
    Resume {
        /// Committed splits.
        splits: u64,
    },
    /// It will be made.
    Run {
        /// Why: it was never made, or what changed.
        why: String,
    },
}

/// Decides, in the order of the stages. Reads manifests and looks at files; changes nothing.
pub fn plan(
    pipeline: &Pipeline,
    dir: &Location,
    files: &Files,
    until: Option<&str>,
    max_rows: Option<u64>,
) -> Result<Vec<Unit>, RunError> {
    let needed = needed(pipeline, until)?;
    let mut made = Vec::new();
    let folders = dir.list()?.folders;
    for node in &pipeline.nodes {
        made.push(Generations::read(dir, &folders, &node.name)?);
    }
    let recorded = Manifests::new(dir, &made);
    let recipes = recipes(pipeline, files, max_rows, &recorded)?;
    let current = |node: usize| {
        let fingerprint = &recipes[node].fingerprint;
        State::recovery(made[node].of(fingerprint).0, fingerprint) == Recovery::Reuse
    };
    let read = generations::read_by(pipeline);
    let readers = readers(pipeline, &needed);
    let fuses: Vec<bool> = (0..pipeline.nodes.len())
        .map(|node| {
            Some(pipeline.nodes[node].name.as_str()) != until
                && fuses(pipeline, node, &readers[node])
                && !current(node)
        })
        .collect();
    let unit = |nodes: Vec<usize>| {
        let last = nodes[nodes.len() - 1];
        let fused = nodes[..nodes.len() - 1].iter().map(|&node| recipes[node].clone()).collect();
        let undecided = Decision::Run { why: "not made yet".into() };
        let recipe = recipes[last].clone();
        let mut unit =
            Unit { nodes, decision: undecided, recipe, fused, change: Change::None, deletes: Vec::new() };
        let (fingerprint, node) = (&unit.recipe.fingerprint, &pipeline.nodes[last]);
        let (state, number) = made[last].of(fingerprint);
        let next = made[last].next();
        unit.change = match (number, made[last].replaced(fingerprint)) {
            (0, None) => Change::None,
            (0, Some(old)) => Change::SetAside { next, cost: Cost::of(&dir.join(&node.name), old)? },
            (number, _) => Change::BringBack { number, next },
        };
        unit.decision = decide(state, &unit, pipeline);
        let is_rebuilt = !matches!(unit.decision, Decision::Reuse { .. });
        let kept = Kept { generations: node.plan.generations, read: &read };
        for (name, state) in made[last].deleted(&node.name, &unit.change, is_rebuilt, &kept) {
            let cost = Cost::of(&dir.join(&name), state)?;
            unit.deletes.push(Deleted { name, cost });
        }
        Ok::<_, RunError>(unit)
    };
    let mut units = Vec::new();
    for last in (0..pipeline.nodes.len()).filter(|&node| needed[node] && !fuses[node]) {
        let mut nodes = vec![last];
        while let Some(before) = rows_of(pipeline, nodes[nodes.len() - 1]).filter(|&before| fuses[before]) {
            nodes.push(before);
        }
        nodes.reverse();
        // A source chooses its own splits: a stage that needs small ones (fetching) reads its
        // dataset instead.
        let source = matches!(pipeline.nodes[nodes[0]].work, Work::Source(_));
        if source && nodes.iter().any(|&node| pipeline.nodes[node].plan.split_rows.is_some()) {
            units.push(unit(vec![nodes.remove(0)])?);
        }
        units.push(unit(nodes)?);
    }
    Ok(units)
}

/// What the manifests of a run record.
struct Manifests<'a> {
    dir: &'a Location,
    made: &'a [Generations],
    stamps: BTreeMap<&'a String, &'a Value>,
}

impl<'a> Manifests<'a> {
    fn new(dir: &'a Location, made: &'a [Generations]) -> Self {
        let recipes = made.iter().flat_map(Generations::all).map(|state| &state.begin.recipe);
        Self { dir, made, stamps: recipes.flat_map(fingerprint::stamps).collect() }
    }
}

impl Recorded for Manifests<'_> {
    fn retries(&self, node: usize, fingerprint: &str) -> u64 {
        let (state, _) = self.made[node].of(fingerprint);
        let current = state.filter(|state| state.begin.fingerprint == fingerprint);
        current.map_or(0, |state| state.retries)
    }

    fn earlier(&self, reader: &str, name: &str, of: usize) -> Result<String, RunError> {
        self.made[of].print(self.dir, reader, name)
    }

    fn stamp(&self, name: &str) -> Option<&Value> {
        self.stamps.get(&name.to_string()).copied()
    }
}

/// The units in the order in which they run, by their indices: one after another, but a unit that
/// streams an input together with the unit that makes it, unless its other inputs need that unit
/// too.
pub fn groups(pipeline: &Pipeline, units: &[Unit]) -> Vec<Vec<usize>> {
    let mut unit_of_node = vec![None; pipeline.nodes.len()];
    for (number, unit) in units.iter().enumerate() {
        unit.nodes.iter().for_each(|&node| unit_of_node[node] = Some(number));
    }
    let unit_of = |node: usize| unit_of_node[node];
    // The units that a unit reads, but through one of its head's inputs.
    let reads = |unit: usize, without: Option<usize>| -> Vec<usize> {
        let head = units[unit].nodes[0];
        let inputs = units[unit].nodes.iter().flat_map(|&node| {
            let inputs = pipeline.nodes[node].inputs.iter().enumerate();
            inputs.filter(move |(port, _)| node != head || Some(*port) != without)
        });
        let nodes = inputs.flat_map(|(_, input)| input.resolved.nodes()).copied();
        nodes.filter_map(unit_of).filter(|input| *input != unit).collect()
    };
    // Everything that a unit needs before it can begin.
    let needs = |unit: usize, without: usize| {
        let mut needed = vec![false; units.len()];
        let mut open = reads(unit, Some(without));
        while let Some(next) = open.pop() {
            if !std::mem::replace(&mut needed[next], true) {
                open.extend(reads(next, None));
            }
        }
        needed
    };
    let mut placed = vec![false; units.len()];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for unit in 0..units.len() {
        if placed[unit] {
            continue;
        }
        let mut group = vec![unit];
        let runs = |unit: usize| !matches!(units[unit].decision, Decision::Reuse { .. });
        for follower in (unit + 1..units.len()).filter(|&other| runs(unit) && runs(other)) {
            let node = &pipeline.nodes[units[follower].nodes[0]];
            let Some(streamed) = node.plan.streamed else { continue };
            let follows = match &node.inputs[streamed].resolved {
                Resolved::Stage { node, table } => table == MAIN && unit_of(*node) == Some(unit),
                _ => false,
            };
            if !follows {
                continue;
            }
            let needed = needs(follower, streamed);
            if needed[unit] {
                continue;
            }
            for before in (0..units.len()).filter(|&before| needed[before]) {
                if !std::mem::replace(&mut placed[before], true) {
                    groups.push(vec![before]);
                }
            }
            placed[follower] = true;
            group.push(follower);
        }
        placed[unit] = true;
        groups.push(group);
    }
    groups
}

/// The nodes that must be there for `until`, or all.
fn needed(pipeline: &Pipeline, until: Option<&str>) -> Result<Vec<bool>, RunError> {
    let Some(until) = until else { return Ok(vec![true; pipeline.nodes.len()]) };
    // All variants of a swept stage, or the one of that name.
    let is_goal = |node: &Node| node.family() == until || node.name == until;
    let goals: Vec<usize> =
        (0..pipeline.nodes.len()).filter(|&node| is_goal(&pipeline.nodes[node])).collect();
    if goals.is_empty() {
        let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(RunError::user_with_hint(
            format!("--until: there is no stage `{until}`"),
            format!("the stages are {}", names.join(", ")),
        ));
    }
    let mut needed: Vec<bool> = (0..pipeline.nodes.len()).map(|node| goals.contains(&node)).collect();
    for node in (0..pipeline.nodes.len()).rev() {
        if needed[node] {
            for before in pipeline.nodes[node].inputs.iter().flat_map(|input| input.resolved.nodes()) {
                needed[*before] = true;
            }
        }
    }
    Ok(needed)
}

/// The stage whose rows a row stage transforms.
fn rows_of(pipeline: &Pipeline, node: usize) -> Option<usize> {
    let this = &pipeline.nodes[node];
    match (&this.work, &this.rows_input()?.resolved) {
        (Work::Rows(_), Resolved::Stage { node, table }) if table == MAIN => Some(*node),
        _ => None,
    }
}

/// For each node, the needed nodes that read one of its own tables, each once.
fn readers(pipeline: &Pipeline, needed: &[bool]) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); pipeline.nodes.len()];
    for reader in (0..pipeline.nodes.len()).filter(|&reader| needed[reader]) {
        for input in &pipeline.nodes[reader].inputs {
            if let Resolved::Stage { node, .. } = &input.resolved
                && readers[*node].last() != Some(&reader)
            {
                readers[*node].push(reader);
            }
        }
    }
    readers
}

/// Whether a node passes its rows straight on: its one consumer is a row stage that keeps all its
/// columns, so that its own dataset is a view over the consumer's shards and rejects.
fn fuses(pipeline: &Pipeline, node: usize, readers: &[usize]) -> bool {
    let this = &pipeline.nodes[node];
    let Some(columns) = &this.plan.main else { return false };
    if !matches!(this.work, Work::Rows(_) | Work::Source(_)) || !this.plan.side.is_empty() {
        return false;
    }
    // A variant is a table together with the others.
    if this.variant.is_some() {
        return false;
    }
    let [consumer] = *readers else { return false };
    let next = &pipeline.nodes[consumer];
    if next.plan.split_by.is_some() {
        return false;
    }
    let only_rows = next.table_inputs().all(|input| !input.resolved.nodes().contains(&node));
    let kept = |field: &Field| {
        let after = next.plan.main.as_ref().and_then(|main| main.field_with_name(field.name()).ok());
        after.is_some_and(|after| after.data_type() == field.data_type())
            && !next.plan.computes.contains(field.name())
    };
    rows_of(pipeline, consumer) == Some(node)
        && only_rows
        && next.keep_rejects
        && this.keep_rejects
        && columns.fields().iter().all(|field| kept(field))
}

fn decide(state: Option<&State>, unit: &Unit, pipeline: &Pipeline) -> Decision {
    match (State::recovery(state, &unit.recipe.fingerprint), state) {
        (Recovery::Reuse, Some(state)) => Decision::Reuse { rows: state.rows(MAIN) },
        (Recovery::Resume, Some(state)) => Decision::Resume { splits: state.commits.len() as u64 },
        (Recovery::Replace, Some(state)) => {
            Decision::Run { why: difference(&state.begin.recipe, &unit.kept(pipeline)) }
        }
        _ => Decision::Run { why: "not made yet".into() },
    }
}
