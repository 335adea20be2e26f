//! The dashboard: static files in the binary, at `/` and below `/dashboard/`. They hold no data, so that they need no
//! token; everything that they show comes from the API.

use super::body::Body;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// No request leaves the listener, no script stands in the page, and no other page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// A file of the dashboard.
struct Asset {
    path: &'static str,
    media_type: &'static str,
    content: &'static str,
}

macro_rules! assets {
    ($($path:literal, $media_type:literal, $file:literal;)*) => {
        const ASSETS: &[Asset] =
            &[$(Asset { path: $path, media_type: $media_type, content: include_str!($file) },)*];
    };
}

assets! {
    "/", "text/html; charset=utf-8", "index.html";
    "/dashboard/style.css", "text/css; charset=utf-8", "style.css";
    "/dashboard/icon.svg", "image/svg+xml", "icon.svg";
    "/dashboard/main.js", "text/javascript; charset=utf-8", "main.js";
    "/dashboard/api.js", "text/javascript; charset=utf-8", "api.js";
    "/dashboard/dom.js", "text/javascript; charset=utf-8", "dom.js";
    "/dashboard/format.js", "text/javascript; charset=utf-8", "format.js";
    "/dashboard/state.js", "text/javascript; charset=utf-8", "state.js";
    "/dashboard/charts.js", "text/javascript; charset=utf-8", "charts.js";
    "/dashboard/table.js", "text/javascript; charset=utf-8", "table.js";
    "/dashboard/actions.js", "text/javascript; charset=utf-8", "actions.js";
    "/dashboard/overview.js", "text/javascript; charset=utf-8", "overview.js";
    "/dashboard/pool.js", "text/javascript; charset=utf-8", "pool.js";
    "/dashboard/ring.js", "text/javascript; charset=utf-8", "ring.js";
    "/dashboard/whatif.js", "text/javascript; charset=utf-8", "whatif.js";
    "/dashboard/traffic.js", "text/javascript; charset=utf-8", "traffic.js";
    "/dashboard/live.js", "text/javascript; charset=utf-8", "live.js";
    "/dashboard/cache.js", "text/javascript; charset=utf-8", "cache.js";
    "/dashboard/once.js", "text/javascript; charset=utf-8", "once.js";
    "/dashboard/config.js", "text/javascript; charset=utf-8", "config.js";
    "/dashboard/fleet.js", "text/javascript; charset=utf-8", "fleet.js";
    "/dashboard/events.js", "text/javascript; charset=utf-8", "events.js";
}

/// The tag of all files: they are of one version.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    ASSETS.iter().for_each(|asset| digest.update(asset.content));
    let digest = digest.finalize();
    format!("\"{}\"", digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
});

/// Returns whether a path is one of the dashboard's.
pub(super) fn has(path: &str) -> bool {
    ASSETS.iter().any(|asset| asset.path == path)
}

/// Returns a file; 304 where the client has it already.
pub(super) fn respond(path: &str, fields: &HeaderMap) -> Option<Response<Body>> {
    let asset = ASSETS.iter().find(|asset| asset.path == path)?;
    let is_known = fields.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == TAG.as_bytes());
    let content = if is_known { "" } else { asset.content };
    let mut response = Response::new(Body::from(Bytes::from_static(content.as_bytes())));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let fields = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, asset.media_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&TAG) {
        fields.insert(ETAG, tag);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy allows no script or style in the page, and the page has none.
    #[test]
    fn pages_keep_to_their_policy() {
        for asset in ASSETS {
            let text = asset.content;
            assert!(!text.contains("innerHTML") && !text.contains("insertAdjacentHTML"), "{}", asset.path);
            assert!(!text.contains("https://") && !text.contains("eval("), "{}", asset.path);
            let urls = text.matches("http://").count() - text.matches("http://www.w3.org/").count();
            assert_eq!(urls, text.matches("http://example.com").count(), "{}", asset.path);
            for imported in text.lines().filter_map(|line| line.split_once(" from \"./")) {
                let file = imported.1.split('"').next().unwrap_or_default();
                assert!(has(&format!("/dashboard/{file}")), "{} imports {file}", asset.path);
            }
        }
        let page = ASSETS[0].content;
        assert!(!page.contains("<script>") && !page.contains("<style") && !page.contains(" style="), "inline");
        for linked in page.split("\"/dashboard/").skip(1) {
            let file = linked.split('"').next().unwrap_or_default();
            assert!(has(&format!("/dashboard/{file}")), "{file}");
        }
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
        let files = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        let missing: Vec<String> = files
            .filter(|file| file != "mod.rs" && file != "index.html" && !has(&format!("/dashboard/{file}")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
