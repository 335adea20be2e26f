//! The admin API, asked from the command line.

use serde_json::Value as Json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

/// A reload of a large configuration may take its time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Which proxy is meant.
#[derive(clap::Args)]
pub(super) struct Target {
    /// The proxy's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9900")]
    admin: String,
    /// A file with the token of the admin listener
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Target {
    pub(super) fn get(&self, path: &str) -> Result<Json, String> {
        self.call("GET", path, "")
    }

    pub(super) fn post(&self, path: &str) -> Result<Json, String> {
        self.call("POST", path, "")
    }

    pub(super) fn post_json(&self, path: &str, body: &Json) -> Result<Json, String> {
        self.call("POST", path, &body.to_string())
    }

    /// One call; an answer that is no success becomes its problem's detail.
    fn call(&self, method: &str, path: &str, body: &str) -> Result<Json, String> {
        let address = self
            .admin
            .strip_prefix("http://")
            .ok_or_else(|| format!("expected --admin http://HOST:PORT, found `{}`", self.admin))?;
        let address = address.trim_end_matches('/');
        let token = match &self.token_file {
            None => String::new(),
            Some(file) => {
                let token = std::fs::read_to_string(file)
                    .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
                format!("authorization: Bearer {}\r\n", token.trim())
            }
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{token}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(address, &request).map_err(|error| {
            format!("no proxy answers at {}: {error}; is it running, and is --admin its `admin.address`?", self.admin)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
        let json: Json = serde_json::from_str(body).map_err(|_| "the answer is not JSON".to_owned())?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(json),
            _ => Err(json["detail"].as_str().unwrap_or("the proxy refused").to_owned()),
        }
    }
}

fn exchange(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Returns a text of an answer; empty where it is none.
pub(super) fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}
