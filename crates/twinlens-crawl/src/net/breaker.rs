//! Distinguishes a dead network from dead links: when nothing can be reached, the run stops instead
//! of rejecting every row.

use std::collections::{HashSet, VecDeque};

/// Recent outcomes that are considered.
const WINDOW: usize = 64;
/// Outcomes needed before the breaker may trip.
const MIN_OUTCOMES: usize = 20;
/// Distinct hosts that must have failed once any host was reached: one dead host is not a dead
/// network.
const MIN_FAILED_HOSTS: usize = 5;

/// Counts which hosts could be reached. Hosts are identified by a hash.
#[derive(Debug)]
pub(super) struct Breaker {
    max_rate: f64,
    recent: VecDeque<(u64, bool)>,
    any_reached: bool,
    tripped: Option<String>,
}

impl Breaker {
    /// Trips when more than `max_rate` of the recent fetches could not reach their host; 1 never
    /// trips.
    pub(super) fn new(max_rate: f64) -> Self {
        Self { max_rate, recent: VecDeque::new(), any_reached: false, tripped: None }
    }

    /// Records the outcome of one fetch after its retries. `failure` is the reason if the host
    /// could not be reached.
    pub(super) fn record(&mut self, host: u64, failure: Option<&str>) {
        self.any_reached |= failure.is_none();
        self.recent.push_back((host, failure.is_some()));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let failed = self.recent.iter().filter(|(_, failed)| *failed).count();
        let enough =
            self.recent.len() >= MIN_OUTCOMES && failed as f64 > self.max_rate * self.recent.len() as f64;
        if let (Some(failure), true) =
            (failure, enough && (!self.any_reached || self.failed_hosts() >= MIN_FAILED_HOSTS))
        {
            let recent = self.recent.len();
            self.tripped.get_or_insert_with(|| {
                format!("{failed} of the last {recent} fetches could not reach their host; last failure: {failure}")
            });
        }
    }

    fn failed_hosts(&self) -> usize {
        self.recent.iter().filter(|(_, failed)| *failed).map(|(host, _)| host).collect::<HashSet<_>>().len()
    }

    /// Why the network is taken to be down.
    pub(super) fn tripped(&self) -> Option<&str> {
        self.tripped.as_deref()
    }

    /// For use at the end of work too small to trip: whether none of several hosts was ever
    /// reached.
    pub(super) fn reached_no_host(&self) -> bool {
        self.max_rate < 1.0 && !self.any_reached && self.failed_hosts() >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `(host, reached)` outcomes; returns how many it took to trip.
    fn trips(max_rate: f64, outcomes: impl Iterator<Item = (u64, bool)>) -> Option<usize> {
        let mut breaker = Breaker::new(max_rate);
        for (index, (host, any_reached)) in outcomes.enumerate() {
            breaker.record(host, (!any_reached).then_some("no route"));
            if breaker.tripped().is_some() {
                return Some(index + 1);
            }
        }
        None
    }

    #[test]
    fn only_a_dead_network_trips_it() {
        assert_eq!(trips(0.95, (0..100).map(|i| (i, false))), Some(MIN_OUTCOMES), "dead from the start");
        assert_eq!(trips(0.95, (0..100).map(|_| (0, false))), Some(MIN_OUTCOMES), "one host, never reached");
        let dies = (0..200).map(|i| (i, i < 100));
        assert_eq!(
            trips(0.95, dies),
            Some(161),
            "the network dies after 100 outcomes: trips when 61 of the last 64 failed"
        );
        assert_eq!(trips(0.95, (0..1000).map(|i| (i, i % 10 == 0))), None, "nine of ten links are dead");
        assert_eq!(
            trips(0.95, (0..1000).map(|i| (if i == 0 { 1 } else { 0 }, i == 0))),
            None,
            "one dead host"
        );
        assert_eq!(trips(1.0, (0..1000).map(|i| (i, false))), None, "disabled");
    }

    #[test]
    fn a_small_piece_of_work_may_reach_no_host() {
        let mut breaker = Breaker::new(0.95);
        for host in 0..3 {
            assert!(!breaker.reached_no_host());
            breaker.record(host, Some("no route"));
        }
        assert!(breaker.reached_no_host());
        breaker.record(9, None);
        assert!(!breaker.reached_no_host());
    }
}
