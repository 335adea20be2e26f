//! What the admin listener shows of a running proxy: the dashboard's files, the stream of requests, the hottest names,
//! the history, and what a changed configuration would move.

mod files;
mod history;
mod plan;
mod tap;
mod top;
