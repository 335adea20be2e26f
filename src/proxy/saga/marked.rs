//! The mark of a saga, where strong routes cache what it changes: it is set before the first byte of a step, renewed until
//! the saga ends, and set anew by the process that takes the saga over.

use super::executor::{Executor, Lost};
use crate::consistency::quorum::Outcome;
use crate::fleet::quorum::{Lapsed, MarkLost};
use crate::proxy::strong::MarkOrder;
use crate::saga::log::Millis;
use crate::saga::machine::{Answer, Way};
use std::rc::Rc;

impl Executor {
    /// Sends a request of a step, once, under the mark of the saga. Without W nodes it is not sent.
    pub(super) async fn attempt_marked(
        &mut self,
        step: usize,
        way: Way,
        give_up: Option<Millis>,
    ) -> Result<Answer, Lost> {
        let held = self.mark.held.take().filter(|(_, mark)| !mark.has_lapsed());
        let (order, mark) = match held {
            Some(held) => held,
            None => {
                let Some(order) = self.mark_order() else { return self.attempt(step, way, give_up).await };
                match order.begin(&self.worker.quorum(order.rules())).await {
                    Ok(mark) => (order, mark),
                    Err(MarkLost) => return Ok(Answer::NotSent),
                }
            }
        };
        self.mark.send_by = mark.send_by();
        match mark.protect(self.attempt(step, way, give_up)).await {
            Ok(answer) => {
                self.mark.is_open |= matches!(answer, Ok(Answer::None));
                self.mark.held = Some((order, mark));
                answer
            }
            Err(Lapsed) => {
                self.mark.is_open = true;
                Ok(Answer::None)
            }
        }
    }

    /// Waits until a time of the store, and renews the mark meanwhile. Returns whether the saga stays here.
    pub(super) async fn wait_marked(&mut self, until: Millis) -> bool {
        let Some((order, mark)) = self.mark.held.take() else { return self.wait(until).await };
        match mark.protect(self.wait(until)).await {
            Ok(stays) => {
                self.mark.held = Some((order, mark));
                stays
            }
            // The next step sets another one.
            Err(Lapsed) => self.wait(until).await,
        }
    }

    /// Ends the mark of a saga that is over. That of one which another process goes on with stays for a while.
    pub(super) async fn end_mark(&mut self, is_over: bool) {
        let Some((order, mark)) = self.mark.held.take() else { return };
        let outcome = if is_over && !self.mark.is_open { Outcome::Answered } else { Outcome::Unknown };
        order.end(mark, outcome).await;
    }

    /// Returns the mark that the saga needs; `None` where no strong route is verified by a quorum, or it names no groups.
    fn mark_order(&self) -> Option<Rc<MarkOrder>> {
        let changes = &self.definition.changes;
        if changes.is_empty() {
            return None;
        }
        self.worker.snapshot().strong.as_ref().map(|strong| strong.mark_groups(changes))
    }
}
