//! `twinlens model cost`: what a training step costs on each rank.

use std::io::Write;

use twinlens_model::ClipConfig;
use twinlens_train::{CostQuery, RankSpeed, StepCost, StepTime};

use crate::cli::CostArgs;
use crate::errors::Failure;
use crate::models;
use crate::table::TableWriter;

/// GB/s between a GPU and its host over PCIe 4.0, as a rule.
const HOST_GBPS: f64 = 25.0;

/// A line of the table: what it says, of one number of ranks.
type Line = (&'static str, fn(&Column) -> f64);

/// The cost for one number of ranks.
struct Column {
    ranks: usize,
    batch: usize,
    cost: StepCost,
    time: Option<StepTime>,
}

const COST: [Line; 14] = [
    ("pairs per rank", |c| c.cost.pairs as f64),
    ("weights, GB", |c| c.cost.memory.weights / 1e9),
    ("gradients, GB", |c| c.cost.memory.gradients / 1e9),
    ("moments, GB", |c| c.cost.memory.moments / 1e9),
    ("gradients being summed, GB", |c| c.cost.memory.sums / 1e9),
    ("activations, GB", |c| c.cost.memory.activations / 1e9),
    ("features of the batch, GB", |c| c.cost.memory.features / 1e9),
    ("pixels, GB", |c| c.cost.memory.pixels / 1e9),
    ("memory of a rank, GB", |c| c.cost.memory.total() / 1e9),
    ("towers, TFLOP", |c| c.cost.tower_flops / 1e12),
    ("comparison of pairs, TFLOP", |c| c.cost.loss_flops / 1e12),
    ("features sent, GB", |c| c.cost.gather_bytes / 1e9),
    ("gradients and weights sent, GB", |c| c.cost.sent_for_weights() / 1e9),
    ("to the host and back, GB", |c| c.cost.copied() / 1e9),
];

/// A line about time.
type TimeLine = (&'static str, fn(&Column, &StepTime) -> f64);

const TIME: [TimeLine; 9] = [
    ("towers, s", |_, t| t.towers),
    ("comparison of pairs, s", |_, t| t.loss),
    ("to the host and back, s", |_, t| t.copies),
    ("features over the network, s", |_, t| t.gather),
    ("gradients over the network, s", |_, t| t.reduce),
    ("of these, while the towers compute, s", |_, t| t.overlap),
    ("step, s", |_, t| t.total()),
    ("pairs per second", |c, t| c.batch as f64 / t.total()),
    ("towers' share of the step", |_, t| t.efficiency()),
];

pub(crate) fn execute(args: &CostArgs) -> Result<(), Failure> {
    let config = models::preset(&args.name)?;
    if !config.objective.embeds_texts() {
        return Err(Failure::user(format!("`{}` does not compare pairs; its cost is not known", args.name)));
    }
    let columns = args.ranks.iter().map(|ranks| column(args, &config, usize::from(*ranks)));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let header = |column: &Column| match column.ranks {
        1 => "1 rank".into(),
        ranks => format!("{ranks} ranks"),
    };
    let headers: Vec<String> = columns.iter().map(header).collect();
    let names: Vec<&str> =
        ["of each rank and step"].into_iter().chain(headers.iter().map(String::as_str)).collect();
    let right: Vec<bool> = (0..names.len()).map(|place| place > 0).collect();
    let mut table = TableWriter::with_columns(std::io::stdout().lock(), &names, &right);
    for (name, value) in COST {
        let values = columns.iter().map(|column| number(value(column)));
        table.row([name.to_string()].into_iter().chain(values).collect())?;
    }
    for (name, value) in TIME {
        let values: Vec<String> =
            columns.iter().filter_map(|c| Some(number(value(c, c.time.as_ref()?)))).collect();
        if !values.is_empty() {
            table.row([name.to_string()].into_iter().chain(values).collect())?;
        }
    }
    let mut out = table.finish()?;
    if args.tflops.is_none() {
        writeln!(out, "\nfor times, add --tflops and --gbps")?;
    }
    Ok(())
}

fn column(args: &CostArgs, config: &ClipConfig, ranks: usize) -> Result<Column, Failure> {
    let batch = args.batch as usize;
    if !batch.is_multiple_of(ranks) || batch < 2 * ranks {
        return Err(Failure::user(format!("--batch {batch} is not a multiple of {ranks} ranks"))
            .hint("each rank takes an equal part of each batch, of at least two pairs"));
    }
    let query = CostQuery {
        config: config.clone(),
        batch,
        ranks,
        micro_batch: args.micro_batch.map(|pairs| pairs as usize),
        precision: args.precision,
        recompute: args.recompute,
        shard_optimizer: args.shard_optimizer,
    };
    let cost = query.step();
    let time = args.tflops.zip(args.gbps).map(|(tflops, gbps)| {
        let is_gpu = !args.precision.is_f32();
        cost.time(&RankSpeed {
            flops: tflops * 1e12,
            network: gbps * 1e9,
            host: is_gpu.then_some(args.host_gbps.unwrap_or(HOST_GBPS) * 1e9),
        })
    });
    Ok(Column { ranks, batch, cost, time })
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}
