//! The least rate of a request's body. A body that trickles would occupy a connection, and a node, for any time without
//! ever being idle.

use crate::config::Limits;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use std::time::Duration;

/// The minimum rate of a request's body, and the time spent waiting for it. Time in which the node accepts no data
/// is not its client's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct MinRate {
    /// Bytes a second; 0 for any rate.
    least: u64,
    /// The time that is not counted.
    grace: Duration,
    waited: Duration,
}

impl MinRate {
    /// For a request with these fields.
    pub(super) fn of(limits: &Limits, fields: &HeaderMap) -> MinRate {
        // gRPC calls may last for hours with few messages.
        let is_grpc = fields.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let least = if is_grpc { 0 } else { limits.body_min_rate.0 };
        MinRate { least, grace: limits.body_idle_timeout, waited: Duration::ZERO }
    }

    /// Adds a wait for the next piece; returns whether the body, of which `received` bytes have arrived, is slower than
    /// the least rate.
    pub(super) fn waited(&mut self, time: Duration, received: u64) -> bool {
        self.waited += time;
        let counted = self.waited.saturating_sub(self.grace);
        u128::from(received) * 1000 < u128::from(self.least) * counted.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_body_must_keep_its_pace_once_the_grace_is_over() {
        let pace = |least| MinRate { least, grace: Duration::from_secs(5), waited: Duration::ZERO };
        let second = Duration::from_secs(1);
        let mut dripping = pace(100);
        let too_slow: Vec<u64> = (1..=10).filter(|&n| dripping.waited(second, 10 * n)).collect();
        assert_eq!(too_slow, [6, 7, 8, 9, 10]);
        let mut steady = pace(100);
        assert!((1..=1000).all(|n| !steady.waited(second, 100 * n)));
        let mut any = pace(0);
        assert!((1..=1000).all(|_| !any.waited(second, 0)));
    }

    #[test]
    fn grpc_has_no_least_rate() {
        let limits: Limits = crate::config::read::default_value("{}");
        let mut fields = HeaderMap::new();
        assert_eq!(MinRate::of(&limits, &fields).least, 240);
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        assert_eq!(MinRate::of(&limits, &fields).least, 0);
    }
}
