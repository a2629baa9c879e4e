//! Tells a dead network from dead links: when nothing can be reached, the run stops instead of
//! rejecting every row.

use std::collections::{HashSet, VecDeque};

/// Outcomes that are looked at.
const WINDOW: usize = 64;
/// Outcomes before it may trip.
const FEW: usize = 20;
/// Hosts that must have failed, once anything was ever reached: one dead host is not a dead
/// network.
const HOSTS: usize = 5;

/// Counts who could be reached. Pure logic: hosts are given by name or by hash.
#[derive(Debug)]
pub struct Breaker {
    rate: f64,
    recent: VecDeque<(u64, bool)>,
    seen: u64,
    reached: bool,
    tripped: Option<String>,
}

impl Breaker {
    /// Trips when more than this share of the recent fetches found nobody; 1 never trips.
    pub fn new(rate: f64) -> Self {
        Self { rate, recent: VecDeque::new(), seen: 0, reached: false, tripped: None }
    }

    /// Counts the outcome of one fetch after its retries. `failure` says what happened, when nobody
    /// was reached.
    pub fn record(&mut self, host: u64, failure: Option<&str>) {
        self.seen += 1;
        self.reached |= failure.is_none();
        self.recent.push_back((host, failure.is_some()));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let failed = self.recent.iter().filter(|(_, failed)| *failed).count();
        let enough = self.recent.len() >= FEW && failed as f64 > self.rate * self.recent.len() as f64;
        if let (Some(failure), true) = (failure, enough && (!self.reached || self.failed_hosts() >= HOSTS)) {
            let recent = self.recent.len();
            self.tripped.get_or_insert_with(|| {
                format!("{failed} of the last {recent} fetches found nobody; the last: {failure}")
            });
        }
    }

    fn failed_hosts(&self) -> usize {
        self.recent.iter().filter(|(_, failed)| *failed).map(|(host, _)| host).collect::<HashSet<_>>().len()
    }

    /// Why the network is taken to be down.
    pub fn tripped(&self) -> Option<&str> {
        self.tripped.as_deref()
    }

    /// At the end of a piece of work too small to trip: whether of several hosts none at all was
    /// ever reached.
    pub fn reached_nobody(&self) -> bool {
        self.rate < 1.0 && !self.reached && self.failed_hosts() >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `(host, reached)` and says after how many outcomes it tripped.
    fn trips(rate: f64, outcomes: impl Iterator<Item = (u64, bool)>) -> Option<usize> {
        let mut breaker = Breaker::new(rate);
        for (index, (host, reached)) in outcomes.enumerate() {
            breaker.record(host, (!reached).then_some("no route"));
            if breaker.tripped().is_some() {
                return Some(index + 1);
            }
        }
        None
    }

    #[test]
    fn it_trips_on_a_dead_network_alone() {
        assert_eq!(trips(0.95, (0..100).map(|i| (i, false))), Some(FEW), "dead from the start");
        assert_eq!(trips(0.95, (0..100).map(|_| (0, false))), Some(FEW), "one host, never reached");
        let dies = (0..200).map(|i| (i, i < 100));
        assert_eq!(trips(0.95, dies), Some(161), "dies after 100: when 61 of the last 64 failed");
        assert_eq!(trips(0.95, (0..1000).map(|i| (i, i % 10 == 0))), None, "nine of ten links are dead");
        assert_eq!(
            trips(0.95, (0..1000).map(|i| (if i == 0 { 1 } else { 0 }, i == 0))),
            None,
            "one dead host"
        );
        assert_eq!(trips(1.0, (0..1000).map(|i| (i, false))), None, "switched off");
    }

    #[test]
    fn a_small_piece_of_work_may_reach_nobody() {
        let mut breaker = Breaker::new(0.95);
        for host in 0..3 {
            assert!(!breaker.reached_nobody());
            breaker.record(host, Some("no route"));
        }
        assert!(breaker.reached_nobody());
        breaker.record(9, None);
        assert!(!breaker.reached_nobody());
    }
}
