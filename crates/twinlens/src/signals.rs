//! Ctrl-C and SIGTERM, handled on their own thread, so that blocking work cannot delay them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::errors::Exit;

/// How long splits in flight may continue after the first Ctrl-C.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Interrupt,
    #[cfg(unix)]
    Terminate,
}

/// The first signal calls `on_stop` and cancels the token; the second ends the process.
///
/// # Errors
/// Signal handlers cannot be installed.
pub(crate) fn stop(cancel: CancellationToken, on_stop: impl Fn() + Send + 'static) -> io::Result<()> {
    listen(move |_| {
        if cancel.is_cancelled() {
            exit();
        }
        on_stop();
        cancel.cancel();
    })
}

/// Notifies all waiters at each Ctrl-C; SIGTERM ends the process.
///
/// # Errors
/// Signal handlers cannot be installed.
pub(crate) fn interrupts() -> io::Result<Arc<Notify>> {
    let interrupted = Arc::new(Notify::new());
    let waiters = interrupted.clone();
    listen(move |signal| match signal {
        Signal::Interrupt => waiters.notify_waiters(),
        #[cfg(unix)]
        Signal::Terminate => exit(),
    })?;
    Ok(interrupted)
}

fn exit() -> ! {
    std::process::exit(Exit::Interrupted as i32)
}

/// Returns once the handlers are installed.
fn listen(mut act: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let (ready, installed) = mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let listened: io::Result<()> = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let mut signals = Signals::new()?;
                // The receiver is waiting below.
                let _ = ready.send(Ok(()));
                loop {
                    act(signals.next().await);
                }
            })
        });
        if let Err(error) = listened {
            let _ = ready.send(Err(error));
        }
    })?;
    installed.recv().unwrap_or_else(|_| Err(io::Error::other("the signal thread ended")))
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

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
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

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::Interrupt
    }
}
