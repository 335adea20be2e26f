//! Pools whose nodes fail, come and go, through real sockets.

mod discovery;
mod ejection;
mod health;
mod link;
mod load;
mod retries;
mod slow_start;
