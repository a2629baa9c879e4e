//! The library that makes system calls fail (`shim.c`), compiled once per test process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

const SOURCE: &str = include_str!("shim.c");

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    KillBefore,
    KillAfter,
    HalfWrite,
    Eio,
    Enospc,
    Full,
}

impl Fault {
    pub(super) const ALL: [Self; 6] =
        [Self::KillBefore, Self::KillAfter, Self::HalfWrite, Self::Eio, Self::Enospc, Self::Full];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillBefore => "kill_before",
            Self::KillAfter => "kill_after",
            Self::HalfWrite => "half",
            Self::Eio => "eio",
            Self::Enospc => "enospc",
            Self::Full => "full",
        }
    }

    pub(super) fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter | Self::HalfWrite)
    }
}

/// The compiled library; `None`, loudly, where it cannot be made.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let made = LIBRARY.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            eprintln!("SKIPPED: faults in system calls need Linux");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("shim.c"), folder.path().join("shim.so"));
        fs::write(&source, SOURCE).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl");
        match compiler.output() {
            Err(error) => {
                eprintln!("SKIPPED: there is no C compiler `cc`: {error}");
                None
            }
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Some((folder, library))
            }
        }
    });
    made.as_ref().map(|(_, library)| library.as_path())
}

/// Whether faults can be made here.
pub(super) fn is_available() -> bool {
    library().is_some()
}

fn watched(command: &mut Command, folder: &Path) {
    command.env("LD_PRELOAD", library().unwrap()).env("FAULT_DIR", folder);
}

/// Lets a command fail at call number `at` below `folder`. Each fault that happens adds a line to
/// the file `note`.
pub(super) fn inject(command: &mut Command, folder: &Path, (fault, at): (Fault, usize), note: &Path) {
    watched(command, folder);
    command.env("FAULT_KIND", fault.name()).env("FAULT_AT", at.to_string()).env("FAULT_NOTE", note);
}

/// Records every change that a command makes below `folder`.
pub(super) fn record(command: &mut Command, folder: &Path, record: &Path) {
    watched(command, folder);
    command.env("FAULT_RECORD", record);
}

/// A recorded call that changed something, by paths and numbers of inodes; or what was printed.
#[derive(Debug)]
pub(super) enum Call {
    Create { inode: u64, path: PathBuf },
    Folder { inode: u64, path: PathBuf },
    Truncate { inode: u64, length: usize },
    Write { inode: u64, start: usize, bytes: Vec<u8> },
    Sync { inode: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    Print { text: String },
}

/// Reads a record.
pub(super) fn calls(record: &Path) -> Vec<Call> {
    let bytes = fs::read(record).unwrap();
    let (mut calls, mut rest) = (Vec::new(), &bytes[..]);
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        rest = &rest[end + 1..];
        let parts: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| parts[at].parse::<u64>().unwrap();
        let path = |at: usize| PathBuf::from(parts[at]);
        let mut body = |length: u64| {
            let (body, after) = rest.split_at(length as usize);
            rest = after;
            body.to_vec()
        };
        calls.push(match parts[0] {
            "create" => Call::Create { inode: number(1), path: path(2) },
            "mkdir" => Call::Folder { inode: number(1), path: path(2) },
            "truncate" => Call::Truncate { inode: number(1), length: number(2) as usize },
            "write" => {
                let (inode, start) = (number(1), number(2) as usize);
                Call::Write { inode, start, bytes: body(number(3)) }
            }
            "sync" => Call::Sync { inode: number(1) },
            "rename" => Call::Rename { from: path(1), to: path(2) },
            "link" => Call::Link { from: path(1), to: path(2) },
            "unlink" => Call::Remove { path: path(1) },
            "print" => Call::Print { text: String::from_utf8_lossy(&body(number(1))).into_owned() },
            other => panic!("the record has a line `{other}`"),
        });
    }
    calls
}
