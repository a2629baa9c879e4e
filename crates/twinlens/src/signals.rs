//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process.

use std::io;
use std::sync::mpsc;

use tokio_util::sync::CancellationToken;

use crate::errors::Exit;

/// Watches from a thread of its own, so that a busy run cannot keep a second Ctrl-C from working. `told` is called at the first.
///
/// # Errors
/// The system refuses to deliver signals.
pub fn watch(cancel: CancellationToken, told: impl Fn() + Send + 'static) -> io::Result<()> {
    let (ready, watching) = mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let watched: io::Result<()> = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let mut signals = Signals::new()?;
                // The receiver waits for exactly this.
                let _ = ready.send(Ok(()));
                signals.next().await;
                told();
                cancel.cancel();
                signals.next().await;
                std::process::exit(Exit::Interrupted as i32)
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

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
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

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
