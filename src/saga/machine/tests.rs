//! The protocol event by event.

use super::super::log::Standing;
use super::*;

const SECOND: Millis = 1000;

/// Three steps of which the last cannot be undone, begun at 0.
fn plan() -> Plan {
    let planned = |has_undo| PlannedStep { has_undo, attempts: 3, backoff: 100 };
    Plan {
        steps: vec![planned(true), planned(true), planned(false)],
        deadline: 30 * SECOND,
        stuck_after: 3600 * SECOND,
    }
}

/// A saga and what it is to do next.
struct Saga {
    plan: Plan,
    state: State,
    log: Vec<Entry>,
    effect: Option<Effect>,
}

impl Saga {
    fn new() -> Saga {
        let state = State::begin(0, Progress::new(3, 0));
        let mut saga = Saga { plan: plan(), state, log: Vec::new(), effect: None };
        saga.event(Event::Begin, 0);
        saga
    }

    /// Takes an event; what is to be appended is durable at once.
    fn event(&mut self, event: Event, now: Millis) {
        (self.state, self.effect) = step(&self.plan, &self.state, event, now);
        while let Some(Effect::Append(entries)) = &self.effect {
            self.log.extend(entries.clone());
            (self.state, self.effect) = step(&self.plan, &self.state, Event::Durable, now);
        }
    }

    fn answer(&mut self, answer: Answer, now: Millis) -> &mut Saga {
        assert!(matches!(self.effect, Some(Effect::Send { .. })), "{:?}", self.effect);
        self.event(Event::Answer(answer), now);
        self
    }

    fn due(&mut self) -> Millis {
        let Some(Effect::Wait { until }) = self.effect else { panic!("{:?}", self.effect) };
        self.event(Event::Due, until);
        until
    }

    /// Another proxy takes the saga over.
    fn is_taken_over(&mut self, now: Millis) {
        self.state = State::begin(0, Progress::fold(3, 0, &self.log));
        self.event(Event::Begin, now);
    }

    fn sends(&self) -> Option<(usize, Way)> {
        match self.effect {
            Some(Effect::Send { step, way, .. }) => Some((step, way)),
            _ => None,
        }
    }

    fn turn(&self) -> Turn {
        self.state.progress.turn.unwrap()
    }

    fn standing(&self) -> Standing {
        self.state.progress.standing()
    }
}

fn success() -> Answer {
    Answer::Success { status: 201, outputs: String::new() }
}

fn status(status: u16) -> Answer {
    Answer::Status { status, retry_after: None }
}

#[test]
fn n_steps_take_n_and_two_commits() {
    let (plan, state) = (plan(), State::begin(0, Progress::new(3, 0)));
    let (mut state, mut effect) = step(&plan, &state, Event::Begin, 0);
    // The claim is the first.
    let (mut commits, mut sent) = (1, Vec::new());
    while let Some(next) = effect.take() {
        let event = match next {
            Effect::Append(_) => {
                commits += 1;
                Event::Durable
            }
            Effect::Send { step, way, .. } => {
                sent.push((step, way));
                Event::Answer(success())
            }
            Effect::Wait { .. } => panic!("nothing fails"),
        };
        (state, effect) = step(&plan, &state, event, 1);
    }
    assert_eq!((commits, sent), (5, vec![(0, Way::Do), (1, Way::Do), (2, Way::Do)]));
    assert_eq!(state.progress.standing(), Standing::Succeeded);
}

