//! The one handle on a running proxy: the server implements it, the admin listener holds it.

use serde_json::Value as Json;

/// What can be asked of a running proxy.
pub(crate) trait Control: Send + Sync {
    /// Whether new requests are welcome: not draining, and every pool in use has a usable node.
    fn is_ready(&self) -> bool;
    /// The metrics page in the Prometheus text format.
    fn metrics(&self) -> Vec<u8>;
    /// Version, uptime, listeners and what the configuration says of itself.
    fn status(&self) -> Json;
    /// The configuration in force, defaults filled in.
    fn config(&self) -> Json;
    /// Every pool with its nodes, their shares of the keys and their load.
    fn pools(&self) -> Json;
    /// Who owns a key, and who would next; `None` where there is no such pool.
    fn owners(&self, pool: &str, key: &str) -> Option<Json>;
}
