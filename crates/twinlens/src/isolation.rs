//! `--isolate`: images are decoded by processes of their own, which can do nothing else.
//!
//! Strangers' bytes are then read by processes with limits on memory and time, and without files,
//! network or other programs ([`confined`]). One that dies takes one image with it, whose row is
//! rejected as `killed_the_process`; another process takes its place. What is decoded is the same.

mod confined;

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use twinlens_image::{DecodeRequest, DecodedImage, ImageError, RemoteDecoder, decode_remotely};

pub(crate) use self::confined::decoder_process;
use crate::errors::Failure;
use crate::{children, in_flight};

/// How long an image may take by the clock. A process on a busy machine is slower than its limit
/// on computing time says.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a process is started again before its image is given up, if the machine refuses.
const STARTS: u32 = 5;

/// How many [`Isolation`]s there are: runs of one process share its decoders.
static HELD: Mutex<usize> = Mutex::new(0);

/// Images of this process are decoded by processes of their own until the last of these is dropped.
pub(crate) struct Isolation(());

impl Isolation {
    /// Begins, if it is asked for.
    ///
    /// # Errors
    /// If this program cannot be started as a decoder.
    pub(crate) fn begin(is_on: bool) -> Result<Option<Self>, Failure> {
        if !is_on {
            return Ok(None);
        }
        let mut held = locked(&HELD);
        if *held == 0 {
            let decoders = Decoders::start().map_err(|error| {
                Failure::user(format!("cannot start a process that decodes images: {error}"))
                    .hint("run without `isolate`")
            })?;
            decode_remotely(Some(decoders));
        }
        *held += 1;
        Ok(Some(Self(())))
    }
}

impl Drop for Isolation {
    fn drop(&mut self) {
        let mut held = locked(&HELD);
        *held -= 1;
        if *held == 0 {
            decode_remotely(None);
        }
    }
}

/// Processes that decode, one image each at a time.
struct Decoders {
    idle: Mutex<Vec<Decoder>>,
    /// Until when each process that has an image may take.
    deadlines: Mutex<HashMap<u32, Instant>>,
}

impl Decoders {
    fn start() -> io::Result<Arc<Self>> {
        let decoders = Arc::new(Self { idle: Mutex::default(), deadlines: Mutex::default() });
        // Whether it can be done shows now, and not at the first image.
        let first = Decoder::start()?;
        if !first.is_filtered {
            tracing::warn!(
                "decoders have limits on memory and time, but this system does not filter their calls"
            );
        }
        locked(&decoders.idle).push(first);
        let watched = Arc::downgrade(&decoders);
        std::thread::Builder::new().name("decoders".into()).spawn(move || watch(&watched))?;
        Ok(decoders)
    }

    /// A process that has nothing to do.
    fn take(&self) -> io::Result<Decoder> {
        if let Some(decoder) = locked(&self.idle).pop() {
            return Ok(decoder);
        }
        let mut wait = Duration::from_millis(50);
        for _ in 1..STARTS {
            if let Ok(decoder) = Decoder::start() {
                return Ok(decoder);
            }
            std::thread::sleep(wait);
            wait *= 4;
        }
        Decoder::start()
    }
}

impl RemoteDecoder for Decoders {
    fn decode(&self, request: DecodeRequest<'_>) -> Result<DecodedImage, ImageError> {
        let no_process = |error| ImageError::BadOptions(format!("no process to decode it: {error}"));
        let mut decoder = self.take().map_err(no_process)?;
        let id = decoder.process.id();
        locked(&self.deadlines).insert(id, Instant::now() + PATIENCE);
        let answer = decoder.ask(request);
        let is_late = locked(&self.deadlines).remove(&id).is_none();
        match answer {
            Ok(answer) if !is_late => {
                locked(&self.idle).push(decoder);
                answer
            }
            _ => Err(ImageError::KilledTheProcess(decoder.end(is_late))),
        }
    }
}

/// Kills processes that take too long.
fn watch(decoders: &Weak<Decoders>) {
    while let Some(decoders) = decoders.upgrade() {
        let now = Instant::now();
        locked(&decoders.deadlines).retain(|id, deadline| {
            let is_late = *deadline < now;
            if is_late {
                // It is not reaped before its deadline is removed, so the number is still its own.
                let _ = kill(Pid::from_raw(*id as i32), Signal::SIGKILL);
            }
            !is_late
        });
        drop(decoders);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// A process that decodes.
struct Decoder {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Whether the system filters its calls.
    is_filtered: bool,
}

impl Decoder {
    fn start() -> io::Result<Self> {
        let mut command = children::command(confined::ARGUMENT)?;
        command.env_clear().current_dir("/");
        if cfg!(debug_assertions) {
            command.envs(std::env::var_os(in_flight::ABORT_ON).map(|mark| (in_flight::ABORT_ON, mark)));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // Ctrl-C is for the run, which lets images in flight finish.
        command.process_group(0);
        let mut process = command.spawn()?;
        let (Some(requests), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let (mut answers, mut greeting) = (BufReader::new(answers), [0]);
        if answers.read_exact(&mut greeting).is_err() {
            return Err(io::Error::other(format!("it {}", how_it_ended(process.wait()?))));
        }
        Ok(Self { process, requests, answers, is_filtered: greeting == [confined::FILTERED] })
    }

    fn ask(&mut self, request: DecodeRequest<'_>) -> io::Result<Result<DecodedImage, ImageError>> {
        request.write(&mut self.requests)?;
        request.read_answer(&mut self.answers)
    }

    /// What became of it.
    fn end(mut self, is_late: bool) -> String {
        if is_late {
            let _ = self.process.wait();
            return format!("it took more than {} s", PATIENCE.as_secs());
        }
        // One that gave a wrong answer may still run.
        std::thread::sleep(Duration::from_millis(20));
        match self.process.try_wait() {
            Ok(Some(status)) => format!("it {}", how_it_ended(status)),
            _ => {
                let _ = self.process.kill();
                let _ = self.process.wait();
                "it gave no answer".into()
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn how_it_ended(status: ExitStatus) -> String {
    match status.signal().and_then(|signal| Signal::try_from(signal).ok()) {
        Some(Signal::SIGXCPU) => format!("computed for more than {} s", confined::CPU_SECONDS),
        Some(Signal::SIGABRT) => {
            format!("aborted: it needed more than {} GiB, or met a defect", confined::MEMORY >> 30)
        }
        Some(signal) => format!("was ended by {signal}"),
        None => format!("ended with {}", status.code().unwrap_or_default()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