#[test]
fn a_refusal_is_believed_where_no_attempt_may_have_been_carried_out() {
    for refusal in [400, 402, 404, 409, 410, 422, 499] {
        let mut saga = Saga::new();
        saga.answer(success(), 1).answer(status(refusal), 2);
        assert_eq!(saga.sends(), Some((0, Way::Undo)), "{refusal}");
        let cause = Cause::Refused;
        assert_eq!(saga.turn(), Turn { step: 1, status: Some(refusal), is_unknown: false, cause });
        assert_eq!(saga.answer(success(), 3).standing(), Standing::Compensated);
    }
    let busy = [status(408), status(425), status(429), Answer::Status { status: 409, retry_after: Some(0) }];
    for temporary in busy.into_iter().chain([Answer::NotSent]) {
        let mut saga = Saga::new();
        saga.answer(temporary, 1).due();
        assert_eq!(saga.answer(status(422), 200).standing(), Standing::Compensated, "nothing is to be undone");
    }
    for unknown in [status(500), status(503), status(302), Answer::None] {
        let mut saga = Saga::new();
        saga.answer(unknown, 1).due();
        saga.answer(status(422), 200).due();
        assert_eq!((saga.sends(), saga.standing()), (Some((0, Way::Do)), Standing::Running));
    }
    let mut saga = Saga::new();
    saga.is_taken_over(100);
    assert_eq!(saga.answer(status(422), 200).standing(), Standing::Running, "a dead owner's attempt is unknown");
}

#[test]
fn an_unknown_outcome_is_tried_again_until_the_deadline_and_then_undone() {
    let mut saga = Saga::new();
    saga.answer(success(), 0);
    let (mut now, mut pauses) = (0, Vec::new());
    while saga.sends() == Some((1, Way::Do)) {
        saga.answer(Answer::None, now);
        let next = saga.due();
        pauses.push(next - now);
        now = next;
    }
    assert_eq!(pauses[..8], [100, 100, 100, 200, 400, 800, 1000, 1000]);
    assert_eq!((now, saga.sends()), (30 * SECOND, Some((1, Way::Undo))), "perhaps done");
    assert_eq!(saga.turn(), Turn { step: 1, status: None, is_unknown: true, cause: Cause::Deadline });
    saga.answer(success(), now);
    assert_eq!(saga.sends(), Some((0, Way::Undo)), "in reverse");
}

#[test]
fn an_answer_after_the_deadline_counts_and_the_next_step_does_not_begin() {
    let mut saga = Saga::new();
    saga.answer(success(), 31 * SECOND);
    assert_eq!((saga.sends(), saga.turn().step), (Some((0, Way::Undo)), 1));
    let mut saga = Saga::new();
    saga.answer(success(), 1).answer(success(), 2).answer(success(), 31 * SECOND);
    assert_eq!(saga.standing(), Standing::Succeeded, "nothing is left to be sent");
}

#[test]
fn a_pause_that_the_service_asks_for_is_kept() {
    let mut saga = Saga::new();
    saga.answer(Answer::Status { status: 429, retry_after: Some(5 * SECOND) }, 0);
    assert_eq!(saga.effect, Some(Effect::Wait { until: 5 * SECOND }));
    saga.due();
    saga.answer(Answer::Status { status: 409, retry_after: Some(100 * SECOND) }, 6 * SECOND);
    assert_eq!(saga.due(), 30 * SECOND, "until the deadline");
    assert_eq!(saga.standing(), Standing::Compensated, "it was never carried out");
}

#[test]
fn nothing_is_undone_while_the_outcome_of_the_pivot_is_unknown() {
    let mut saga = Saga::new();
    saga.answer(success(), 0).answer(success(), 0);
    assert_eq!(saga.effect, Some(Effect::Send { step: 2, way: Way::Do, give_up: None }), "it is not cut off");
    let mut now = 0;
    while saga.standing() == Standing::Running {
        assert_eq!(saga.sends(), Some((2, Way::Do)));
        saga.answer(status(500), now);
        now = saga.due();
    }
    assert_eq!((now / SECOND, saga.standing(), &saga.effect), (3600, Standing::Stuck, &None));
    saga.event(Event::Retry { by: "ann".to_owned() }, now);
    assert_eq!(saga.answer(status(422), now).standing(), Standing::Running, "it is unknown still");
    saga.due();
    assert_eq!(saga.answer(success(), now).standing(), Standing::Succeeded);
}

#[test]
fn a_pivot_that_was_not_carried_out_ends_with_the_deadline() {
    let mut saga = Saga::new();
    saga.answer(success(), 0).answer(success(), 0).answer(status(429), 30 * SECOND);
    assert_eq!((saga.sends(), saga.turn().is_unknown), (Some((1, Way::Undo)), false));
}

