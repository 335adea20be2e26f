//! The replacement of the binary: the new one is started beside this process, gets its listening sockets, and continues
//! alone once it serves. If it fails before, nothing has changed.

use super::handle::Handle;
use super::handover::{HandoverMessage, Line, Listening, Offer, PATIENCE, VARIABLE};
use super::systemd;
use crate::control::Event;
use crate::server::worker::Stage;
use rustix::process::Pid;
use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The time until a process that has closed the connection ends, so that its exit status can be reported.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the new binary does not take over.
#[derive(Debug, thiserror::Error)]
enum UpgradeError {
    #[error("cannot start `{program}`: {cause}")]
    Start { program: String, cause: io::Error },
    #[error("the new process ended before it was ready ({0}); what it wrote says why")]
    Ended(ExitStatus),
    #[error("the new process was not ready within {} s", PATIENCE.as_secs())]
    TooLate,
    #[error("cannot hand over to the new process: {0}")]
    Handover(io::Error),
    #[error("the upgrade ended in a panic")]
    Panic,
}

/// Replaces the binary by the file at the path of its start; notifies `handle.replaced` after success.
pub(super) async fn run(handle: Arc<Handle>) {
    if handle.is_upgrading.swap(true, Ordering::SeqCst) {
        return tracing::warn!("an upgrade is under way already");
    }
    tracing::info!("starting the new binary");
    let began = Instant::now();
    let giving = Arc::clone(&handle);
    let outcome = tokio::task::spawn_blocking(move || start_and_hand_over(&giving)).await;
    match outcome.unwrap_or(Err(UpgradeError::Panic)) {
        Ok(pid) => {
            handle.events.record(Event::Upgrade { success: true, error: None });
            tracing::info!(pid, took = ?began.elapsed(), "the new binary serves; this one ends");
            systemd::main_pid(pid);
            handle.is_replaced.store(true, Ordering::SeqCst);
            // The new process, or another proxy, leads the fleet from now on.
            handle.retire();
            handle.replaced.notify_one();
        }
        Err(error) => {
            handle.metrics.upgrades.with_label_values(&["failure"]).inc();
            handle.events.record(Event::Upgrade { success: false, error: Some(error.to_string()) });
            tracing::error!(%error, "not upgraded, the old binary serves on");
            *handle.states_given.lock() = false;
            handle.open_admin();
            handle.is_upgrading.store(false, Ordering::SeqCst);
        }
    }
}

/// Returns the new process's id.
fn start_and_hand_over(handle: &Arc<Handle>) -> Result<u32, UpgradeError> {
    let (mut line, other) = Line::pair().map_err(UpgradeError::Handover)?;
    let mut child = start(other.into())?;
    let starting = |pid| *handle.starting.lock() = pid;
    starting(Some(Pid::from_child(&child)));
    let handed_over = hand_over(handle, &mut line);
    starting(None);
    match handed_over {
        Ok(()) => Ok(child.id()),
        Err(error) => {
            // The other end of the connection must be closed too, so that its reader sees the end.
            drop(line);
            Err(fate_of(&mut child, error))
        }
    }
}

/// The program at the path that this one was started by, with the same arguments.
fn start(input: Stdio) -> Result<Child, UpgradeError> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| OsString::from("ringway"));
    let mut command = Command::new(&program);
    command.args(arguments).env(VARIABLE, "stdin").stdin(input);
    // The sockets of systemd are handed over, and not inherited a second time.
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.spawn().map_err(|cause| UpgradeError::Start { program: program.display().to_string(), cause })
}

fn hand_over(handle: &Arc<Handle>, line: &mut Line) -> io::Result<()> {
    let open = handle.open.borrow().clone();
    let listeners = open.iter().map(|open| Listening {
        configured: open.configured,
        sockets: open.sockets().len(),
        was_narrowed: open.was_narrowed,
    });
    let (admin, metrics) = (handle.admin.listening(), handle.metrics_listener.as_ref());
    let metrics = metrics.map(|listener| listener.listening());
    let store = handle.records.get().map(|records| records.kind.name());
    let upgrades = handle.metrics.upgrades.with_label_values(&["success"]).get();
    line.send(&HandoverMessage::Offer(Offer {
        listeners: listeners.collect(),
        admin: Some(admin),
        metrics,
        store,
        upgrades,
    }))?;
    for open in &open {
        line.send_sockets(open.sockets())?;
    }
    for listener in std::iter::once(&handle.admin).chain(&handle.metrics_listener) {
        line.send_sockets(std::slice::from_ref(listener.socket()))?;
    }
    expect(line, |said| matches!(said, HandoverMessage::Ready))?;
    if *handle.stage.borrow() != Stage::Serving {
        return Err(io::Error::other("this process was told to stop meanwhile"));
    }
    // From here on, states of nodes are set in the new process.
    handle.close_admin();
    line.send(&HandoverMessage::Go { nodes: handle.take_states(), orders: handle.registry.orders() })?;
    expect(line, |said| matches!(said, HandoverMessage::Serving))
}

fn expect(line: &mut Line, is_right: impl Fn(&HandoverMessage) -> bool) -> io::Result<()> {
    match line.receive()? {
        said if is_right(&said) => Ok(()),
        said => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it says {said:?}"))),
    }
}

/// Returns the error for a process that does not take over, after ending it.
fn fate_of(child: &mut Child, error: io::Error) -> UpgradeError {
    let hung_up = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    );
    let deadline = Instant::now() + LAST_WORDS;
    while hung_up && Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return UpgradeError::Ended(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => UpgradeError::TooLate,
        _ => UpgradeError::Handover(error),
    }
}
