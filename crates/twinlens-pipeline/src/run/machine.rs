//! On which machine a run's datasets were made: for the report, nothing else depends on it.

use std::fs;
use std::thread::available_parallelism;

use twinlens_dataset::storage::Location;

/// A file of the run directory.
const FILE: &str = ".machine";

/// Records this machine and the version of this program, where the last dataset was made. Without
/// it, the report says less.
pub(super) fn record(dir: &Location) {
    let (file, text) = (dir.join(FILE), describe());
    if file.read().ok().flatten().is_none_or(|known| known != text.as_bytes()) {
        let _ = file.write(text.as_bytes());
    }
}

/// What was recorded: `twinlens 0.2.0 on linux x86_64, 2 cores of AMD EPYC 9B45`.
pub fn recorded(dir: &Location) -> Option<String> {
    String::from_utf8(dir.join(FILE).read().ok()??).ok().filter(|text| text.lines().count() == 1)
}

fn describe() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let cores = match available_parallelism().map_or(1, |cores| cores.get()) {
        1 => "1 core".to_owned(),
        cores => format!("{cores} cores"),
    };
    let processor = processor().map_or(String::new(), |name| format!(" of {name}"));
    format!("twinlens {version} on {os} {arch}, {cores}{processor}")
}

/// The name of the processor, if the system tells it.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let dir: Location = folder.path().into();
        assert_eq!(recorded(&dir), None);
        record(&dir);
        record(&dir);
        let text = recorded(&dir).unwrap();
        assert!(text.starts_with("twinlens ") && text.contains(" core"), "{text}");
    }
}
