//! Every environment variable that the program itself reads. (Those that a pipeline file lists
//! under `env` are read for it by name.)

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twinlens_pipeline::Clock;

use crate::errors::Failure;

/// Seconds since 1970: pins the time of day, so that a run can be repeated byte for byte
/// (reproducible-builds.org).
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Set and not empty: no colours (no-color.org).
const NO_COLOR: &str = "NO_COLOR";
/// Where the history of the SQL prompt is kept: in `twinlens/` below it.
const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Where copies of remote files are kept: in `twinlens/` below it.
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The user's folder; `.local/state` and `.cache` below it stand in for what is not set of the two
/// above.
const HOME: &str = "HOME";

/// The folder of the Hugging Face library: `~/.cache/huggingface` if it is not set.
const HF_HOME: &str = "HF_HOME";
/// Its folder of downloaded files: `hub` below `HF_HOME` if it is not set.
const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
/// 1, on, yes or true: nothing is downloaded, the cache alone is used.
const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
/// Where the hub is.
const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// Opens what is not public.
const HF_TOKEN: &str = "HF_TOKEN";

/// The whole environment: a pipeline file gets of it what it lists under `env`. Values that are no
/// text are left out.
pub fn all() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The clock of a run.
pub fn clock() -> Result<Clock, Failure> {
    match std::env::var_os(SOURCE_DATE_EPOCH) {
        None => Ok(Clock::System),
        Some(text) => match moment(&text) {
            Some(moment) => Ok(Clock::Fixed(moment)),
            None => Err(Failure::user(format!(
                "{SOURCE_DATE_EPOCH}={} is no number of seconds",
                text.to_string_lossy()
            ))),
        },
    }
}

fn moment(text: &OsString) -> Option<SystemTime> {
    let seconds: u64 = text.to_str()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Whether colours were asked to be left out.
pub fn no_color() -> bool {
    std::env::var_os(NO_COLOR).is_some_and(|value| !value.is_empty())
}

/// The folder for what the program remembers between calls.
pub fn state_dir() -> Option<PathBuf> {
    let state = absolute(XDG_STATE_HOME).or_else(|| Some(absolute(HOME)?.join(".local/state")))?;
    Some(state.join("twinlens"))
}

/// The folder for copies of remote files; made when the first is copied.
pub fn cache_dir() -> PathBuf {
    let cache = absolute(XDG_CACHE_HOME).or_else(|| Some(absolute(HOME)?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("twinlens")
}

/// The folder where the Hugging Face library keeps what it downloads.
pub fn hub_cache() -> Option<PathBuf> {
    let home = || {
        let cache = absolute(XDG_CACHE_HOME).or_else(|| Some(absolute(HOME)?.join(".cache")));
        absolute(HF_HOME).or_else(|| Some(cache?.join("huggingface")))
    };
    absolute(HF_HUB_CACHE).or_else(|| Some(home()?.join("hub")))
}

/// The address of the hub, without a slash at its end.
pub fn hub_endpoint() -> String {
    let endpoint = text(HF_ENDPOINT).unwrap_or_else(|| "https://huggingface.co".into());
    endpoint.trim_end_matches('/').into()
}

/// Whether nothing may be downloaded from the hub.
pub fn hub_offline() -> bool {
    let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
    text(HF_HUB_OFFLINE).is_some_and(on)
}

/// The token for the hub.
pub fn hub_token() -> Option<String> {
    text(HF_TOKEN)
}

fn text(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_seconds_pin_the_clock() {
        assert_eq!(moment(&"1700000000".into()), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(moment(&text.into()), None, "{text}");
        }
    }
}
