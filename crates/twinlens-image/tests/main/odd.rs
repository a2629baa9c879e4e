//! Every odd image of the testkit gets its reject code, quickly and with little memory.

use std::time::{Duration, Instant};

use twinlens_image::{CODES, Encode, Limits, Resize, process};
use twinlens_testkit::images::odd_images;

/// Peak memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn odd_images_get_their_codes_quickly_and_with_little_memory() {
    let images = odd_images();
    let (before, mut wrong) = (peak_memory(), Vec::new());
    for image in &images {
        let start = Instant::now();
        let code = process(&image.bytes, &Limits::default(), &Resize::default(), &Encode::default());
        let (found, message) = match &code {
            Ok(_) => (None, String::new()),
            Err(error) => (Some(error.code()), error.to_string()),
        };
        if found != image.code {
            wrong.push(format!("{}: {found:?} ({message}), expected {:?}", image.name, image.code));
        }
        assert!(found.is_none_or(|code| CODES.contains(&code)));
        assert!(start.elapsed() < Duration::from_secs(3), "{}: {:?}", image.name, start.elapsed());
    }
    assert!(wrong.is_empty(), "of {}:\n{}", images.len(), wrong.join("\n"));
    let more = peak_memory() - before;
    assert!(more < 200 << 20, "{} MB more at the peak", more >> 20);
}
