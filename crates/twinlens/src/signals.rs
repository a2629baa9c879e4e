//! Ctrl-C and SIGTERM, on a thread of their own: work that does not pause cannot keep them waiting.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::errors::Exit;

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Interrupt,
    #[cfg(unix)]
    Terminate,
}

/// The first signal asks the run to stop, and `told` is called; the second ends the process.
///
/// # Errors
/// The system refuses to deliver signals.
pub fn stop(cancel: CancellationToken, told: impl Fn() + Send + 'static) -> io::Result<()> {
    listen(move |_| {
        if cancel.is_cancelled() {
            exit();
        }
        told();
        cancel.cancel();
    })
}

/// Wakes whoever waits at each Ctrl-C; SIGTERM ends the process.
///
/// # Errors
/// The system refuses to deliver signals.
pub fn interrupts() -> io::Result<Arc<Notify>> {
    let interrupted = Arc::new(Notify::new());
    let waiters = interrupted.clone();
    listen(move |sent| match sent {
        Sent::Interrupt => waiters.notify_waiters(),
        #[cfg(unix)]
        Sent::Terminate => exit(),
    })?;
    Ok(interrupted)
}

fn exit() -> ! {
    std::process::exit(Exit::Interrupted as i32)
}

/// Returns when signals are watched for.
fn listen(mut act: impl FnMut(Sent) + Send + 'static) -> io::Result<()> {
    let (ready, watching) = mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let watched: io::Result<()> = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let mut signals = Signals::new()?;
                // The receiver waits for exactly this.
                let _ = ready.send(Ok(()));
                loop {
                    act(signals.next().await);
                }
            })
        });
        if let Err(error) = watched {
            let _ = ready.send(Err(error));
        }
    })?;
    watching.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that watches for signals ended")))
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Sent {
        tokio::select! {
            _ = self.interrupt.recv() => Sent::Interrupt,
            _ = self.terminate.recv() => Sent::Terminate,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Sent {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Sent::Interrupt
    }
}
