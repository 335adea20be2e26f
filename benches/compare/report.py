"""A comparison as Markdown and as a picture."""

import statistics
from html import escape

from peers import ABILITIES, OWN, PEERS

NAMES = {"ringway": "Ringway", "ringway-2": "Ringway again", "bare": "bare, hyper's client", "bare-own": "bare, own upstream",
         "nginx": "nginx", "haproxy": "HAProxy", "varnish": "Varnish", "envoy": "Envoy"}
COLOURS = {"ringway": "#0b6e4f", "ringway-2": "#6fb39b", "bare": "#b8b8b8", "bare-own": "#8c8c8c", "nginx": "#7a5195",
           "haproxy": "#2f6fb5", "varnish": "#ef8a3a", "envoy": "#c2405c"}
INK, PAPER = "#222222", "#ffffff"


def spread(values):
    """The median and the extremes."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def ratio(own, other):
    """Of two lists with a measurement a round: the median of the rounds' ratios, and its extremes."""
    ratios = [one / two for one, two in zip(own, other)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def best(found, names):
    """The one of these proxies that costs least."""
    known = [name for name in names if name in found]
    return min(known, key=lambda name: statistics.median(found[name]), default=None)


def markdown(result, titles, args):
    """The tables: CPU time, ratios, latency, memory."""
    proxies = [name for name in ABILITIES if any(name in found for found in result["cpu_us"].values())]
    lines = [f"CPU time of one request in microseconds, user and system: medians of {args.rounds} rounds of {args.seconds} s "
             f"(and the extremes), {args.connections} connections, one core for the proxy.", "",
             row(["scenario", *(NAMES[name] for name in proxies)]), row(["---"] * (len(proxies) + 1))]
    for name, found in result["cpu_us"].items():
        lines.append(row([titles[name], *(spread(found[each]) if each in found else "" for each in proxies)]))
    lines += ["", "Ringway's cost as a share of others', round by round (below 1, Ringway costs less). The null control is a "
              "second copy of Ringway: what it differs from 1 is noise.", "",
              row(["scenario", "of the best peer", "of the bare proxy", "null control"]), row(["---"] * 4)]
    for name, found in result["cpu_us"].items():
        own, peer, bare = found.get("ringway"), best(found, PEERS), best(found, ("bare", "bare-own"))
        if own:
            lines.append(row([titles[name], f"{NAMES[peer]}: {ratio(own, found[peer])}" if peer else "",
                              ratio(own, found[bare]) if bare else "",
                              ratio(own, found["ringway-2"]) if "ringway-2" in found else ""]))
    lines += ["", "Latency in milliseconds at a fixed rate of 4,000 requests a second, p50 and p99; memory after all of that.",
              "", row(["proxy", "hit", "pass", "memory (PSS), MiB"]), row(["---"] * 4)]
    for name in result["memory_mib"]:
        cells = [result["latency"][path].get(name) for path in result["latency"]]
        lines.append(row([NAMES[name], *(f"{cell['p50_ms']:.2f} / {cell['p99_ms']:.2f}" if cell else "" for cell in cells),
                          f"{result['memory_mib'][name]:.0f}"]))
    return "\n".join(lines) + "\n"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def svg(result, titles):
    """Bars of the medians, each scenario on a scale of its own: the longest bar is its dearest proxy."""
    width, left, bar, gap, top = 880, 210, 13, 16, 44
    parts, y = [], top
    for name, found in result["cpu_us"].items():
        if not found:
            continue
        medians = {each: statistics.median(values) for each, values in found.items()}
        dearest = max(medians.values())
        parts.append(f'<text x="{left - 10}" y="{y + bar}" text-anchor="end" font-weight="bold">{escape(titles[name])}</text>')
        for each in ABILITIES:
            if each in medians:
                length = medians[each] / dearest * (width - left - 190)
                parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{COLOURS[each]}"/>')
                parts.append(f'<text x="{left + length + 6:.1f}" y="{y + bar - 3}">{escape(NAMES[each])} {medians[each]:.1f}</text>')
                y += bar
        y += gap
    head = (f'<text x="{left}" y="24" font-size="14" font-weight="bold">CPU time of one request, microseconds '
            "(shorter is better)</text>")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="11" '
            f'fill="{INK}"><rect width="100%" height="100%" fill="{PAPER}"/>{head}{"".join(parts)}</svg>\n')


__all__ = ["NAMES", "OWN", "markdown", "svg"]
