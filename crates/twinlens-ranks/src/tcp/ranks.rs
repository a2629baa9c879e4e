//! The operations of a rank over its connections with the others.

use super::peer::{Goodbye, Peer, SMALL};
use crate::board::Board;
use crate::collective::Collective;
use crate::error::{RankError, Result};
use crate::pieces::{piece, sum_in_order};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long to listen to the other ranks for why one of them is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One of several ranks that are processes, made by [`Meeting::join`](super::Meeting::join).
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// `rank 2 (node7)`.
    name: String,
    /// The other ranks by number; `None` in this rank's own place.
    peers: Vec<Option<Peer>>,
    /// Whether this or another rank has failed.
    failed: AtomicBool,
    /// For the sums of ranks of one machine.
    board: Option<Board>,
}

impl Tcp {
    pub(super) fn new(rank: usize, name: String, peers: Vec<Option<Peer>>) -> Self {
        Self { rank, name, peers, failed: AtomicBool::new(false), board: None }
    }

    /// Lets ranks of one machine share memory; all ranks do so together.
    pub(super) fn share_memory(mut self) -> Result<Self> {
        self.board = Board::open(&self)?;
        Ok(self)
    }

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let peer = self.peers.get(rank).and_then(Option::as_ref);
        peer.ok_or_else(|| RankError::OutOfStep(format!("rank {} and itself", self.rank)))
    }

    /// The other ranks in the order in which this one sends to them or, reversed, receives from
    /// them: in each turn every rank sends to one and receives from one.
    fn turns(&self, sends: bool) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.rank, self.size());
        (1..size).map(move |turn| if sends { (rank + turn) % size } else { (rank + size - turn) % size })
    }

    /// Sends each other rank `outgoing(rank)` while `receive` receives what they send.
    fn exchange<'a>(
        &self,
        outgoing: &(dyn Fn(usize) -> &'a [u8] + Sync),
        receive: &mut dyn FnMut(&Peer, usize) -> Result<()>,
    ) -> Result<()> {
        let send = || self.turns(true).try_for_each(|to| self.peer(to)?.send(outgoing(to), &self.failed));
        let receive = || self.turns(false).try_for_each(|from| receive(self.peer(from)?, from));
        self.both(self.turns(true).all(|to| outgoing(to).len() <= SMALL), send, receive)
    }

    /// Sends and receives, one after the other if what is sent is small, else at the same time.
    fn both(
        &self,
        is_small: bool,
        send: impl FnOnce() -> Result<()> + Send,
        receive: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let receive = || {
            receive().map_err(|error| {
                let cause = self.cause(error);
                // Ends a sender whose peer no longer reads.
                self.failed.store(true, Ordering::Relaxed);
                cause
            })
        };
        let (sent, received) = if is_small {
            (send(), receive())
        } else {
            std::thread::scope(|scope| {
                let sender = scope.spawn(send);
                let received = receive();
                let panicked = || RankError::OutOfStep("the sending thread panicked".into());
                (sender.join().unwrap_or_else(|_| Err(panicked())), received)
            })
        };
        // Whoever closed its connection has perhaps said why.
        received.and_then(|()| sent.map_err(|error| self.cause(error))).map_err(|error| self.failure(error))
    }

    /// Who ended first, if a connection is found closed: a rank that ends because of another cannot
    /// say so in the middle of a message. That other one, or a third, can. Meanwhile a rank that is
    /// sending to this one gets to the end of its message.
    fn cause(&self, error: RankError) -> RankError {
        let peers = || self.peers.iter().flatten();
        if !matches!(error, RankError::Lost { .. }) || !peers().any(Peer::is_gone) {
            return error;
        }
        let (until, is_found) = (Instant::now() + LAST_WORDS, AtomicBool::new(false));
        let waits = || !is_found.load(Ordering::Relaxed) && Instant::now() < until;
        let listen = |peer: &Peer| {
            let words = peer.last_words(&waits).filter(|words| words.who != self.name);
            if words.is_some() {
                is_found.store(true, Ordering::Relaxed);
            }
            words
        };
        let words: Vec<Goodbye> = std::thread::scope(|scope| {
            let listen = &listen;
            let listeners: Vec<_> = peers().map(|peer| scope.spawn(move || listen(peer))).collect();
            listeners.into_iter().filter_map(|listener| listener.join().ok().flatten()).collect()
        });
        // Who said why knows better than who misses another.
        let best = words.iter().position(|words| words.code.is_some()).unwrap_or(0);
        words.into_iter().nth(best).map_or(error, RankError::from)
    }

    /// Tells the others of an error, once.
    fn failure(&self, error: RankError) -> RankError {
        let goodbye = match error.clone() {
            RankError::Lost { who, why } => Goodbye { who, code: None, message: why },
            RankError::Ended { who, code, message } => Goodbye { who, code: Some(code), message },
            other => Goodbye { who: self.name.clone(), code: Some(2), message: other.to_string() },
        };
        self.leave(&goodbye);
        error
    }

    fn leave(&self, goodbye: &Goodbye) {
        self.failed.store(true, Ordering::Relaxed);
        self.peers.iter().flatten().for_each(|peer| peer.leave(goodbye, &self.failed));
    }

    /// Sends a message to one rank, or receives it.
    fn one<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.failure(self.cause(error)))
    }

    /// All ranks' pieces of `length` values after each other; this rank's place is zero.
    fn gather_pieces<'a>(
        &self,
        outgoing: &(dyn Fn(usize) -> &'a [u8] + Sync),
        length: usize,
    ) -> Result<Vec<f32>> {
        let mut all = vec![0.0; length * self.size()];
        self.exchange(outgoing, &mut |peer, from| {
            peer.receive(bytemuck::cast_slice_mut(&mut all[from * length..][..length]))
        })?;
        Ok(all)
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn all_gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        let bytes = bytemuck::cast_slice(values);
        let mut all = self.gather_pieces(&|_| bytes, values.len())?;
        all[self.rank * values.len()..][..values.len()].copy_from_slice(values);
        Ok(all)
    }

    fn shift(&self, values: &[f32]) -> Result<Vec<f32>> {
        let (size, mut shifted) = (self.size(), vec![0.0; values.len()]);
        let (to, from) = ((self.rank + 1) % size, (self.rank + size - 1) % size);
        if size == 1 {
            shifted.copy_from_slice(values);
            return Ok(shifted);
        }
        let send = || self.peer(to)?.send(bytemuck::cast_slice(values), &self.failed);
        let received = || self.peer(from)?.receive(bytemuck::cast_slice_mut(&mut shifted));
        self.both(values.len() * 4 <= SMALL, send, received)?;
        Ok(shifted)
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<()> {
        let (length, size) = (values.len(), self.size());
        if let Some(board) = self.board.as_ref().filter(|_| length >= Board::WORTHWHILE) {
            return board.all_reduce_sum(values, || self.check());
        }
        let own = piece(length, size, self.rank);
        let all = {
            let values = &*values;
            let part = |to: usize| bytemuck::cast_slice(&values[piece(length, size, to)]);
            self.gather_pieces(&part, own.len())?
        };
        sum_in_order(&mut values[own.clone()], &all, self.rank);
        let sums = values[own].to_vec();
        let bytes = bytemuck::cast_slice(&sums);
        self.exchange(&|_| bytes, &mut |peer, from| {
            peer.receive(bytemuck::cast_slice_mut(&mut values[piece(length, size, from)]))
        })
    }

    /// Along a binomial tree.
    fn broadcast(&self, values: &mut [f32]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        let size = self.size();
        // The lowest set bit of the rank leads to its parent; lower ones lead to its children.
        let mut bit = 1;
        while bit < size {
            if self.rank & bit != 0 {
                self.one(self.peer(self.rank - bit).and_then(|parent| parent.receive(bytes)))?;
                break;
            }
            bit <<= 1;
        }
        bit >>= 1;
        while bit > 0 {
            if self.rank + bit < size {
                let sent = self.peer(self.rank + bit).and_then(|child| child.send(bytes, &self.failed));
                self.one(sent)?;
            }
            bit >>= 1;
        }
        Ok(())
    }

    /// In log2 n rounds (Hensgen, Finkel and Manber 1988, the dissemination barrier).
    fn any(&self, flag: bool) -> Result<bool> {
        let (rank, size) = (self.rank, self.size());
        let mut any = [u8::from(flag)];
        let mut distance = 1;
        while distance < size {
            let (to, from) = ((rank + distance) % size, (rank + size - distance) % size);
            let mut other = [0];
            let sent = self.peer(to).and_then(|peer| peer.send(&any, &self.failed));
            let received = self.peer(from).and_then(|peer| peer.receive(&mut other));
            self.one(received.and(sent))?;
            any[0] |= other[0];
            distance <<= 1;
        }
        Ok(any[0] != 0)
    }

    fn check(&self) -> Result<()> {
        self.one(self.peers.iter().flatten().try_for_each(Peer::check))
    }

    fn abort(&self, code: u8, message: &str) {
        self.leave(&Goodbye { who: self.name.clone(), code: Some(code), message: message.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Launch, Meeting, Threads};
    use std::time::{Duration, Instant};

    fn meeting(port: u16, rank: usize, size: usize) -> Meeting {
        let master = Some("127.0.0.1".into());
        let launch = Launch { rank, size, local_rank: rank, local_size: Some(size), master, port };
        let wait = Duration::from_secs(20);
        Meeting { launch, token: None, build: "this".into(), wait, shares_memory: false }
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// Runs `f` on every rank and returns all results.
    fn on_ranks<R: Send>(size: usize, shares_memory: bool, f: impl Fn(Tcp) -> R + Sync) -> Vec<R> {
        let port = free_port();
        std::thread::scope(|scope| {
            let f = &f;
            let meeting = |rank| Meeting { shares_memory, ..meeting(port, rank, size) };
            let start = |rank| {
                scope.spawn(move || {
                    let ranks = meeting(rank).join().unwrap();
                    assert_eq!(ranks.board.is_some(), shares_memory && size > 1);
                    f(ranks)
                })
            };
            let all: Vec<_> = (0..size).map(start).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// Numbers of all magnitudes, so that every order of adding them gives other bits.
    fn noise(rank: usize, length: usize) -> Vec<f32> {
        let mut state = 77 + rank as u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let exponent = (state >> 5) % 20;
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * (1 << exponent) as f32
        };
        (0..length).map(|_| next()).collect()
    }

    /// Every operation, for lengths around the sizes of frames and pieces.
    fn operations(ranks: &dyn Collective) -> Vec<f32> {
        let mut log = Vec::new();
        for length in [0, 1, 2, 3, 5, 2047, 2048, 2049, 70_001, 600_007] {
            let mut values = noise(ranks.rank(), length);
            log.extend(ranks.all_gather(&values).unwrap());
            log.extend(ranks.shift(&values).unwrap());
            ranks.all_reduce_sum(&mut values).unwrap();
            log.extend(&values);
            let mut values = noise(ranks.rank(), length);
            ranks.broadcast(&mut values).unwrap();
            log.extend(values);
            log.push(f32::from(u8::from(ranks.any(ranks.rank() == 1 && length > 2000).unwrap())));
            ranks.barrier().unwrap();
        }
        for length in [0, 3, 4, 10_001] {
            let own = vec![ranks.rank() as u8 + 200; length * ranks.rank() + length % 3];
            let all = ranks.all_gather_bytes(&own).unwrap();
            log.extend(all.iter().flatten().map(|byte| f32::from(*byte)));
            let mut bytes = own.clone();
            ranks.broadcast_bytes(&mut bytes).unwrap();
            log.extend(bytes.iter().map(|byte| f32::from(*byte)));
        }
        log
    }

    #[test]
    fn processes_compute_the_bits_of_threads() {
        for (size, shares_memory) in [1, 2, 3, 4].into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let by_tcp = on_ranks(size, shares_memory, |ranks| operations(&ranks));
            let by_threads: Vec<Vec<f32>> = std::thread::scope(|scope| {
                let start = |ranks: Threads| scope.spawn(move || operations(&ranks));
                let all: Vec<_> = Threads::new(size).into_iter().map(start).collect();
                all.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            for (tcp, threads) in by_tcp.iter().zip(&by_threads) {
                assert!(bits(tcp) == bits(threads), "{size} ranks");
            }
        }
    }

    /// One rank ends; the others, of which some send to it, end soon and name it.
    #[test]
    fn all_ranks_end_when_one_does() {
        let long = vec![1.0; 3_000_000];
        for (says_why, shares_memory) in [(false, false), (true, false), (false, true), (true, true)] {
            let began = Instant::now();
            let errors = on_ranks(4, shares_memory, |ranks| {
                if ranks.rank() == 2 {
                    if says_why {
                        ranks.abort(1, "the disk is full");
                    }
                    return None;
                }
                let mut values = long.clone();
                Some((0..100).find_map(|_| ranks.all_reduce_sum(&mut values).err()).unwrap())
            });
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            for error in errors.into_iter().flatten() {
                let text = error.to_string();
                let why = if says_why { "the disk is full" } else { "closed its connection" };
                assert!(text.starts_with("rank 2 (") && text.contains(why), "{text}");
            }
        }
    }

    /// A rank that goes without a word, because of another.
    #[test]
    fn whoever_says_why_is_named() {
        let errors = on_ranks(3, false, |ranks| match ranks.rank() {
            // It looks at rank 2 first.
            0 => ranks.all_reduce_sum(&mut [1.0; 8]).err(),
            1 => {
                ranks.abort(1, "the disk is full");
                None
            }
            _ => None,
        });
        let text = errors[0].as_ref().unwrap().to_string();
        assert!(text.starts_with("rank 1 (") && text.contains("the disk is full"), "{text}");
    }

    #[test]
    fn a_missing_rank_is_named() {
        let port = free_port();
        let short = |rank| Meeting { wait: Duration::from_millis(700), ..meeting(port, rank, 4) };
        std::thread::scope(|scope| {
            let [first, other] = [0, 2].map(|rank| scope.spawn(move || short(rank).join().unwrap_err()));
            let (first, other) = (first.join().unwrap().to_string(), other.join().unwrap().to_string());
            assert_eq!(first, "ranks 1, 3 of 4 did not come within 0.7 s");
            assert!(other.contains("ranks 1, 3 of 4 did not come"), "{other}");
        });
        let alone = short(1).join().unwrap_err().to_string();
        assert!(alone.contains("rank 0 does not answer at 127.0.0.1"), "{alone}");
    }

    #[test]
    fn strangers_and_other_builds_are_refused() {
        let with = |token: &str, build: &str, port, rank| Meeting {
            token: Some(token.into()),
            build: build.into(),
            wait: Duration::from_millis(1500),
            ..meeting(port, rank, 2)
        };
        let meet = |other: Meeting| {
            let port = other.launch.port;
            std::thread::scope(|scope| {
                let first = scope.spawn(move || with("secret", "a", port, 0).join().map(drop));
                let other = scope.spawn(move || other.join().map(drop));
                [first.join().unwrap(), other.join().unwrap()].map(|end| end.unwrap_err().to_string())
            })
        };
        let [first, other] = meet(with("secret", "b", free_port(), 1));
        assert!(first.contains("is another build") && first.contains("rank 1"), "{first}");
        assert!(other.contains("is another build"), "{other}");
        let [first, other] = meet(with("guess", "a", free_port(), 1));
        assert!(first.contains("rank 1 of 2 did not come"), "{first}");
        assert!(other.contains("TWINLENS_TOKEN"), "{other}");
        let twice = meeting(free_port(), 1, 2);
        let [first, _] = meet(Meeting {
            token: Some("secret".into()),
            build: "a".into(),
            ..Meeting { launch: Launch { size: 3, ..twice.launch.clone() }, ..twice }
        });
        assert!(first.contains("was started as one of 3 ranks"), "{first}");
    }

    #[test]
    fn a_network_needs_a_token() {
        let mut open = meeting(free_port(), 0, 2);
        open.launch.master = Some("192.0.2.1".into());
        let error = open.join().unwrap_err();
        assert!(
            matches!(&error, RankError::Setup { hint, .. } if hint.contains("TWINLENS_TOKEN")),
            "{error}"
        );
        let mut lost = meeting(free_port(), 0, 2);
        (lost.launch.master, lost.launch.local_size) = (None, Some(1));
        let error = lost.join().unwrap_err().to_string();
        assert!(error.contains("MASTER_ADDR"), "{error}");
    }
}
