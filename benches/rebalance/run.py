#!/usr/bin/env python3
"""Change a pool in every way while wrk loads it, and see whether anybody notices.

README.md next to this file says what is measured and how to read it.
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True
import picture  # noqa: E402
from cluster import GUEST, STAYERS, BenchError, Cluster, harness, wait, wrk_result  # noqa: E402

RELOADS = 50
BOUND = 1.25


class Answers:
    """The lines that wrk has written: (seconds, status, key, node, cache)."""

    def __init__(self, file):
        self.lines = []
        for line in file.read_text().splitlines():
            fields = line.split(" ")
            if len(fields) == 5:  # the last one may be cut
                when, status, key, node, cache = fields
                self.lines.append((int(when) / 1000, int(status), key, node, cache))

    def between(self, begin, end):
        return [line for line in self.lines if begin <= line[0] < end]

    def last_nodes(self, begin, end):
        """The last node that answered for each key, payments apart."""
        return {key: node for _, status, key, node, _ in self.between(begin, end)
                if status == 200 and not key.startswith("/pay/")}


@dataclass
class Event:
    """One change: when it was, what the ring says of it, and which requests failed, by route."""
    name: str
    begin: float
    end: float
    settled: float
    fair: float
    share: float
    owners: tuple
    failed: dict


def changes(cluster, keys):
    """Every change in turn: a name, what carries it out, its fair share, and what `ringway ring` says of it before.

    A change gives when it is over for sure, in seconds from its end.
    """
    weights = cluster.weights
    total = sum(weights.values())
    victim, drained, removed, heavier = STAYERS[3], STAYERS[1], STAYERS[2], STAYERS[0]

    def edit(**new):
        for node, weight in new.items():
            node = node.replace("_", "-")
            if weight is None:
                del weights[node]
            else:
                weights[node] = weight
        cluster.reload()
        return 0

    def state(node, word):
        cluster.set_state(node, word)
        return 0

    def kill():
        cluster.kill_node(victim)
        wait(lambda: not cluster.pool()[victim]["healthy"], f"{victim} is dead and nobody noticed")
        return 0.2

    def revive():
        cluster.start_node(victim)
        wait(lambda: cluster.pool()[victim]["healthy"], f"{victim} is back and nobody noticed")
        return 1.5  # a request tries it first

    def reloads():
        for number in range(RELOADS):
            cluster.reload(f"reload {number}")
        return 0

    def foretell(without=(), with_=()):
        return cluster.foretell(keys, without, with_)

    yield (f"add {GUEST}", lambda: edit(node_6=1), 1 / (total + 1), lambda: foretell(with_=[GUEST]), False)
    yield (f"{heavier} twice as heavy", lambda: edit(node_1=2), 5 / 7 / 6, lambda: foretell(with_=[f"{heavier}=2"]), False)
    yield (f"{heavier} as before", lambda: edit(node_1=1), 5 / 7 / 6, lambda: foretell(with_=[f"{heavier}=1"]), False)
    yield (f"drain {drained}", lambda: state(drained, "drain"), 1 / 6, lambda: foretell(without=[drained]), False)
    yield (f"{drained} up", lambda: state(drained, "up"), 1 / 6, lambda: foretell(without=[drained]), True)
    yield (f"remove {removed}", lambda: edit(node_3=None), 1 / 6, lambda: foretell(without=[removed]), False)
    yield (f"add {removed}", lambda: edit(node_3=1), 1 / 6, lambda: foretell(with_=[removed]), False)
    yield (f"SIGKILL {victim}", kill, 1 / 6, lambda: foretell(without=[victim]), False)
    yield (f"{victim} is back", revive, 1 / 6, lambda: foretell(without=[victim]), True)
    yield (f"{RELOADS} reloads", reloads, 0, foretell, False)


def owners_of(foretold, reverse):
    """The owner of each key before and after a change; a node's return is its departure read backwards."""
    before = foretold["owners"]
    after = foretold.get("change", {}).get("owners", before)
    return (after, before) if reverse else (before, after)


