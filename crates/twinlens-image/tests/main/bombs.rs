//! Bombs of every format are decoded or refused within their budgets of memory and time.

use std::fs;
use std::process::Command;

use twinlens_image::{CODES, ImageModes, Limits, decode, decode_as, probe, silence_decoder_panics};
use twinlens_testkit::avif::AVIF_BOMBS;
use twinlens_testkit::bombs::{IMAGE_BOMBS, Size, tiff_head, webp_codes};
use twinlens_testkit::images::riff;
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

/// With `TWINLENS_BOMBS=largest`, the largest bombs that the default limits allow are tried. That
/// takes minutes: run it alone, in a release build.
fn is_largest() -> bool {
    std::env::var("TWINLENS_BOMBS").is_ok_and(|size| size == "largest")
}

fn size() -> Size {
    if is_largest() { Size { side: 7056, length: 31 << 20 } } else { Size { side: 1024, length: 2 << 20 } }
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
    let (table, wrong) = explode(size(), if is_largest() { 2.5 } else { 2.0 });
    println!("{table}");
    assert!(wrong.is_empty(), "{}\nof\n{table}", wrong.concat());
    assert!(table.matches("decoded").count() > IMAGE_BOMBS.len(), "{table}");
}

/// AVIF is decoded on a thread of its own, which counts for itself: each bomb gets a process.
#[test]
fn avif_bombs_stay_within_their_budgets() {
    // The largest that may be decoded, of 12 bits in three planes of full size.
    let size = if is_largest() { Size { side: 2824, ..size() } } else { size() };
    let (table, wrong) = explode_avif(size, if is_largest() { 2.5 } else { 2.0 });
    println!("{table}");
    assert!(wrong.is_empty(), "{}\nof\n{table}", wrong.concat());
    assert!(table.matches("decoded").count() * 2 > AVIF_BOMBS.len(), "{table}");
}

fn explode_avif(size: Size, seconds: f64) -> (String, Vec<String>) {
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for (index, (name, _)) in AVIF_BOMBS.iter().enumerate() {
        let bomb = format!("{index} {} {}", size.side, size.length);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bombs::one_avif_bomb", "--nocapture"])
            .env("TWINLENS_AVIF_BOMB", bomb)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            text.lines().find_map(|line| line.split_once("cost ")).map(|(_, cost)| cost).unwrap_or_default();
        let fields: Vec<_> = line.split(' ').collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
        let line = format!("{name}: {line}\n");
        let known = fields[0] == "decoded" || CODES.contains(&fields[0]);
        let within =
            number(1).is_some_and(|used| used <= seconds) && number(2) <= number(3) && number(3).is_some();
        if !known || fields[0] == "decoder_panicked" || !within || !output.status.success() {
            wrong.push(format!("{line}{text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        table += &line;
    }
    (table, wrong)
}

/// A larger one is refused by its header.
#[test]
fn avif_that_may_cost_too_much_is_refused() {
    let bomb = |side| AVIF_BOMBS[0].1(Size { side, length: 1000 });
    let limits = Limits::default();
    assert!(probe(&bomb(2824), &limits).is_ok());
    assert_eq!(probe(&bomb(2832), &limits).unwrap_err().code(), "too_costly");
}

/// Their costs grow with what their headers announce: as much as costs two seconds is allowed.
#[test]
fn tiff_and_webp_that_may_cost_too_much_are_refused() {
    let code =
        |bytes: &[u8]| probe(bytes, &Limits::default()).map_or_else(|error| error.code(), |_| "decoded");
    for (side, expected) in [(6324, "decoded"), (6325, "too_costly"), (7071, "too_costly")] {
        assert_eq!(code(&tiff_head(side)), expected, "side {side}");
    }
    let length = 4 << 20;
    for (groups, expected) in
        [(1, "decoded"), (32_768, "decoded"), (32_769, "too_costly"), (65_536, "too_costly")]
    {
        assert_eq!(code(&webp_codes(groups, length)), expected, "{groups} groups");
        // The same as the first frame of an animation.
        assert_eq!(code(&animated(&webp_codes(groups, length))), expected, "{groups} groups of a frame");
    }
    // A damaged file may be read in another way than ours.
    let mut damaged = webp_codes(1, length);
    damaged[30..40].fill(0xff);
    assert_eq!(code(&damaged), "too_costly");
}

/// An animation whose first frame, of 16 x 16 pixels, is a WebP file of one chunk.
fn animated(file: &[u8]) -> Vec<u8> {
    let head = [2, 0, 0, 0, 15, 0, 0, 15, 0, 0];
    let frame = [[0; 6].as_slice(), &[15, 0, 0, 15, 0, 0], &[0; 4], &file[12..]].concat();
    riff(&[(b"VP8X", &head), (b"ANIM", &[0; 6]), (b"ANMF", &frame)])
}

/// Decodes the bomb that `TWINLENS_AVIF_BOMB` names by number, side and length, or a small one, and
/// prints its code, the seconds and the most MB that it cost the process, and the budget.
#[test]
fn one_avif_bomb() {
    silence_decoder_panics();
    let bomb = std::env::var("TWINLENS_AVIF_BOMB").unwrap_or("1 64 1000".into());
    let numbers: Vec<usize> = bomb.split(' ').map(|number| number.parse().unwrap()).collect();
    let bytes = AVIF_BOMBS[numbers[0]].1(Size { side: numbers[1] as u32, length: numbers[2] });
    let limits = Limits::default();
    let budget = probe(&bytes, &limits).map_or(0, |header| header.decode_bytes) + SLACK;
    // From here on the highest mark counts.
    let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
    let (before, start) = (status("VmRSS:"), process_seconds());
    let result = decode(&bytes, &limits);
    let (peak, seconds) = (status("VmHWM:").saturating_sub(before), process_seconds() - start);
    let code = result.as_ref().map_or_else(|error| error.code(), |_| "decoded");
    let peak = if reset { peak >> 10 } else { 0 };
    println!("cost {code} {seconds:.2} {peak} {} KB {}", budget >> 20, bytes.len() >> 10);
    assert!(code == "decoded" || CODES.contains(&code));
}

/// A value of this process in KB.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Seconds of a core that this process has used.
fn process_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}
