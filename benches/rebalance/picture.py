"""Draws what happened as SVG, with nothing but text."""

from html import escape

WIDTH, LEFT, RIGHT = 960, 70, 24
INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, GREEN, ORANGE, RED = "#2563a8", "#2f855a", "#c05621", "#c53030"


def text(x, y, words, size=12, colour=INK, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(words)}</text>')


def line(x1, y1, x2, y2, colour=GRID, dash=""):
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'


class Panel:
    """A chart over time."""

    def __init__(self, title, top, end, low, high, unit):
        self.title, self.top, self.height, self.end, self.unit = title, top, 100, end, unit
        self.low, self.high = low, high

    def x(self, at):
        return LEFT + (WIDTH - LEFT - RIGHT) * at / self.end

    def y(self, value):
        inside = min(max(value, self.low), self.high)
        return self.top + self.height * (self.high - inside) / (self.high - self.low)

    def frame(self):
        parts = [text(LEFT, self.top - 8, self.title, 13, weight="bold")]
        for step in range(3):
            value = self.low + (self.high - self.low) * step / 2
            parts.append(line(LEFT, self.y(value), WIDTH - RIGHT, self.y(value)))
            parts.append(text(LEFT - 8, self.y(value) + 4, f"{value:,.0f}{self.unit}", 11, FAINT, "end"))
        return parts

    def curve(self, points, colour):
        path = " ".join(f"{self.x(at):.1f},{self.y(value):.1f}" for at, value in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def marks(events, top, bottom, panel):
    parts = []
    for number, (_, at) in enumerate(events, 1):
        x = panel.x(at)
        parts.append(line(x, top, x, bottom, FAINT, "2,3"))
        parts.append(f'<circle cx="{x:.1f}" cy="{top - 8}" r="9" fill="{INK}"/>')
        parts.append(text(x, top - 4, str(number), 11, "#ffffff", "middle"))
    return parts


def bars(title, loads, x, top, width, height, high, colour):
    """The load of each node, and the mean of all."""
    parts = [text(x, top - 8, title, 13, weight="bold")]
    step = width / len(loads)
    for number, (node, load) in enumerate(loads.items()):
        tall = height * load / high
        left = x + number * step
        parts.append(f'<rect x="{left:.1f}" y="{top + height - tall:.1f}" width="{step * 0.7:.1f}" '
                     f'height="{tall:.1f}" fill="{colour}"/>')
        parts.append(text(left + step * 0.35, top + height - tall - 4, f"{load:.0f}", 11, FAINT, "middle"))
        parts.append(text(left + step * 0.35, top + height + 15, node, 11, FAINT, "middle"))
    mean = top + height * (1 - sum(loads.values()) / len(loads) / high)
    parts.append(line(x, mean, x + width - step * 0.3, mean, INK, "4,3"))
    return parts


def draw(result, balanced, bound):
    bins = result["series"]
    width = bins[1]["at"] - bins[0]["at"]
    end = bins[-1]["at"] + width
    rates = [(bin_["at"], bin_["requests"] / width) for bin_ in bins]
    share = lambda name: [(bin_["at"], 100 * bin_[name] / max(1, bin_["cacheable"])) for bin_ in bins]
    highest = max(rate for _, rate in rates)
    strange = max(value for _, value in share("strangers"))
    strange = next(high for high in (2, 4, 10, 20, 40, 100) if high >= strange)
    panels = [
        (Panel("Requests a second, and those that failed", 118, end, 0, round(highest * 1.15, -3) or highest, ""),
         [(rates, BLUE), ([(bin_["at"], bin_["failed"] / width) for bin_ in bins], RED)]),
        (Panel("Hit rate of the nodes' caches", 258, end, 90, 100, " %"), [(share("hits"), GREEN)]),
        (Panel("Requests that met another node than their key's last one", 398, end, 0, strange, " %"),
         [(share("strangers"), ORANGE)]),
    ]
    parts = [text(LEFT, 28, f"A pool that changes under load: {result['mix']} mix, {result['during']['requests']:,} requests", 16,
                  weight="bold"),
             text(LEFT, 48, f"{result['failed']} failed; {result['payments']:,} payments, {result['payments_twice']} ran twice; "
                  f"p99 {result['before']['p99_ms']:.1f} ms before, {result['during']['p99_ms']:.1f} ms during, "
                  f"{result['after']['p99_ms']:.1f} ms after", 13, FAINT)]
    for panel, curves in panels:
        parts += panel.frame()
        parts += [panel.curve(points, colour) for points, colour in curves]
    last = panels[-1][0]
    bottom = last.top + last.height
    parts += marks(result["events"], 84, bottom, last)
    for second in range(0, int(end), 10):
        parts.append(text(last.x(second), bottom + 16, f"{second} s", 11, FAINT, "middle"))
    top = bottom + 44
    for number, ((name, _), row) in enumerate(zip(result["events"], result["rows"])):
        x, y = LEFT + (number % 2) * 440, top + number // 2 * 20
        said = f"{number + 1}  {name}: {row['moved']:.1%} of the keys moved, {row['between_survivors']} between survivors"
        parts.append(text(x, y, said, 12))
    top += (len(result["rows"]) + 1) // 2 * 20 + 30
    if balanced:
        loads = {name: found["in_flight"] for name, found in balanced.items()}
        high = max(load for found in loads.values() for load in found.values()) * 1.15
        titles = {"without": "In flight, hot keys, no bound", "with": f"In flight, bounded_load: {bound}"}
        for number, (name, found) in enumerate(loads.items()):
            title = f"{titles[name]} (max/mean {balanced[name]['max_mean']:.2f})"
            parts += bars(title, found, LEFT + number * 460, top, 400, 90, high, [ORANGE, GREEN][number])
        top += 130
    style = 'font-family="Helvetica, Arial, sans-serif"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" {style}>'
            f'<rect width="{WIDTH}" height="{top:.0f}" fill="#ffffff"/>' + "\n".join(parts) + "</svg>\n")
