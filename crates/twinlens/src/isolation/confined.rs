//! A process that decodes images and can do nothing else.
//!
//! It reads requests and writes answers. Memory is limited; computing time is, for each image; and
//! on Linux a filter (seccomp) refuses all calls of the system but those for memory, threads and
//! the two pipes, so that bytes which take the process over reach no file, no network and no
//! program.

use std::ffi::OsStr;
use std::io::{self, Write};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use twinlens_image::{DecodeRequest, write_answer};

use crate::in_flight::abort_on_marked;

/// The argument by which this program is started so.
pub(super) const ARGUMENT: &str = "--decode-images";
/// What the process says first: whether its calls are filtered.
pub(super) const FILTERED: u8 = 1;
const NOT_FILTERED: u8 = 2;
/// Bytes of data: what the largest image within the default limits needs, and as much again.
pub(super) const MEMORY: u64 = 3 << 30;
/// Seconds of computing for an image.
pub(super) const CPU_SECONDS: u64 = 30;

/// If this process was started to decode images: does that, until nobody asks any more.
pub(crate) fn decoder_process(argument: &OsStr) -> Option<u8> {
    if argument != ARGUMENT {
        return None;
    }
    twinlens_image::silence_decoder_panics();
    Some(u8::from(serve().is_err()))
}

fn serve() -> io::Result<()> {
    let is_filtered = confine()?;
    let (mut requests, mut answers) = (io::stdin().lock(), io::stdout().lock());
    answers.write_all(&[if is_filtered { FILTERED } else { NOT_FILTERED }])?;
    answers.flush()?;
    let mut bytes = Vec::new();
    while let Some(request) = DecodeRequest::read(&mut requests, &mut bytes)? {
        abort_on_marked(request.bytes);
        limit_computing()?;
        write_answer(&mut answers, request.decode())?;
    }
    Ok(())
}

/// Gives up everything but decoding; whether the system filters calls from now on.
fn confine() -> io::Result<bool> {
    // The threads that decoders may use: they are started while that can still be arranged.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    pool.map_err(io::Error::other)?;
    let core = Resource::RLIMIT_CORE;
    setrlimit(core, 0, 0)?;
    let (_, most) = getrlimit(Resource::RLIMIT_DATA)?;
    setrlimit(Resource::RLIMIT_DATA, MEMORY.min(most), MEMORY.min(most))?;
    Ok(filter::apply().is_ok())
}

/// Allows [`CPU_SECONDS`] from now on. The system ends a process that takes more.
fn limit_computing() -> io::Result<()> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = (used.user_time().tv_sec() + used.system_time().tv_sec()) as u64;
    let (_, most) = getrlimit(Resource::RLIMIT_CPU)?;
    setrlimit(Resource::RLIMIT_CPU, (seconds + 1 + CPU_SECONDS).min(most), most)?;
    Ok(())
}

#[cfg(target_os = "linux")]
mod filter {
    use std::collections::BTreeMap;
    use std::error::Error;

    use nix::libc;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
        SeccompFilter, SeccompRule,
    };

    /// Calls for memory, threads, time and open pipes.
    const ALLOWED: [libc::c_long; 37] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_membarrier,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_getcpu,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_restart_syscall,
        libc::SYS_getrandom,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_getrusage,
        libc::SYS_getrlimit,
        libc::SYS_setrlimit,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_prctl,
    ];

    /// Refuses all other calls in all threads of this process, for good.
    pub(super) fn apply() -> Result<(), Box<dyn Error>> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
        // Calls that could be aimed at another process are allowed for this one.
        let first_is = |value: u64| -> Result<Vec<SeccompRule>, Box<dyn Error>> {
            Ok(vec![SeccompRule::new(vec![SeccompCondition::new(0, Length::Dword, Is::Eq, value)?])?])
        };
        rules.insert(libc::SYS_prlimit64, first_is(0)?);
        rules.insert(libc::SYS_tgkill, first_is(std::process::id().into())?);
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let target = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, target)?;
        let program: BpfProgram = filter.try_into()?;
        Ok(seccompiler::apply_filter_all_threads(&program)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod filter {
    /// There is no filter here.
    pub(super) fn apply() -> Result<(), ()> {
        Err(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::TcpStream;
    use std::process::Command;
    use twinlens_image::ImageModes;
    use twinlens_testkit::web::png;

    const NAME: &str = "isolation::confined::tests::a_confined_process_decodes_and_does_nothing_else";
    const CHILD: &str = "TWINLENS_CONFINED_TEST";

    /// Each in a process of its own: it cannot come back.
    #[test]
    fn a_confined_process_decodes_and_does_nothing_else() {
        let attempt = |what: &str| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", NAME, "--nocapture"]).env(CHILD, what).output().unwrap()
        };
        let Ok(what) = std::env::var(CHILD) else {
            for what in ["decode", "file", "network", "program", "signal"] {
                let output = attempt(what);
                assert!(output.status.success(), "{what}: {output:?}");
            }
            // Memory ends at the limit, and computing.
            for what in ["memory", "computing"] {
                let output = attempt(what);
                assert_eq!(output.status.code(), None, "{what}: {output:?}");
            }
            return;
        };
        let image = png(40, 30);
        assert!(confine().unwrap(), "calls are not filtered");
        match &what[..] {
            "decode" => {
                for modes in [ImageModes::White, ImageModes::OpenClip] {
                    DecodeRequest { bytes: &image, modes, reduction: 1 }.decode().unwrap();
                }
                limit_computing().unwrap();
                std::thread::spawn(|| 7).join().unwrap();
            }
            "file" => assert!(File::open("/etc/passwd").is_err() && File::create("escaped").is_err()),
            "network" => assert!(TcpStream::connect(("127.0.0.1", 9)).is_err_and(is_refused)),
            "program" => assert!(Command::new("true").output().is_err()),
            "signal" => {
                let parent = nix::unistd::Pid::from_raw(1);
                assert!(nix::sys::signal::kill(parent, None).is_err());
            }
            "memory" => {
                let mut held = Vec::new();
                loop {
                    held.push(vec![1u8; 64 << 20]);
                    assert!((held.len() as u64) << 26 <= MEMORY, "more than the limit");
                }
            }
            _ => {
                setrlimit(Resource::RLIMIT_CPU, 1, 1).unwrap();
                loop {
                    std::hint::black_box(what.len());
                }
            }
        }
    }

    fn is_refused(error: io::Error) -> bool {
        error.raw_os_error() == Some(nix::libc::EPERM)
    }
}
