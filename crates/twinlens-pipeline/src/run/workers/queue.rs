//! Which split of a unit a process makes next: claims.
//!
//! A process tries splits that are not claimed as far as it knows, near the first of them: the run
//! records splits in order. It asks the store again only when it was refused a few times. When all
//! splits are claimed, it looks for claims that were lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use twinlens_dataset::split_records::SplitRecords;

use crate::error::RunError;
use crate::run::failure::SplitFailure;
use crate::run::splits::SplitTask;
use crate::run::workers::board::{Attempt, UnitBoard};
use crate::run::workers::peers::Peers;

/// Attempts at a split, over all processes: machines that come and go end some in the middle.
pub(super) const ATTEMPTS: u32 = 8;
/// Of so many splits at the front, a process tries one: fewer processes then try the same one.
const SPREAD: usize = 32;
/// After so many splits that others had claimed, the claims are read.
const REFUSED: usize = 3;

/// What a process does next.
#[derive(Debug)]
pub(super) enum Next {
    /// This process has claimed this attempt at that split.
    Split(Attempt, SplitTask),
    /// Others are making all splits that are left.
    Wait,
    /// All splits are made.
    Done,
}

/// A split that was tried too often.
#[derive(Debug)]
pub(super) struct GivenUp {
    pub(super) task: SplitTask,
    /// Who made the last attempt.
    pub(super) holder: String,
    /// How it failed; `None` if the process was lost.
    pub(super) failure: Option<SplitFailure>,
}

/// The splits of a unit, as one process sees them.
pub(super) struct Queue {
    board: UnitBoard,
    records: SplitRecords,
    peers: Arc<Peers>,
    /// In the order of their numbers.
    tasks: Vec<SplitTask>,
    known: Mutex<Known>,
}

/// What a process knows of the splits.
#[derive(Debug, Default)]
struct Known {
    /// All tasks before this one are claimed.
    low: usize,
    /// All tasks before this one are made.
    unmade: usize,
    /// The last attempt at each split that is claimed.
    claims: HashMap<u64, u32>,
    /// Who made an attempt.
    holders: HashMap<Attempt, String>,
    made: HashSet<u64>,
    failed: HashSet<Attempt>,
    /// The failures of which the blame was looked at.
    judged: HashSet<Attempt>,
    /// Changes from call to call.
    turn: u64,
}

impl Queue {
    pub(super) fn new(
        board: UnitBoard,
        records: SplitRecords,
        peers: Arc<Peers>,
        tasks: Vec<SplitTask>,
    ) -> Self {
        Self { board, records, peers, tasks, known: Mutex::default() }
    }

    /// Claims a split. Blocking.
    pub(super) fn next(&self) -> Result<Next, RunError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refused = 0;
        while let Some(task) = self.unclaimed(&mut known) {
            let attempt = Attempt { split: task.number, number: 0 };
            known.claims.entry(task.number).or_insert(0);
            if self.board.claim(attempt, self.peers.name())? {
                return Ok(Next::Split(attempt, task.clone()));
            }
            refused += 1;
            if refused % REFUSED == 0 {
                self.read_claims(&mut known)?;
            }
        }
        self.lost(&mut known)
    }

    /// A split that is not claimed as far as is known, one of the first of them.
    fn unclaimed(&self, known: &mut Known) -> Option<&SplitTask> {
        while self.tasks.get(known.low).is_some_and(|task| known.claims.contains_key(&task.number)) {
            known.low += 1;
        }
        known.turn += 1;
        let rest = self.tasks.get(known.low..)?;
        let free: Vec<&SplitTask> =
            rest.iter().filter(|task| !known.claims.contains_key(&task.number)).take(SPREAD).collect();
        let place = hash(self.peers.name(), known.turn) % free.len().max(1) as u64;
        free.get(place as usize).copied()
    }

    fn read_claims(&self, known: &mut Known) -> Result<(), RunError> {
        let Some(first) = self.tasks.get(known.unmade.min(known.low)) else { return Ok(()) };
        for attempt in self.board.claims_from(first.number)? {
            let last = known.claims.entry(attempt.split).or_insert(attempt.number);
            *last = attempt.number.max(*last);
        }
        Ok(())
    }

    fn read_made(&self, known: &mut Known) -> Result<(), RunError> {
        let Some(first) = self.tasks.get(known.unmade) else { return Ok(()) };
        known.made.extend(self.records.splits_from(first.number)?);
        while self.tasks.get(known.unmade).is_some_and(|task| known.made.contains(&task.number)) {
            known.unmade += 1;
        }
        Ok(())
    }

    /// Claims a split whose last attempt failed or was lost.
    fn lost(&self, known: &mut Known) -> Result<Next, RunError> {
        self.read_made(known)?;
        if known.unmade == self.tasks.len() {
            return Ok(Next::Done);
        }
        self.read_claims(known)?;
        known.failed.extend(self.board.failures()?);
        for task in &self.tasks[known.unmade..] {
            let Some(last) = self.ended_attempt(task, known)? else { continue };
            let next = Attempt { number: last.number + 1, ..last };
            if next.number >= ATTEMPTS {
                continue;
            }
            known.claims.insert(task.number, next.number);
            if self.board.claim(next, self.peers.name())? {
                return Ok(Next::Split(next, task.clone()));
            }
        }
        Ok(Next::Wait)
    }

    /// The last attempt at a split, if it failed or was lost.
    fn ended_attempt(&self, task: &SplitTask, known: &mut Known) -> Result<Option<Attempt>, RunError> {
        let Some(&number) = known.claims.get(&task.number) else { return Ok(None) };
        if known.made.contains(&task.number) {
            return Ok(None);
        }
        let attempt = Attempt { split: task.number, number };
        if known.failed.contains(&attempt) {
            return Ok(Some(attempt));
        }
        let holder = match known.holders.get(&attempt) {
            Some(holder) => holder.clone(),
            None => {
                let holder = self.board.holder(attempt)?;
                known.holders.insert(attempt, holder.clone());
                holder
            }
        };
        Ok(self.peers.is_lost(&holder).then_some(attempt))
    }

    /// A split of which the last attempt has failed, or any attempt by the fault of the user or of
    /// this program. Blocking.
    pub(super) fn given_up(&self) -> Result<Option<GivenUp>, RunError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_made(&mut known)?;
        self.read_claims(&mut known)?;
        let failures: HashSet<Attempt> = self.board.failures()?.into_iter().collect();
        let fresh: Vec<Attempt> = failures.difference(&known.judged).copied().collect();
        known.failed.extend(failures);
        for attempt in fresh {
            known.judged.insert(attempt);
            let failure = self.board.failure(attempt)?;
            let is_final = failure.as_ref().is_some_and(SplitFailure::is_final);
            let task = self.tasks.iter().find(|task| task.number == attempt.split);
            if let (true, Some(task)) = (is_final, task) {
                let holder = self.board.holder(attempt)?;
                return Ok(Some(GivenUp { task: task.clone(), holder, failure }));
            }
        }
        for task in &self.tasks[known.unmade..] {
            if known.claims.get(&task.number).is_none_or(|last| last + 1 < ATTEMPTS) {
                continue;
            }
            if let Some(attempt) = self.ended_attempt(task, &mut known)? {
                let (holder, failure) = (self.board.holder(attempt)?, self.board.failure(attempt)?);
                return Ok(Some(GivenUp { task: task.clone(), holder, failure }));
            }
        }
        Ok(None)
    }
}

/// A number that differs between processes and turns.
fn hash(name: &str, turn: u64) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = name.bytes().chain(turn.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, mix);
    hash ^ (hash >> 32)
}
