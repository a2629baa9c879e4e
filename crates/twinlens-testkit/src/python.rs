//! The Python that tests call.

use std::path::PathBuf;
use std::process::Command;

/// The Python that has the `modules`: `TWINLENS_TEST_PYTHON`, else `python3`. `None` if it lacks
/// them and nobody asked for it.
///
/// # Panics
/// It lacks them, and `TWINLENS_TEST_PYTHON` or `CI` is set.
pub fn python(modules: &str) -> Option<PathBuf> {
    let chosen = std::env::var("TWINLENS_TEST_PYTHON").ok();
    let is_required = chosen.is_some() || std::env::var_os("CI").is_some();
    let python = chosen.unwrap_or_else(|| "python3".into());
    let print = format!("import sys, {modules}; print(sys.executable)");
    match Command::new(&python).args(["-c", &print]).output() {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).trim().to_string().into())
        }
        _ if is_required => panic!("{python} lacks one of {modules}"),
        _ => {
            eprintln!("skipped: {python} lacks one of {modules}");
            None
        }
    }
}
