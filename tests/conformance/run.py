#!/usr/bin/env python3
"""Run the public HTTP caching conformance suite against Ringway.

    cargo build --release
    python3 tests/conformance/run.py            # all tests, about 30 s
    python3 tests/conformance/run.py --checks   # also those that only ask how a cache behaves

The suite is http-cache-tests of the npm registry, fetched with npm into a folder of
its own; its origin server and its client run under Node.js. The proxy between them
caches with `store_set_cookie: true`, as the suite expects of a cache. Some tests of
the published version contradict RFC 9111, which was written after them, or ask for
what no proxy can give; they are listed below, with the reason, and told apart.

Exit codes: 0 every test passed that should, 1 another one failed, 3 Node.js is missing.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "http-cache-tests@0.4.5"
CONFIG = """\
listeners: [{{ name: http, address: "127.0.0.1:{proxy}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
access_log: {{ format: "off" }}
pools: {{ app: {{ nodes: [{{ id: origin, address: "127.0.0.1:{origin}" }}] }} }}
routes:
  - {{ name: config, path_prefix: /config, pool: app }}
  - {{ name: state, path_prefix: /state, pool: app }}
  - {{ name: site, path_prefix: /, pool: app, cache: {{ store_set_cookie: true }} }}
"""
AGE = "RFC 9111 5.1: the first member counts, and what is no number is ignored"
GONE = "the origin has hung up; the test takes the proxy's 502 for a stored answer"
PARTIAL = "parts are not stored"
EXPECTED = {
    **{f"age-parse-{name}": AGE for name in (
        "nonnumeric", "negative", "float", "prefix-twoline", "dup-0", "dup-0-twoline", "dup-old",
        "parameter", "numeric-parameter")},
    **{f"stale-close-{name}": GONE for name in (
        "must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=2")},
    **{f"partial-store-partial-{name}": PARTIAL for name in (
        "reuse-partial", "reuse-partial-byterange", "reuse-partial-absent", "reuse-partial-suffix",
        "complete")},
    "conditional-lm-fresh-no-lm": "RFC 9111 4.3.2: without Last-Modified the Date counts, and it is newer",
    "headers-store-Transfer-Encoding": "an unknown transfer coding of a node is answered 502",
    "304-etag-update-response-ETag": "RFC 9111 4.3.4: a 304 with another tag confirms nothing",
}
LIST = """
import tests from './tests/index.mjs'
for (const suite of tests) for (const test of suite.tests)
  if (!test.browser_only) console.log(test.kind || 'required', test.id)
"""


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/ringway")
    parser.add_argument("--checks", action="store_true", help="list failed checks, too")
    args = parser.parse_args()
    if shutil.which("npm") is None:
        print("missing: npm (Node.js)", file=sys.stderr)
        sys.exit(3)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, PACKAGE], check=True)
        suite = folder / "node_modules/http-cache-tests"
        ports = {name: free_port() for name in ("proxy", "admin", "origin")}
        (folder / "ringway.yaml").write_text(CONFIG.format(**ports))
        environment = os.environ | {
            "npm_config_protocol": "http", "npm_config_port": str(ports["origin"]),
            "npm_config_pidfile": str(folder / "pid"), "npm_package_config_id": "", "npm_config_id": "",
            "npm_config_base": f"http://127.0.0.1:{ports['proxy']}"}
        for command in (["node", "server/server.mjs"],
                        [args.binary.absolute(), "run", "--config", folder / "ringway.yaml"]):
            process = subprocess.Popen(command, cwd=suite, env=environment, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for(ports["origin"])
        wait_for(ports["proxy"])
        node = ["node", "--no-warnings"]
        told = subprocess.run([*node, "cli.mjs"], cwd=suite, env=environment, check=True,
                              capture_output=True, text=True, timeout=300)
        listed = subprocess.run([*node, "--input-type=module", "-e", LIST], cwd=suite, check=True,
                                capture_output=True, text=True)
    results = json.loads(told.stdout)
    counts, bad = {}, False
    for line in listed.stdout.splitlines():
        kind, name = line.split(" ", 1)
        passed = results.get(name) is True
        count = counts.setdefault(kind, [0, 0])
        count[0] += passed
        count[1] += 1
        if passed or (kind == "check" and not args.checks):
            continue
        reason = EXPECTED.get(name)
        bad |= reason is None and kind != "check"
        print(f"{kind:9} {name}: {reason or results.get(name)}")
    print(", ".join(f"{kind} {passed} of {all_}" for kind, (passed, all_) in sorted(counts.items())))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