def play(cluster, args, mix, seed, base):
    """The quiet before, the changes, and the quiet after."""
    keys = base / "keys"
    keys.write_text("".join(f"/{number}\n" for number in range(args.keys)))
    seconds = math.ceil(args.gap) + 1
    warm = cluster.start_wrk("uniform", seconds, base / "warm", seed, connections=8)
    wrk_result(warm, seconds)

    def quiet(name, seed):
        return wrk_result(cluster.start_wrk(mix, args.quiet, base / name, seed), args.quiet)

    before = quiet("before", seed + 1)
    seconds = int(args.gap * 24 + RELOADS / 8 + 12)
    wrk = cluster.start_wrk(mix, seconds, base / "during", seed + 2)
    begun, events = time.time(), []
    for name, carry_out, fair, foretell, reverse in changes(cluster, keys):
        foretold = foretell()
        time.sleep(args.gap)
        failed, begin = cluster.failed(), time.time()
        settle = carry_out()
        end = time.time()
        time.sleep(settle)
        settled = time.time()
        time.sleep(args.gap)
        failed = {route: count - failed[route] for route, count in cluster.failed().items()}
        share = foretold.get("change", {}).get("moved", 0.0)
        owners = owners_of(foretold, reverse)
        events.append(Event(name, begin, end, settled, fair, share, owners, failed))
    over = time.time()
    if wrk.process.poll() is not None:
        raise BenchError("the changes outlasted the load; give a longer --gap")
    os.killpg(wrk.process.pid, signal.SIGINT)  # wrk then tells what it has
    during = wrk_result(wrk, 5)
    after = quiet("after", seed + 3)
    answers = Answers(base / "during")
    rows = [judge(answers, event, args.gap) for event in events]
    twice, payments = cluster.payments_run_twice()
    return {
        "mix": mix, "before": before, "during": during, "after": after, "rows": rows,
        "payments": payments, "payments_twice": twice,
        "failed": sum(1 for line in answers.lines if line[1] != 200),
        "retries": cluster.metric("ringway_upstream_retries_total"),
        "series": series(answers, begun, over),
        "events": [(event.name, event.begin - begun) for event in events],
    }


def is_payment(key):
    return key.startswith("/pay/")


def judge(answers, event, gap):
    """What clients saw of a change."""
    before = answers.last_nodes(event.begin - gap, event.begin)
    after = answers.last_nodes(event.settled, event.settled + gap)
    seen = before.keys() & after.keys()
    moved = {key for key in seen if before[key] != after[key]}
    old, new = event.owners
    said = {key for key in seen if old[key] != new[key]}
    # The node that all keys go to, or come from, is the one that has changed; the others are survivors.
    pairs = [{old[key], new[key]} for key in said]
    changed = set.intersection(*pairs) if pairs else set()
    return {
        "event": event.name,
        "seconds": event.end - event.begin,
        "failed_gets": event.failed["site"],
        "failed_payments": event.failed["payments"],
        "keys": len(seen),
        "moved": len(moved) / max(1, len(seen)),
        "ring": event.share,
        "fair": event.fair,
        "against_ring": sum(1 for key in seen if after[key] != new[key]),
        "between_survivors": sum(1 for key in moved if not {before[key], after[key]} & changed),
    }


def series(answers, begun, over, width=0.5):
    """Requests, failures, hits and strangers by half seconds."""
    homes, bins = {}, []
    count = int((over - begun) / width)
    for number in range(count):
        bins.append({"at": number * width, "requests": 0, "failed": 0, "hits": 0, "cacheable": 0, "strangers": 0})
    for when, status, key, node, cache in answers.lines:
        place = int((when - begun) / width)
        if not 0 <= place < count:
            continue
        bin_ = bins[place]
        bin_["requests"] += 1
        bin_["failed"] += status != 200
        if status == 200 and not is_payment(key):
            bin_["cacheable"] += 1
            bin_["hits"] += cache == "HIT"
            bin_["strangers"] += homes.get(key, node) != node
            homes[key] = node
    return bins


