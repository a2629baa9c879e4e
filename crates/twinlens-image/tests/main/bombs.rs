//! Bombs of every format are decoded or refused within their budgets of memory and time.

use twinlens_image::{CODES, ImageModes, Limits, decode_as, probe, silence_decoder_panics};
use twinlens_testkit::bombs::{IMAGE_BOMBS, Size};
use twinlens_testkit::memory::{cpu_seconds, peak};

/// What decoding may take beside [`twinlens_image::Header::decode_bytes`]: metadata of up to
/// 16 MiB, of which there are up to three copies, and tables.
const SLACK: u64 = 64 << 20;

struct Cost {
    code: &'static str,
    seconds: f64,
    peak: u64,
    budget: u64,
}

fn cost(bytes: &[u8], modes: ImageModes) -> Cost {
    let limits = Limits::default();
    let budget = probe(bytes, &limits).map_or(0, |header| header.decode_bytes) + SLACK;
    let start = cpu_seconds();
    let (result, peak) = peak(|| decode_as(bytes, &limits, modes).map(drop));
    let seconds = cpu_seconds().zip(start).map_or(0.0, |(end, start)| end - start);
    let code = result.map_or_else(|error| error.code(), |()| "decoded");
    Cost { code, seconds, peak, budget }
}

/// The costs of all bombs of a size, and what exceeds its budget.
fn explode(size: Size, seconds: f64) -> (String, Vec<String>) {
    silence_decoder_panics();
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for (name, make) in IMAGE_BOMBS {
        let bytes = make(size);
        for modes in [ImageModes::White, ImageModes::OpenClip] {
            let cost = cost(&bytes, modes);
            let line = format!(
                "{name}, {}: {} KB, {}, {:.2} s, {} MB of {}\n",
                modes.name(),
                bytes.len() >> 10,
                cost.code,
                cost.seconds,
                cost.peak >> 20,
                cost.budget >> 20,
            );
            let known = cost.code == "decoded" || CODES.contains(&cost.code);
            if !known || cost.code == "decoder_panicked" || cost.peak > cost.budget || cost.seconds > seconds
            {
                wrong.push(line.clone());
            }
            table += &line;
        }
    }
    (table, wrong)
}

#[test]
fn bombs_stay_within_their_budgets() {
    let (table, wrong) = explode(Size { side: 1024, length: 2 << 20 }, 2.0);
    assert!(wrong.is_empty(), "{}\nof\n{table}", wrong.concat());
    assert!(table.matches("decoded").count() > IMAGE_BOMBS.len(), "{table}");
}

/// The largest that the default limits allow. It takes minutes: run it alone, in a release build.
#[test]
#[ignore = "takes minutes"]
fn the_largest_bombs_stay_within_their_budgets() {
    let (table, wrong) = explode(Size { side: 7056, length: 31 << 20 }, 2.5);
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.concat());
}
