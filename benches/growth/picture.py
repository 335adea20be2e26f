"""The growth as a picture: a panel for each kind of growth, and bars for the bytes."""

import math
from html import escape

INK, PAPER, LINE, LIMIT = "#222222", "#ffffff", "#0b6e4f", "#c2405c"
WIDTH, PANEL, PLOT = 420, 190, 110
CURVES = {
    "objects": "a hit, by objects in the cache", "routes": "a hit, by routes", "nodes": "a pass, by nodes of the pool",
    "connections": "a hit, by connections",
}
BARS = {"idle": ("bytes of an idle connection", {"plain": 6144, "tls": 24576}),
        "sizes": ("bytes of an object over body, fields and URI, by size of body", dict.fromkeys(
            ("0", "200", "1000", "10000", "100000"), 450))}


def svg(result):
    """Curves of CPU time over the logarithm of what grows, with the goal of 1.5 of the smallest; bars with their goals."""
    panels = [curve(title, result[name]) for name, title in CURVES.items() if name in result]
    panels += [bars(title, result[name], limits) for name, (title, limits) in BARS.items() if name in result]
    rows = math.ceil(len(panels) / 2)
    placed = [f'<g transform="translate({n % 2 * WIDTH},{n // 2 * PANEL})">{panel}</g>' for n, panel in enumerate(panels)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {rows * PANEL}" font-family="sans-serif" '
            f'font-size="11" fill="{INK}"><rect width="100%" height="100%" fill="{PAPER}"/>{"".join(placed)}</svg>\n')


def heading(title):
    return f'<text x="40" y="22" font-size="13" font-weight="bold">{escape(title)}</text>'


def curve(title, found):
    steps, values = [int(step) for step in found], list(found.values())
    limit = values[0] * 1.5
    top = max(*values, limit) * 1.1
    span = math.log10(steps[-1] / steps[0]) or 1

    def at(step, value):
        return 50 + math.log10(step / steps[0]) / span * (WIDTH - 110), 40 + PLOT - value / top * PLOT
    points = [at(step, value) for step, value in zip(steps, values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    y = at(steps[0], limit)[1]
    parts = [heading(f"CPU time of {title} (us)"), f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>',
             f'<line x1="50" x2="{WIDTH - 60}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LIMIT}" stroke-dasharray="4 3"/>',
             f'<text x="{WIDTH - 56}" y="{y + 4:.1f}" fill="{LIMIT}">goal</text>',
             f'<line x1="50" x2="{WIDTH - 60}" y1="{40 + PLOT}" y2="{40 + PLOT}" stroke="{INK}"/>']
    for step, value, (x, y) in zip(steps, values, points):
        parts.append(f'<text x="{x:.1f}" y="{y - 6:.1f}" text-anchor="middle">{value:.1f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{40 + PLOT + 14}" text-anchor="middle">{step:,}</text>')
    return "".join(parts)


def bars(title, found, limits):
    longest = max([*found.values(), *limits.values()])
    parts = [heading(title)]
    for n, (name, value) in enumerate(found.items()):
        y, length = 40 + n * 24, value / longest * (WIDTH - 170)
        parts.append(f'<text x="70" y="{y + 11}" text-anchor="end">{escape(str(name))}</text>')
        parts.append(f'<rect x="80" y="{y}" width="{max(0, length):.1f}" height="14" fill="{LINE}"/>')
        parts.append(f'<text x="{86 + max(0, length):.1f}" y="{y + 11}">{value:,.0f}</text>')
        if limit := limits.get(str(name)):
            x = 80 + limit / longest * (WIDTH - 170)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 17}" stroke="{LIMIT}" stroke-dasharray="4 3"/>')
    return "".join(parts)
