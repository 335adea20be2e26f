//! Cases that single files of `tests/config` cannot express; those of errors and warnings are there.

use super::*;

pub(super) const SMALL: &str = "
listeners:
  - { name: http, address: 127.0.0.1:8080 }
pools:
  app:
    nodes:
      - { id: app-1, address: 127.0.0.1:9001 }
routes:
  - { name: site, path_prefix: /, pool: app, hash_on: [uri] }
";

pub(super) fn parse(text: &str) -> Result<(Config, Report), Report> {
    let environment = |name: &str| (name == "EDGE").then(|| "blue".to_owned());
    Config::parse(Path::new("ringway.yaml"), text, &environment)
}

fn errors(text: &str) -> String {
    parse(text).expect_err("this should be refused").to_string()
}

#[test]
fn a_small_file_has_all_defaults() {
    let (config, report) = parse(SMALL).unwrap();
    assert_eq!(report.to_string(), "");
    let settings = config.settings;
    assert_eq!(settings.admin.address.to_string(), "127.0.0.1:9900");
    assert_eq!(settings.limits.header_bytes.0, 65536);
    assert_eq!(settings.limits.keep_alive_timeout.as_secs(), 75);
    let pool = settings.pools.get("app").unwrap();
    assert_eq!((pool.ring.virtual_nodes, pool.ring.seed.0.as_str()), (256, "ringway"));
    assert_eq!(pool.timeouts.tunnel.as_secs(), 3600);
}

#[test]
fn a_carriage_return_alone_ends_a_line_too() {
    let report = errors(&SMALL.replace('\n', "\r").replace("name: site", "nam: site"));
    assert!(report.contains("ringway.yaml:9:7: unknown key `nam`"), "{report}");
    assert!(report.contains("\n  9 |   - { nam: site, path_prefix: /,"), "{report}");
}

#[test]
fn a_syntax_error_stands_alone() {
    let report = parse("listeners: [\nfoo: {").unwrap_err();
    assert_eq!(report.errors(), 1);
    assert!(report.to_string().contains("not valid YAML"), "{report}");
}

#[test]
fn the_environment_fills_values_and_says_what_it_lacks() {
    let route = "  - { name: r, path: /, pool: app, request_headers: { set: { x-edge: \"${EDGE}-1\", x-raw: \"$${EDGE}\" } } }\n";
    let (config, _) = parse(&format!("{SMALL}{route}")).unwrap();
    let set = &config.settings.routes[1].request_headers.set;
    assert_eq!(set.get("x-edge").unwrap(), "blue-1");
    assert_eq!(set.get("x-raw").unwrap(), "${EDGE}");
    let report = errors(&SMALL.replace("app-1", "\"${NOBODY}\""));
    assert!(report.contains("the environment variable `NOBODY` is not set"), "{report}");
}

#[test]
fn an_alias_bomb_is_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(", "));
    }
    let started = std::time::Instant::now();
    assert!(errors(&bomb).contains("aliases unfold to more than"));
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn a_huge_file_is_refused_without_reading_it_whole() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(100_000_000).unwrap();
    let report = Config::load(file.path()).unwrap_err();
    assert!(report.to_string().contains("larger than 16 MiB"), "{report}");
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("listeners: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(parse(&text).unwrap_err().errors(), 1);
}

#[test]
fn anchors_repeat_a_block() {
    let text = SMALL.replace("pools:\n", "limits: &l { connections: 7 }\npools:\n");
    assert_eq!(parse(&text).unwrap().0.settings.limits.connections, 7);
}

