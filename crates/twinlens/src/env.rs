//! Every environment variable that the program itself reads. A pipeline file reads others by
//! listing them under `env`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twinlens_pipeline::Clock;

/// Seconds since 1970: fixes the clock, so that a run is reproducible byte for byte
/// (reproducible-builds.org).
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Which log messages go to stderr, in the syntax of `RUST_LOG`: `debug`,
/// `twinlens_crawl=debug,info`.
pub(crate) const TWINLENS_LOG: &str = "TWINLENS_LOG";
/// The scheduler whose executors make the splits of runs.
const TWINLENS_ON: &str = "TWINLENS_ON";
/// Not empty: no colours (no-color.org).
const NO_COLOR: &str = "NO_COLOR";
/// The history of the SQL prompt is in `twinlens/` below it.
const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Copies of remote files are in `twinlens/` below it.
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// `.local/state` and `.cache` below it are the defaults of the two variables above.
const HOME: &str = "HOME";

/// The directory of the Hugging Face libraries. Default: `~/.cache/huggingface`.
const HF_HOME: &str = "HF_HOME";
/// Downloaded files of the Hub. Default: `hub` below `HF_HOME`.
const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
/// 1, on, yes or true: only the cache is used.
const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
/// Base URL of the Hub.
const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// Token for private repositories.
const HF_TOKEN: &str = "HF_TOKEN";

/// A secret that all ranks of a training know, which meet by TCP.
const TWINLENS_TOKEN: &str = "TWINLENS_TOKEN";

/// A variable of a launcher: see `twinlens_ranks::Launch`.
pub(crate) fn of_launcher(name: &str) -> Option<String> {
    non_empty(name)
}

pub(crate) fn ranks_token() -> Option<String> {
    non_empty(TWINLENS_TOKEN)
}

/// All variables whose values are UTF-8; a pipeline file sees those that it lists under `env`.
pub(crate) fn all() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The clock of a run.
///
/// # Errors
/// The message for the user, if the variable is not a whole number.
pub(crate) fn clock() -> Result<Clock, String> {
    match std::env::var_os(SOURCE_DATE_EPOCH) {
        None => Ok(Clock::System),
        Some(text) => match parse_epoch(&text) {
            Some(time) => Ok(Clock::Fixed(time)),
            None => Err(format!(
                "{SOURCE_DATE_EPOCH}={} is not a whole number of seconds",
                text.to_string_lossy()
            )),
        },
    }
}

fn parse_epoch(text: &OsString) -> Option<SystemTime> {
    let seconds: u64 = text.to_str()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

pub(crate) fn log_filter() -> Option<String> {
    non_empty(TWINLENS_LOG)
}

pub(crate) fn scheduler() -> Option<String> {
    non_empty(TWINLENS_ON)
}

pub(crate) fn no_color() -> bool {
    std::env::var_os(NO_COLOR).is_some_and(|value| !value.is_empty())
}

/// The directory for state that outlives a call.
pub(crate) fn state_dir() -> Option<PathBuf> {
    let state = absolute_path(XDG_STATE_HOME).or_else(|| Some(absolute_path(HOME)?.join(".local/state")))?;
    Some(state.join("twinlens"))
}

/// The directory for copies of remote files; it may not exist yet.
pub(crate) fn cache_dir() -> PathBuf {
    let cache = absolute_path(XDG_CACHE_HOME).or_else(|| Some(absolute_path(HOME)?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("twinlens")
}

/// The cache of the Hugging Face libraries.
pub(crate) fn hub_cache() -> Option<PathBuf> {
    let home = || {
        let cache = absolute_path(XDG_CACHE_HOME).or_else(|| Some(absolute_path(HOME)?.join(".cache")));
        absolute_path(HF_HOME).or_else(|| Some(cache?.join("huggingface")))
    };
    absolute_path(HF_HUB_CACHE).or_else(|| Some(home()?.join("hub")))
}

/// Base URL of the Hub, without a trailing slash.
pub(crate) fn hub_endpoint() -> String {
    let endpoint = non_empty(HF_ENDPOINT).unwrap_or_else(|| "https://huggingface.co".into());
    endpoint.trim_end_matches('/').into()
}

pub(crate) fn hub_offline() -> bool {
    let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
    non_empty(HF_HUB_OFFLINE).is_some_and(on)
}

pub(crate) fn hub_token() -> Option<String> {
    non_empty(HF_TOKEN)
}

fn non_empty(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

fn absolute_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_seconds_fix_the_clock() {
        assert_eq!(parse_epoch(&"1700000000".into()), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(parse_epoch(&text.into()), None, "{text}");
        }
    }
}
