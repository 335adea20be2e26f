//! The commands' client of the admin API.

use super::Outcome;
use super::http_client::{Answer, ClientError, StreamEnd, StreamError, send, stream};
use crate::control::CommandResult;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::io::{self, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// The proxy that a command is for.
#[derive(clap::Args)]
pub(super) struct Target {
    /// The proxy's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9900")]
    admin: String,
    /// A file with the token of the admin listener
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A call of the admin API that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("expected --admin http://HOST:PORT, found `{0}`")]
    Url(String),
    #[error("cannot read {}: {cause}", .file.display())]
    Token { file: PathBuf, cause: io::Error },
    #[error("the content of {} is no token", .0.display())]
    BadToken(PathBuf),
    #[error("no proxy answers at {admin}: {cause}; is it running, and is --admin its `admin.address`?")]
    Unreachable { admin: String, cause: ClientError },
    #[error(
        "{url} answered something else than expected ({status}: {cause}); is --admin the admin listener of a proxy of this version?"
    )]
    Unknown { url: String, status: u16, cause: serde_json::Error },
    #[error("{url} wants a token: give a file that holds it by --token-file")]
    Unauthorized { url: String },
    /// The proxy has refused the request, with its own explanation.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Output(io::Error),
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
}

/// The members of a problem document that are read.
#[derive(Deserialize)]
struct Refusal {
    detail: String,
}

impl Target {
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, String::new())
    }

    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(Method::POST, path, String::new())
    }

    /// Sends a command, and prints the proxy's answer.
    pub(super) fn command(&self, path: &str) -> Outcome {
        report(&self.post(path)?)
    }

    /// The same, with a body.
    pub(super) fn command_with(&self, path: &str, body: &Json) -> Outcome {
        report(&self.call(Method::POST, path, body.to_string())?)
    }

    /// Makes one call; a response that is no success becomes its problem's detail.
    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: String) -> Result<T, ApiError> {
        let (url, request) = self.request(method, path, body)?;
        let answer = runtime()?.block_on(send(request)).map_err(|cause| self.unreachable(cause))?;
        let unknown = |cause| ApiError::Unknown { url: url.clone(), status: answer.status, cause };
        match answer.status {
            200 => serde_json::from_str(&answer.body).map_err(unknown),
            _ => Err(refused(url.clone(), &answer)),
        }
    }

    /// Reads a stream of lines until the function returns false, or the proxy ends it.
    pub(super) fn stream(
        &self,
        path: &str,
        line: &mut dyn FnMut(&str) -> io::Result<bool>,
    ) -> Result<StreamEnd, ApiError> {
        let (url, request) = self.request(Method::GET, path, String::new())?;
        runtime()?.block_on(stream(request, line)).map_err(|error| match error {
            StreamError::Refused(answer) => refused(url, &answer),
            StreamError::Failed(cause) => self.unreachable(cause),
            StreamError::Output(cause) => ApiError::Output(cause),
        })
    }

    /// Returns the URL of a call, and its request with the token.
    fn request(&self, method: Method, path: &str, body: String) -> Result<(String, Request<Bytes>), ApiError> {
        let url = format!("{}{path}", self.admin.trim_end_matches('/'));
        let mut request = Request::builder().method(method).uri(&url);
        if let Some(file) = &self.token_file {
            let token = std::fs::read_to_string(file);
            let token = token.map_err(|cause| ApiError::Token { file: file.clone(), cause })?;
            let value = http::HeaderValue::from_str(&format!("Bearer {}", token.trim()));
            request = request.header(AUTHORIZATION, value.map_err(|_| ApiError::BadToken(file.clone()))?);
        }
        let request = request.body(Bytes::from(body)).map_err(|_| ApiError::Url(self.admin.clone()))?;
        Ok((url, request))
    }

    fn unreachable(&self, cause: ClientError) -> ApiError {
        match cause {
            ClientError::Url(_) => ApiError::Url(self.admin.clone()),
            cause => ApiError::Unreachable { admin: self.admin.clone(), cause },
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ApiError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ApiError::Runtime)
}

/// Returns the error of a response that is no success.
fn refused(url: String, answer: &Answer) -> ApiError {
    match (answer.status, serde_json::from_str::<Refusal>(&answer.body)) {
        (401, _) => ApiError::Unauthorized { url },
        (_, Ok(refusal)) => ApiError::Refused(refusal.detail),
        (status, Err(cause)) => ApiError::Unknown { url, status, cause },
    }
}

fn report(result: &CommandResult) -> Outcome {
    writeln!(stdout(), "{}", result.detail.as_deref().unwrap_or_default())?;
    // A purge or a state that is not in force everywhere: the answer names the proxies.
    let is_everywhere = result.heard_by.as_ref().is_none_or(|heard_by| heard_by.complete)
        && result.applied_by.as_ref().is_none_or(|applied_by| applied_by.complete);
    let is_everywhere = is_everywhere && result.unmarked != Some(true);
    Ok(if is_everywhere { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
