//! What prompts gain over the bare class name.

use super::super::model::{Bar, Bars, Block, Chart, Plot, Section, Table};
use super::super::query::{ReportData, fetch_rows, has_view, number, percent};
use crate::errors::Failure;

/// At most this many bars.
const MAX_BARS: usize = 40;

pub(super) async fn gains(data: &ReportData<'_>) -> Result<Option<Section>, Failure> {
    if !has_view(data.session, "prompt_gain")? {
        return Ok(None);
    }
    let rows = fetch_rows(
        data.session,
        "select set, metric, model, prompts, value, bare, gain, gain_low, gain_high, p, n from views.prompt_gain where part = 'all'
         order by set, metric, model, gain desc, prompts",
    )
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let points = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:+.1}", 100.0 * value));
    let mut table = Table::new(
        "Gain over the bare class name in percentage points; intervals are paired over the same examples",
        &[
            ("set", false),
            ("metric", false),
            ("model", false),
            ("prompts", false),
            ("bare", true),
            ("value", true),
            ("gain", true),
            ("from", true),
            ("to", true),
            ("p", true),
        ],
    );
    let mut bars = Vec::new();
    for row in rows.iter() {
        let (low, high) = (row.number("gain_low"), row.number("gain_high"));
        table.rows.push(vec![
            row.text("set"),
            row.text("metric"),
            row.text("model"),
            row.text("prompts"),
            percent(row.number("bare")),
            percent(row.number("value")),
            points(row.number("gain")),
            points(low),
            points(high),
            number(row.number("p")),
        ]);
        let Some(gain) = row.number("gain") else { continue };
        bars.push(Bar {
            group: format!("{} {}", row.text("set"), row.text("metric")),
            interval: low.zip(high).map(|(low, high)| (100.0 * low, 100.0 * high)),
            ..Bar::plain(row.text("prompts"), 100.0 * gain, points(Some(gain)))
        });
    }
    let higher = bars.iter().filter(|bar| bar.interval.is_some_and(|(low, _)| low > 0.0)).count();
    let lower = bars.iter().filter(|bar| bar.interval.is_some_and(|(_, high)| high < 0.0)).count();
    let alt = format!(
        "{} gains in percentage points; {higher} are significantly above 0, {lower} below.",
        bars.len()
    );
    bars.truncate(MAX_BARS);
    let plot = Plot::Bars(Bars::new("percentage points over the bare class name", bars));
    let chart = Chart { title: "Gain over the bare class name".into(), alt, plot };
    Ok(Section::new("prompts", "Gain from prompts", vec![Block::Chart { chart, numbers: table }]))
}