def balance(args, base, seed):
    """The load of each node under a Zipf mix that is more than its hottest node can take, without and with a bound."""
    results = {}
    for name, bound in (("without", None), ("with", BOUND)):
        with contextlib.ExitStack() as stack:
            cluster = Cluster(stack, args, base / f"balance-{name}", rate=args.rate, bound=bound)
            seconds = args.quiet + 2
            wrk = cluster.start_wrk("zipf", seconds, base / f"balance-{name}.log", seed, prefix="/work/",
                                    connections=args.crowd)
            sums, samples = dict.fromkeys(STAYERS, 0), 0
            time.sleep(1)
            end = time.monotonic() + seconds - 1.5
            while time.monotonic() < end:
                for node, known in cluster.pool().items():
                    sums[node] += known["in_flight"]
                samples += 1
                time.sleep(0.05)
            result = wrk_result(wrk, seconds)
            loads = {node: total / samples for node, total in sums.items()}
            served = dict.fromkeys(STAYERS, 0)
            for _, status, key, node, _ in Answers(base / f"balance-{name}.log").lines:
                if status == 200 and node in served:
                    served[node] += 1
            results[name] = {
                "in_flight": loads, "served": served, "wrk": result,
                "max_mean": ratio(loads.values()), "max_mean_served": ratio(served.values()),
                "spills": cluster.metric("ringway_ring_spills_total{pool=\"app\",reason=\"bounded_load\"}"),
            }
    return results


def ratio(values):
    values = list(values)
    return max(values) / (sum(values) / len(values))


def table(result):
    rows = result["rows"]
    lines = [f"{result['mix']} mix: {result['during']['requests']:,} requests while the pool changed, "
             f"{result['failed']} failed; {result['payments']:,} payments, {result['payments_twice']} ran twice",
             f"  {'change':26} {'took':>8} {'GETs':>6} {'POSTs':>6} {'keys moved':>11} {'ring said':>10} {'fair share':>11} "
             f"{'survivors':>10} {'against ring':>13}"]
    for row in rows:
        lines.append(f"  {row['event']:26} {row['seconds'] * 1000:>5.0f} ms {row['failed_gets']:>6.0f} {row['failed_payments']:>6.0f} {row['moved']:>11.2%} "
                     f"{row['ring']:>10.2%} {row['fair']:>11.2%} {row['between_survivors']:>10} {row['against_ring']:>13}")
    lines.append(f"  {'':10}{'p50':>8} {'p99':>9}")
    for name in ("before", "during", "after"):
        phase = result[name]
        lines.append(f"  {name:10}{phase['p50_ms']:>5.2f} ms {phase['p99_ms']:>6.2f} ms")
    return "\n".join(lines)


def balance_table(results):
    lines = [f"load of the nodes under Zipf, as requests in flight (bound {BOUND}):",
             f"  {'bounded load':14} {'max/mean':>9} {'of served':>10} {'spilled':>8}   in flight by node"]
    for name, found in results.items():
        loads = "  ".join(f"{load:5.1f}" for load in found["in_flight"].values())
        lines.append(f"  {name:14} {found['max_mean']:>9.2f} {found['max_mean_served']:>10.2f} "
                     f"{found['spills']:>8.0f}   {loads}")
    return "\n".join(lines)


