//! The time for which a server may be silent.

use super::*;
use crate::engines::{Link, Redis};
use crate::idempotency::remote::alone;
use crate::io::redis::Login;

/// Sends a command with so many bytes of results, whose reply is kept back for one and a half times as long as a server
/// may be silent.
fn is_answered(bytes: usize) -> Option<bool> {
    let server = Redis::start(&[])?;
    let link = Link::to(server.port);
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        addresses: vec![format!("127.0.0.1:{}", link.port())],
        login: Login::default(),
        replicas: 0,
        fleet: "default".to_owned(),
        identity_file: folder.path().join("store.id"),
    };
    let answered = alone(async {
        let connection = connect(&settings, Use::Writing).await?;
        let mut commands = Pipeline::new();
        commands.cmd("PING");
        link.hold_replies(true);
        let sent = connection.send(&commands, bytes);
        let released = async {
            tokio::time::sleep(SILENCE * 3 / 2).await;
            link.hold_replies(false);
        };
        Ok(tokio::join!(sent, released).0.is_ok())
    });
    Some(answered.unwrap())
}

#[test]
fn a_server_may_be_silent_for_as_long_as_results_travel() {
    // 8 MiB have two seconds more than a command without results.
    let (Some(small), Some(large)) = (is_answered(0), is_answered(8 << 20)) else { return };
    assert!(!small, "a connection that is silent is replaced");
    assert!(large, "results are on their way");
}
