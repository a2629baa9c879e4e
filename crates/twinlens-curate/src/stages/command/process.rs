//! A child process: its environment, its stderr, and its end.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use twinlens_pipeline::run::events::Progress;

/// Variables that every program gets, besides `LC_*`; the others of the environment are not passed.
pub(super) const PASSED: [&str; 12] = [
    "HOME",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TEMP",
    "TMP",
    "TMPDIR",
    "TZ",
    "USER",
];
/// The lines of stderr that an error shows.
const TAIL_LINES: usize = 20;
/// Longer lines are cut, in bytes.
const MAX_LINE: u64 = 4096;
/// How long a program that closed its stdout may take to exit.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// How to start a program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) words: Vec<OsString>,
    pub(super) dir: PathBuf,
    pub(super) environment: BTreeMap<OsString, OsString>,
    /// The command as written, for messages.
    pub(super) shown: String,
}

/// The variables of this process that are passed to programs: [`PASSED`], `LC_*` and `more`.
pub(super) fn passed_environment(more: &[String]) -> BTreeMap<OsString, OsString> {
    let is_passed = |name: &OsStr| {
        let Some(name) = name.to_str() else { return false };
        PASSED.contains(&name) || name.starts_with("LC_") || more.iter().any(|passed| passed == name)
    };
    std::env::vars_os().filter(|(name, _)| is_passed(name)).collect()
}

impl Program {
    /// Starts it in a process group of its own, so that its own children can be killed with it.
    pub(super) fn start(&self, progress: &Progress) -> io::Result<(Process, ChildStdin, ChildStdout)> {
        let (program, arguments) = self.words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.dir).env_clear().envs(&self.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (lines, progress) = (tail.clone(), progress.clone());
        let reader = thread::spawn(move || follow(stderr, &lines, &progress));
        Ok((Process { child, status: None, tail, stderr: Some(reader) }, stdin, stdout))
    }
}

/// A running program. Dropping it kills the process group.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Once it has been waited for.
    status: Option<ExitStatus>,
    tail: Arc<Mutex<VecDeque<String>>>,
    stderr: Option<JoinHandle<()>>,
}

impl Process {
    /// Kills the process and all of its group.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            kill_group(&self.child);
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits until it has exited by itself; `None` if it did not within `limit`.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        while self.status.is_none() {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    // What it left running in its group goes with it.
                    kill_group(&self.child);
                    self.status = Some(status);
                }
                Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
        self.status
    }

    /// How it ended, if it exits by itself within `limit`.
    pub(super) fn exit_within(&mut self, limit: Duration) -> Option<String> {
        self.wait(limit).map(describe)
    }

    /// Waits for the exit of a program that has closed its stdout, and says how it ended; `Ok` for
    /// the exit status 0.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        let status = self.wait(EXIT_GRACE);
        self.kill();
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(describe(status)),
            None => Err(format!("it closed its stdout but did not exit within {EXIT_GRACE:?}")),
        }
    }

    /// The last lines of its stderr; call it after the program has ended.
    pub(super) fn last_lines(&mut self) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(1);
        while self.stderr.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Lets an idle program end by itself, in the background: its stdin has been closed.
    pub(super) fn retire(mut self) {
        thread::spawn(move || self.wait(EXIT_GRACE));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(unix)]
fn kill_group(child: &Child) {
    use nix::sys::signal::{Signal, killpg};
    let _ = killpg(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGKILL);
}

#[cfg(not(unix))]
fn kill_group(_: &Child) {}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("it was killed by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("it exited with status {code}"),
        None => format!("it ended with {status}"),
    }
}

/// Passes on each line of stderr, and keeps the last ones.
fn follow(stderr: ChildStderr, tail: &Mutex<VecDeque<String>>, progress: &Progress) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while stderr.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // A progress bar returns to the start of its line: only its last state is shown.
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default().to_string();
        line.clear();
        if text.is_empty() {
            continue;
        }
        progress.note(text.as_str());
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
}
