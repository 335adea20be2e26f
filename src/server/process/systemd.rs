//! Notifications to the service manager, where there is one (`Type=notify`, `Type=notify-reload`).

use sd_notify::NotifyState;

/// The service has started, or has ended a reload.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "there is no monotonic clock for the service manager"),
    }
}

/// The service is on its way out.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Another process is the service from now on.
pub(super) fn main_pid(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

fn notify(states: &[NotifyState<'_>]) {
    // Without a service manager nothing is sent.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