#[test]
fn an_old_name_of_a_key_is_taken_with_a_warning() {
    for (old, new, value) in [("oddities", "http2_glitches", "7"), ("held_body", "request_buffer", "7KiB")] {
        let (config, report) = parse(&format!("limits:\n  {old}: {value}{SMALL}")).unwrap();
        let limits = &config.settings.limits;
        assert!(limits.http2_glitches == 7 || limits.request_buffer.0 == 7 << 10, "{limits:?}");
        let expected = format!("ringway.yaml:2:3: warning: `{old}` is called `{new}` now");
        assert!(report.to_string().contains(&expected), "{report}");
        // Both keys at once contradict each other.
        let both = errors(&format!("limits:\n  {old}: {value}\n  {new}: {value}{SMALL}"));
        assert!(both.contains(&format!("ringway.yaml:2:3: `{old}` is the old name of `{new}`")), "{both}");
    }
    // No error proposes a former name.
    let misspelt = errors(&format!("limits:\n  odditie: 7{SMALL}"));
    assert!(misspelt.contains("unknown key `odditie`") && !misspelt.contains("oddities"), "{misspelt}");
}

/// The schema and the effective configuration come from the same table as the reader.
#[test]
fn the_schema_knows_every_key_and_default() {
    let schema = schema();
    assert_eq!(schema["properties"]["limits"]["properties"]["header_timeout"]["default"], "10s");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["listeners", "routes"]));
    let shown = effective(&parse(SMALL).unwrap().0);
    assert_eq!(shown["limits"]["header_bytes"], "64KiB");
    assert_eq!(shown["pools"]["app"]["nodes"][0]["weight"], 1);
}

#[test]
fn a_cache_has_all_defaults_and_says_what_makes_no_sense() {
    let with = |cache: &str| SMALL.replace("hash_on: [uri] }", &format!("hash_on: [uri], cache: {{ {cache} }} }}"));
    let (config, report) = parse(&with("")).unwrap();
    assert_eq!(report.to_string(), "");
    assert_eq!((config.settings.cache.memory.0, config.settings.cache.max_object.0), (512 << 20, 64 << 20));
    let cache = config.settings.routes[0].cache.as_ref().unwrap();
    assert_eq!((cache.default_ttl.as_secs(), cache.stale_if_error, cache.max_object.0), (0, None, 8 << 20));
    assert_eq!((cache.lock_timeout.as_secs(), cache.client_directives), (5, ClientDirectives::Ignore));
    for (cache, expected) in [
        ("key: { ignore_query: [a], only_query: [b] }", "expected `ignore_query` or `only_query`, found both"),
        ("key: { ignore_query: [\"a*b\"] }", "expected a parameter's name, or its beginning and `*`, found `a*b`"),
        ("client_directives: honor", "did you mean `honour`?"),
        ("max_object: 1", "expected a size"),
    ] {
        let report = errors(&with(cache));
        assert!(report.contains(expected), "missing: {expected}\nin:\n{report}");
    }
    let fixed = "  - { name: fixed, path: /x, respond: { body: x }, cache: {} }\n";
    assert!(errors(&format!("{SMALL}{fixed}")).contains("`cache` needs a `pool`"));
    let small = format!("cache: {{ max_object: 1MiB }}\n{}", with(""));
    assert!(parse(&small).unwrap().1.to_string().contains("stores bodies up to 1MiB"));
}

#[test]
fn a_method_is_written_as_clients_send_it() {
    for (route, found) in [
        ("methods: [post]", "expected a method as clients send it, `POST`, found `post`"),
        ("idempotency: { methods: [Patch] }", "expected a method as clients send it, `PATCH`, found `Patch`"),
        ("methods: [\"p t\"]", "expected a method like `GET`, found `p t`"),
    ] {
        let report = errors(&SMALL.replace("hash_on: [uri] }", &format!("hash_on: [uri], {route} }}")));
        assert!(report.contains(found), "{report}");
    }
    assert!(parse(&SMALL.replace("hash_on: [uri] }", "methods: [POST, PURGE, purge] }")).is_ok());
}

