//! The connection to another rank. A message is a sequence of frames, so that an error can be told
//! between two of them.

use crate::error::{RankError, Result};
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of values in a frame.
const FRAME: usize = 1 << 20;
/// A message of this size fits into the buffers of the sockets, so that it can be sent before the
/// peer's is received.
pub(super) const SMALL: usize = 8 << 10;
/// The kind of a frame and the length of its content.
const HEADER: usize = 5;
const DATA: u8 = 0;
const GOODBYE: u8 = 1;
/// The longest goodbye.
const GOODBYE_BYTES: usize = 64 << 10;
/// How often a blocked writer looks whether the ranks have failed.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a look at a peer that has nothing to send may take.
const PEEK_TIMEOUT: Duration = Duration::from_millis(1);
/// How often a reader of last words looks whether it need wait no longer.
const WORDS_TIMEOUT: Duration = Duration::from_millis(50);

/// Why a rank ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Goodbye {
    /// The rank that failed; whoever passes it on need not be the same.
    pub(super) who: String,
    /// The exit code; `None` if the rank was lost.
    pub(super) code: Option<u8>,
    pub(super) message: String,
}

impl From<Goodbye> for RankError {
    fn from(Goodbye { who, code, message }: Goodbye) -> Self {
        match code {
            Some(code) => Self::Ended { who, code, message },
            None => Self::Lost { who, why: message },
        }
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    /// `rank 2 (node7)`.
    name: String,
    reader: Mutex<TcpStream>,
    writer: Mutex<Writer>,
    /// Whether its connection was found closed or dead, whatever it said before.
    is_gone: AtomicBool,
}

#[derive(Debug)]
struct Writer {
    stream: TcpStream,
    /// Whether a frame was begun but not finished, so that nothing more can be told.
    is_broken: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    /// Takes over a connection. A machine that is gone is noticed within about 12 seconds.
    pub(super) fn new(name: String, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let (idle, interval) = (Duration::from_secs(5), Duration::from_secs(2));
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        SockRef::from(&stream).set_tcp_user_timeout(Some(Duration::from_secs(12)))?;
        let writer = Writer { stream: stream.try_clone()?, is_broken: false };
        let (reader, writer) = (Mutex::new(stream), Mutex::new(writer));
        Ok(Self { name, reader, writer, is_gone: AtomicBool::new(false) })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    fn lost(&self, error: &io::Error) -> RankError {
        self.is_gone.store(true, Ordering::Relaxed);
        let why = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "it closed its connection (killed, or out of memory?)".into()
            }
            ErrorKind::TimedOut => "its machine or the network does not answer".into(),
            _ => error.to_string(),
        };
        RankError::Lost { who: self.name.clone(), why }
    }

    /// Sends a message. Gives up when `failed` is set.
    pub(super) fn send(&self, bytes: &[u8], failed: &AtomicBool) -> Result<()> {
        let mut writer = lock(&self.writer);
        let mut rest = bytes;
        loop {
            let (frame, after) = rest.split_at(rest.len().min(FRAME));
            writer.frame(DATA, frame, failed).map_err(|error| self.lost(&error))?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Receives a message of known length.
    pub(super) fn receive(&self, bytes: &mut [u8]) -> Result<()> {
        let mut reader = lock(&self.reader);
        let mut rest = bytes;
        loop {
            let mut header = [0; HEADER];
            reader.read_exact(&mut header).map_err(|error| self.lost(&error))?;
            let length = content_length(header);
            match header[0] {
                DATA if length == rest.len().min(FRAME) => {}
                GOODBYE => return Err(self.goodbye(&mut reader, length)),
                kind => {
                    let what = format!(
                        "{} sent a frame of kind {kind} with {length} bytes where {} are left",
                        self.name,
                        rest.len()
                    );
                    return Err(RankError::OutOfStep(what));
                }
            }
            let (frame, after) = rest.split_at_mut(length);
            reader.read_exact(frame).map_err(|error| self.lost(&error))?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Looks whether the peer, which has nothing to send, has ended.
    pub(super) fn check(&self) -> Result<()> {
        let mut reader = lock(&self.reader);
        let mut header = [0; HEADER];
        reader.set_read_timeout(Some(PEEK_TIMEOUT)).map_err(|error| self.lost(&error))?;
        let seen = reader.peek(&mut header);
        reader.set_read_timeout(None).map_err(|error| self.lost(&error))?;
        match seen {
            Ok(0) => Err(self.lost(&ErrorKind::UnexpectedEof.into())),
            Ok(_) if header[0] == GOODBYE => {
                reader.read_exact(&mut header).map_err(|error| self.lost(&error))?;
                Err(self.goodbye(&mut reader, content_length(header)))
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn goodbye(&self, reader: &mut TcpStream, length: usize) -> RankError {
        let mut text = vec![0; length.min(GOODBYE_BYTES)];
        match reader.read_exact(&mut text).map(|()| serde_json::from_slice::<Goodbye>(&text)) {
            Ok(Ok(goodbye)) => goodbye.into(),
            Ok(Err(error)) => RankError::OutOfStep(format!("the last words of {}: {error}", self.name)),
            Err(error) => self.lost(&error),
        }
    }

    /// Skips what the peer has sent, up to its goodbye. Waits for more while `waits` says so.
    pub(super) fn last_words(&self, waits: &dyn Fn() -> bool) -> Option<Goodbye> {
        let mut reader = lock(&self.reader);
        reader.set_read_timeout(Some(WORDS_TIMEOUT)).ok()?;
        loop {
            let mut header = [0; HEADER];
            fill(&mut reader, &mut header, waits)?;
            let mut content = vec![0; content_length(header).min(FRAME)];
            fill(&mut reader, &mut content, waits)?;
            if header[0] == GOODBYE {
                return serde_json::from_slice(&content).ok();
            }
        }
    }

    /// Says why nothing more will come. `failed` must be set.
    pub(super) fn leave(&self, goodbye: &Goodbye, failed: &AtomicBool) {
        // Another thread may be in the middle of a frame for a moment.
        let mut writer = lock(&self.writer);
        if !writer.is_broken
            && let Ok(text) = serde_json::to_vec(goodbye)
            && text.len() <= GOODBYE_BYTES
        {
            // Who cannot be told sees that the connection is closed.
            let _ = writer.frame(GOODBYE, &text, failed);
        }
    }
}

fn content_length(header: [u8; HEADER]) -> usize {
    u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize
}

/// Reads as many bytes, from a reader with a timeout. `None` if they do not come.
fn fill(reader: &mut TcpStream, mut bytes: &mut [u8], waits: &dyn Fn() -> bool) -> Option<()> {
    while !bytes.is_empty() {
        match reader.read(bytes) {
            Ok(0) => return None,
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock | ErrorKind::TimedOut if waits() => {}
                _ => return None,
            },
        }
    }
    Some(())
}

impl Writer {
    fn frame(&mut self, kind: u8, content: &[u8], failed: &AtomicBool) -> io::Result<()> {
        let mut header = [kind; HEADER];
        header[1..].copy_from_slice(&(content.len() as u32).to_le_bytes());
        self.is_broken = true;
        if content.len() <= SMALL {
            // One packet.
            self.write_all(&[&header, content].concat(), failed)?;
        } else {
            self.write_all(&header, failed)?;
            self.write_all(content, failed)?;
        }
        self.is_broken = false;
        Ok(())
    }

    fn write_all(&mut self, mut bytes: &[u8], failed: &AtomicBool) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    // The peer is busy with its own work.
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if !failed.load(Ordering::Relaxed) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}
