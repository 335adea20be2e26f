"""What the benches share: processes that end with the bench, ports, CPU time, and small clients.

A bench imports it after putting this folder on its path:

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import harness
"""

import contextlib
import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 3
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
# The Debian package that brings a program, where it has another name.
PACKAGES = {
    "callgrind_control": "valgrind", "h2load": "nghttp2-client", "taskset": "util-linux", "varnishd": "varnish",
}


class BenchError(Exception):
    """The run cannot go on; the message is for the user."""


@dataclass
class Server:
    """A process that a bench has started, and where its output goes."""

    name: str
    process: subprocess.Popen
    log: Path

    def output(self):
        return self.log.read_text(errors="replace")[-4000:]


def fill(template, **values):
    """Replaces each @WORD@ of a template; nginx's configuration uses both $ and braces."""
    for word, value in values.items():
        template = template.replace(f"@{word}@", str(value))
    return template


def die_with_parent():
    """Has a child get SIGTERM even where the bench is killed outright."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def on_cores(cores, command):
    """The command, kept to these cores: `0` or `0,1`; to none in particular where they are None."""
    return list(command) if cores is None else ["taskset", "-c", cores, *command]


# What every nginx of a bench begins with, as an origin, a node or a peer; the templates of servers come into it.
NGINX = """\
daemon off; worker_processes 1; worker_rlimit_nofile 40000; pid nginx.pid; error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off; default_type text/plain;
    keepalive_requests 1000000000; keepalive_timeout 3600s;
    client_body_temp_path client_body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
@SERVERS@
}
"""


def nginx_command(config):
    return ["nginx", "-p", f"{config.parent}/", "-c", config, "-e", "stderr"]


def start(stack, name, command, folder, env=None):
    """Starts a process with its output in a file of the folder; the stack ends it."""
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent, env=env)
    stack.callback(stop, process)
    return Server(name, process, log)


def stop(process):
    """Ends a process and its group, which is its own (start_new_session)."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
            return


def exit_on_signal(signum, _frame):
    # A second Ctrl-C must not interrupt the cleanup that the first one began.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


def end_well():
    """Has signals end the bench with its processes stopped; finds programs in the sbin folders."""
    for signum in SIGNALS:
        signal.signal(signum, exit_on_signal)
    # Users other than root often lack the sbin folders in their PATH.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin"


def require(*programs):
    """Exits with 3 where a program is missing, naming the package that brings it."""
    missing = [program for program in programs if shutil.which(str(program)) is None]
    for program in missing:
        package = PACKAGES.get(program, program)
        hint = "cargo build --release makes it" if "/" in str(program) else f"the Debian package {package} brings it"
        print(f"{program} is missing; {hint}", file=sys.stderr)
    if missing:
        sys.exit(3)


def binary(text):
    """The path of a Ringway, for argparse."""
    return Path(text).absolute()


DEFAULT_BINARY = ROOT / "target/release/ringway"


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def stat_fields(pid):
    """Fields of /proc/PID/stat from the state on (the name may hold spaces)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid):
    """The process and all its descendants, as sorted pids."""
    children = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            children.setdefault(int(stat_fields(entry.name)[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return sorted(found)


def cpu_ns(pid):
    """CPU time of all threads of a process, those that have ended included."""
    try:
        # The clock that clock_getcpuclockid(3) names: nanoseconds, not 10 ms ticks.
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        user, system = stat_fields(pid)[11:13]
        return (int(user) + int(system)) * 10**9 // os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pss_mib(pids):
    """Memory of processes together: what they share counts once."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def free_ports(names):
    """A free port of loopback for each name."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def wait_for(holds, problem, server=None, seconds=15):
    """Waits until `holds()` is true; a BenchError with the problem where it does not become so in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            if holds():
                return
        if server is not None and server.process.poll() is not None:
            raise BenchError(f"{server.name} exited with {server.process.returncode}\n{server.output()}")
        time.sleep(0.02)
    raise BenchError(problem + (f"\n{server.output()}" if server else ""))


def fetch(port, method, path, body=None, fields=None, timeout=5):
    """One request on a connection of its own: its status, its fields and its body."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(client):
        client.request(method, path, body, fields or {})
        response = client.getresponse()
        return response.status, response.headers, response.read()


def certificate(folder):
    """A P-256 certificate for localhost, as most sites have one: its chain, its key, and both in one file."""
    chain, key, both = folder / "edge.pem", folder / "edge.key", folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-keyout", key, "-out", chain, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True)
    key.chmod(0o600)
    both.write_text(chain.read_text() + key.read_text())
    return chain, key, both