def failures(results, balanced):
    """What did not hold."""
    for result in results:
        for row in result["rows"]:
            said = f"{result['mix']}: {row['event']}"
            is_kill = row["event"].startswith("SIGKILL")
            # Of a payment that a dying node had nobody knows whether it ran: it fails, and is not repeated.
            if row["failed_gets"] or (row["failed_payments"] and not is_kill):
                yield f"{said}: {row['failed_gets']:.0f} GETs and {row['failed_payments']:.0f} POSTs failed"
            if row["between_survivors"]:
                yield f"{said}: {row['between_survivors']} keys moved between nodes that stayed"
            if row["against_ring"]:
                yield f"{said}: {row['against_ring']} of {row['keys']} keys met another node than `ringway ring` said"
            # Of fewer keys, or where few are hot and most are rare, the share says little.
            is_sample = result["mix"] == "uniform" and row["keys"] >= 4000
            if is_sample and row["fair"] and abs(row["moved"] / row["fair"] - 1) > 0.1:
                yield f"{said}: {row['moved']:.2%} of the keys moved, not {row['fair']:.2%}"
        for name in ("before", "after"):
            phase = result[name]
            if phase["bad_statuses"] or phase["socket_errors"]:
                yield f"{result['mix']}, {name}: {phase['bad_statuses']} bad statuses, {phase['socket_errors']} socket errors"
        if result["payments_twice"]:
            yield f"{result['mix']}: {result['payments_twice']} payments ran twice"
        told = sum(row["failed_gets"] + row["failed_payments"] for row in result["rows"])
        if result["failed"] != told:
            yield f"{result['mix']}: clients saw {result['failed']} requests fail, the proxy counted {told:.0f}"
        if result["during"]["socket_errors"]:
            yield f"{result['mix']}: {result['during']['socket_errors']} socket errors"
    if balanced and balanced["with"]["max_mean"] > 1.3:
        yield f"max/mean load is {balanced['with']['max_mean']:.2f} with bounded load, more than 1.3"


def bench(args):
    results = []
    with tempfile.TemporaryDirectory(prefix="ringway-rebalance-") as folder:
        base = Path(folder)
        for number, mix in enumerate(args.mix):
            with contextlib.ExitStack() as stack:
                (base / mix).mkdir()
                cluster = Cluster(stack, args, base / mix / "cluster", rate=args.rate)
                results.append(play(cluster, args, mix, 10 * number + 1, base / mix))
        balanced = None if args.no_balance else balance(args, base, 99)
    return results, balanced


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ringway", type=lambda text: Path(text).absolute(), metavar="PATH",
        default=harness.DEFAULT_BINARY, help="its binary (default: %(default)s)")
    add("--mix", type=lambda text: text.split(","), default=["uniform", "zipf"], metavar="NAME[,NAME]",
        help="uniform, zipf or both (the default)")
    add("--keys", type=harness.positive, default=10000, metavar="N", help="default: %(default)s")
    add("--exponent", type=float, default=1.1, metavar="S", help="of the Zipf mix (default: %(default)s)")
    add("--gap", type=float, default=3, metavar="S", help="seconds before and after each change (default: %(default)s)")
    add("--quiet", type=harness.positive, default=8, metavar="S", help="seconds before and after all (default: %(default)s)")
    add("--connections", type=harness.positive, default=16, metavar="C", help="default: %(default)s")
    add("--crowd", type=harness.positive, default=64, metavar="C",
        help="connections where the load of nodes is compared (default: %(default)s)")
    add("--rate", type=harness.positive, default=300, metavar="R",
        help="requests a second that a node can take there (default: %(default)s)")
    add("--no-balance", action="store_true", help="leave out the comparison of loads")
    add("--smoke", action="store_true", help="one mix, short: proves that the script works")
    add("--picture", type=Path, metavar="FILE", help="draw what happened as SVG")
    add("--json", type=Path, metavar="FILE", help="also write everything to FILE")
    args = parser.parse_args()
    if args.smoke:
        args.mix, args.keys, args.gap, args.quiet = ["uniform"], 500, 0.8, 2
    return args


def main():
    args = parse_args()
    harness.end_well()
    harness.require("wrk", "nginx", str(args.ringway))
    try:
        results, balanced = bench(args)
    except BenchError as error:
        sys.exit(f"error: {error}")
    for result in results:
        print(table(result), end="\n\n")
    if balanced:
        print(balance_table(balanced))
    if args.picture:
        args.picture.write_text(picture.draw(results[-1], balanced, BOUND))
    if args.json:
        args.json.write_text(json.dumps({"results": results, "balance": balanced}, indent=1) + "\n")
    broken = list(failures(results, balanced))
    for line in broken:
        print(f"NOT HELD  {line}")
    if broken:
        sys.exit(1)
    print("all held")


if __name__ == "__main__":
    main()