#[test]
fn an_undo_is_tried_until_a_person_decides() {
    let mut saga = Saga::new();
    saga.answer(success(), 0).answer(status(422), 0);
    let (mut now, mut pauses) = (0, Vec::new());
    while saga.sends() == Some((0, Way::Undo)) {
        saga.answer(status(404), now);
        let next = saga.due();
        pauses.push(next - now);
        now = next;
    }
    assert_eq!(pauses[..12], [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
    assert_eq!((saga.standing(), saga.effect.clone()), (Standing::Stuck, None));
    assert!(now >= 3600 * SECOND);
    saga.is_taken_over(now);
    assert_eq!(saga.effect, None, "stuck for whoever reads its log");
    saga.event(Event::Retry { by: "ann".to_owned() }, now);
    assert_eq!(saga.sends(), Some((0, Way::Undo)));
    saga.answer(status(500), now + 1);
    assert_eq!(saga.standing(), Standing::Compensating, "the time begins anew");
    saga.due();
    assert_eq!(saga.answer(success(), now + 2).standing(), Standing::Compensated);
}

#[test]
fn an_undo_that_nobody_tried_is_tried_before_the_saga_is_stuck() {
    let mut saga = Saga::new();
    saga.answer(success(), 0).answer(status(422), 0);
    saga.is_taken_over(7200 * SECOND);
    assert_eq!(saga.sends(), Some((0, Way::Undo)));
    saga.answer(Answer::None, 7200 * SECOND);
    saga.due();
    assert_eq!(saga.standing(), Standing::Stuck);
}

#[test]
fn a_person_resolves_what_is_stuck_and_nothing_else() {
    let stuck = |is_pivot: bool| {
        let mut saga = Saga::new();
        saga.answer(success(), 0);
        if is_pivot {
            saga.answer(success(), 0).answer(Answer::None, 7200 * SECOND);
        } else {
            saga.answer(status(422), 0).answer(Answer::None, 7200 * SECOND);
        }
        saga.due();
        assert_eq!(saga.standing(), Standing::Stuck);
        saga
    };
    let resolve = |outcome| Event::Resolve { by: "ann".to_owned(), outcome };
    let mut saga = stuck(true);
    saga.event(resolve(Outcome::Succeeded), 7300 * SECOND);
    assert_eq!(saga.standing(), Standing::Succeeded);
    let mut saga = stuck(true);
    saga.event(resolve(Outcome::Compensated), 7300 * SECOND);
    assert_eq!((saga.sends(), saga.turn().cause), (Some((1, Way::Undo)), Cause::Operator), "the pivot was not");
    let mut saga = stuck(false);
    saga.event(resolve(Outcome::Succeeded), 7300 * SECOND);
    assert_eq!(saga.standing(), Standing::Stuck, "nothing goes forward after the turn");
    saga.event(resolve(Outcome::Compensated), 7300 * SECOND);
    assert_eq!(saga.standing(), Standing::Compensated);
    let mut running = Saga::new();
    let before = running.state.clone();
    running.event(resolve(Outcome::Compensated), 1);
    running.event(Event::Retry { by: "ann".to_owned() }, 1);
    assert_eq!(running.state, before);
}

#[test]
fn what_cannot_be_made_of_its_templates_is_not_sent() {
    let mut saga = Saga::new();
    saga.answer(success(), 0).answer(Answer::Unresolved, 1);
    assert_eq!((saga.sends(), saga.turn().cause), (Some((0, Way::Undo)), Cause::Unresolved));
}

#[test]
fn a_saga_that_is_taken_over_goes_on_where_its_log_ends() {
    let mut saga = Saga::new();
    saga.answer(success(), 0);
    saga.is_taken_over(1);
    assert_eq!(saga.sends(), Some((1, Way::Do)), "the first is done");
    saga.is_taken_over(31 * SECOND);
    assert_eq!((saga.sends(), saga.turn().is_unknown), (Some((1, Way::Undo)), true));
    saga.answer(success(), 31 * SECOND);
    saga.is_taken_over(32 * SECOND);
    assert_eq!(saga.sends(), Some((0, Way::Undo)));
    saga.answer(success(), 32 * SECOND).is_taken_over(33 * SECOND);
    assert_eq!((saga.standing(), &saga.effect), (Standing::Compensated, &None));
}
