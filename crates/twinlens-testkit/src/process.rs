//! Processes that a test started.

use std::time::{Duration, Instant};

/// Whether a process ends within `limit`. One that has ended but was not waited for counts.
pub fn ends_within(pid: &str, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