#[test]
fn settings_of_the_cache_that_need_a_second_thought_are_told() {
    let with = |cache: &str| SMALL.replace("hash_on: [uri] }", &format!("hash_on: [uri], cache: {{ {cache} }} }}"));
    let (config, report) = parse(&with("override: { ttl: 5m, ignore: [private, no-cache] }")).unwrap();
    assert_eq!(report.warnings(), 1, "{report}");
    let warning = report.to_string();
    for expected in ["ringway.yaml:9:13: warning: `cache.override`", "how long they are fresh, `private`, `no-cache`"] {
        assert!(warning.contains(expected), "{expected}: {warning}");
    }
    let shown = effective(&config).to_string();
    assert!(shown.contains(r#""override":{"ttl":"5m","ignore":["private","no-cache"]}"#), "{shown}");
    assert_eq!(parse(&with("override: {}")).unwrap().1.to_string(), "");
    assert!(errors(&with("override: { ignore: [privat] }")).contains("did you mean `private`?"));
    assert!(errors(&with("overide: {}")).contains("did you mean `override`?"));
    assert!(errors(&with("bypass_cookies: [\"a*b\"]")).contains("expected a cookie's name, or its beginning and `*`"));
}

#[test]
fn the_field_of_a_key_must_be_its_own() {
    let with = |settings: &str| SMALL.replace("hash_on: [uri] }", &format!("idempotency: {{ {settings} }} }}"));
    assert!(parse(&with("key_header: x-request-key")).is_ok());
    for field in ["cookie", "authorization", "host", "connection", "x-forwarded-for", "content-type"] {
        let report = errors(&with(&format!("key_header: {field}")));
        assert!(
            report
                .contains(&format!("expected a field of its own in `key_header` of the route `site`, found `{field}`"))
        );
    }
    let removed =
        with("key_header: x-key").replace("path_prefix: /,", "path_prefix: /, request_headers: { remove: [x-key] },");
    assert!(errors(&removed).contains("the node must get the `x-key` of its client"));
    assert!(errors(&with("key_header: x-key, scope: [header:x-key]")).contains("it does not tell callers apart"));
    assert!(errors(&with("key_header: pay_key")).contains("has an underscore"));
    let allowed = format!("limits: {{ underscores_in_headers: allow }}\n{}", with("key_header: pay_key"));
    assert!(parse(&allowed).is_ok());
    assert!(errors(&with("methods: [QUERY]")).contains("expected methods that change something"));
}

#[test]
fn what_comes_from_the_environment_is_not_shown() {
    // `PATH` is set wherever tests run.
    let secret = std::env::var("PATH").unwrap();
    let text = SMALL.replace(
        "hash_on: [uri] }",
        "hash_on: [uri], request_headers: { set: { x-secret: \"a ${PATH} b\", x-plain: \"$${PATH}\" } } }",
    );
    let environment = |name: &str| std::env::var(name).ok();
    let (config, _) = Config::parse(Path::new("ringway.yaml"), &text, &environment).unwrap();
    let rules = &config.settings.routes[0].request_headers.set.entries;
    assert!(rules.iter().any(|(_, value)| value.as_ref().unwrap().to_str().unwrap().contains(&secret)));
    let shown = effective(&config).to_string();
    assert!(!shown.contains(&secret) && shown.contains("a ${PATH} b"), "{shown}");
}

#[test]
fn credentials_of_a_saga_are_not_shown() {
    let request =
        "{ pool: app, path: /a, headers: { authorization: \"Bearer ${env.EDGE}\", x-api-key: abc, x-plain: web } }";
    let text = format!(
        "{SMALL}  - name: s\n    path: /s\n    methods: [POST]\n    idempotency: {{ required: true }}\n    saga: {{ steps: [{{ name: only, request: {request}, compensate: none }}] }}\n"
    );
    let environment = |name: &str| (name == "EDGE").then(|| "blue".to_owned());
    let shown = Config::settings_of(Path::new("ringway.yaml"), &text, &environment).show();
    let step = &shown["routes"][1]["saga"]["steps"][0];
    let expected = serde_json::json!({
        "authorization": "Bearer ${env.EDGE}",
        "x-api-key": "(hidden)",
        "x-plain": "web",
    });
    assert_eq!(step["request"]["headers"], expected);
    assert_eq!((&step["compensate"], &step["request"]["method"]), (&"none".into(), &"POST".into()));
    assert!(!shown.to_string().contains("blue") && !shown.to_string().contains("abc"), "{shown}");
}
