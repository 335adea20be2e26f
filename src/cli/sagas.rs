//! `ringway sagas`: the sagas of a running proxy and its fleet, and a person's decision on one that is stuck.

use super::Outcome;
use super::api::Target;
use crate::control::{SagaStatus, SagaStepStatus};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value as Json, json};
use std::io::{self, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

/// The period of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    decision: Option<Decision>,
    #[command(flatten)]
    target: Target,
    /// Show those in one state alone
    #[arg(long, value_parser = ["running", "compensating", "succeeded", "compensated", "stuck"])]
    state: Option<String>,
    /// Show them anew whenever something has changed
    #[arg(long)]
    watch: bool,
    /// Print JSON; with `--watch` a line for each change
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Decision {
    /// Have a saga that is stuck go on where it was.
    Retry {
        #[command(flatten)]
        target: Target,
        /// The saga's id
        id: String,
    },
    /// Say what became of a saga that is stuck, once you have seen to it: the proxy believes you.
    Resolve {
        #[command(flatten)]
        target: Target,
        /// The saga's id
        id: String,
        /// `succeeded`: every step is done. `compensated`: the step that was open is not done, or what was to be undone
        /// is undone
        #[arg(long = "as", value_name = "OUTCOME", value_parser = ["succeeded", "compensated"])]
        outcome: String,
    },
}

pub(super) fn run(options: &Options) -> Outcome {
    match &options.decision {
        Some(Decision::Retry { target, id }) => decide(target, id, "retry", json!({})),
        Some(Decision::Resolve { target, id, outcome }) => decide(target, id, "resolve", json!({ "outcome": outcome })),
        None if options.watch => watch(options),
        None => {
            let found: Json = options.target.get(&path(options))?;
            match options.json {
                true => writeln!(stdout(), "{found:#}")?,
                false => print(&mut stdout().lock(), &serde_json::from_value::<Vec<SagaStatus>>(found)?)?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn decide(target: &Target, id: &str, word: &str, mut body: Json) -> Outcome {
    if let Ok(name) = std::env::var("USER")
        && !name.is_empty()
    {
        body["by"] = name.into();
    }
    target.command_with(&format!("/api/sagas/{}/{word}", utf8_percent_encode(id, NON_ALPHANUMERIC)), &body)
}

fn path(options: &Options) -> String {
    options.state.as_ref().map_or("/api/sagas".to_owned(), |state| format!("/api/sagas?state={state}"))
}

/// Prints the sagas whenever they have changed, until the command is interrupted.
fn watch(options: &Options) -> Outcome {
    let mut told = None;
    loop {
        let found: Json = options.target.get(&path(options))?;
        if told.as_ref() != Some(&found) {
            let mut out = stdout().lock();
            match options.json {
                true => writeln!(out, "{found}")?,
                false => {
                    if told.is_some() {
                        writeln!(out)?;
                    }
                    print(&mut out, &serde_json::from_value::<Vec<SagaStatus>>(found.clone())?)?;
                }
            }
            out.flush()?;
            told = Some(found);
        }
        std::thread::sleep(EVERY);
    }
}

fn print(out: &mut impl Write, sagas: &[SagaStatus]) -> io::Result<()> {
    if sagas.is_empty() {
        return writeln!(out, "no sagas");
    }
    let head = ["ID", "ROUTE", "STATE", "STARTED", "STEPS"].map(str::to_owned);
    let row = |saga: &SagaStatus| {
        let steps: Vec<String> = saga.steps.iter().map(|step| shown(saga, step)).collect();
        [saga.id.clone(), saga.route.clone(), saga.state.clone(), saga.started.clone(), steps.join(", ")]
    };
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(sagas.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 5] = std::array::from_fn(width);
    for [id, route, state, started, steps] in &rows {
        let [a, b, c, d, _] = widths;
        writeln!(out, "{id:a$}  {route:b$}  {state:c$}  {started:d$}  {steps}")?;
    }
    Ok(())
}

/// Returns a step in words: its name, its state, and the status where it has failed.
fn shown(saga: &SagaStatus, step: &SagaStepStatus) -> String {
    match &saga.failed {
        Some(failed) if failed.step == step.name => {
            let status = failed.status.map_or(String::new(), |status| format!(" {status}"));
            format!("{} failed ({}{status}), {}", step.name, failed.cause, step.state)
        }
        _ if step.state == "untouched" => format!("{} -", step.name),
        _ => format!("{} {}", step.name, step.state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::SagaFailure;

    fn step(name: &str, state: &str) -> SagaStepStatus {
        SagaStepStatus { name: name.to_owned(), state: state.to_owned(), status: None, since: None }
    }

    #[test]
    fn sagas_are_a_table() {
        let saga = SagaStatus {
            id: "5f".to_owned(),
            route: "checkout".to_owned(),
            state: "stuck".to_owned(),
            started: "2026-11-27T12:00:00Z".to_owned(),
            ended: None,
            failed: Some(SagaFailure { step: "charge".to_owned(), status: Some(402), cause: "refused".to_owned() }),
            steps: vec![step("reserve", "done"), step("charge", "untouched"), step("ship", "untouched")],
        };
        let text = |sagas: &[SagaStatus]| {
            let mut out = Vec::new();
            print(&mut out, sagas).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = "\
ID  ROUTE     STATE  STARTED               STEPS
5f  checkout  stuck  2026-11-27T12:00:00Z  reserve done, charge failed (refused 402), untouched, ship -
";
        assert_eq!(text(&[saga]), expected);
        assert_eq!(text(&[]), "no sagas\n");
    }
}
