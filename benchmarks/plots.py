"""Draws the newest number of every benchmark as SVG: plots.py RESULTS-FOLDER PLOTS-FOLDER

One picture per (section, what). Rows that vary a number become lines, the others bars; whiskers are the intervals.
A new benchmark needs nothing here; the README beside the plots shows them all. That of the repository shows those of HIGHLIGHTS, each with a
sentence made of the numbers. Only Python's standard library; colours follow the reader's light or dark theme.
"""

import json
import math
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 720
LEFT, RIGHT, TOP = 64, 24, 64
LIGHT = ["#0b7a75", "#c2571a", "#5e60ce", "#b5179e", "#6c757d", "#b08900"]
DARK = ["#2dd4bf", "#fb923c", "#a5b4fc", "#f0abfc", "#adb5bd", "#facc15"]


def marks(palette):
    """Rules for what is drawn in the n-th colour. No custom properties: not every renderer of SVG knows them."""
    rules = (f".bar.c{n}, .dot.c{n}, .band.c{n} {{ fill: {colour}; }} .line.c{n} {{ stroke: {colour}; }}" for n, colour in enumerate(palette))
    return "\n  ".join(rules)


STYLE = f"""
  .card {{ fill: #ffffff; stroke: #d0d7de; }} text {{ fill: #1f2328; font: 13px system-ui, "Segoe UI", sans-serif; }}
  .title {{ font-size: 15px; font-weight: 600; }} .small {{ font-size: 12px; fill: #59636e; }}
  .grid {{ stroke: #d0d7de; stroke-width: 1; }} .whisker {{ stroke: #59636e; stroke-width: 1.5; fill: none; }}
  .line {{ stroke-width: 2; fill: none; }} .band {{ opacity: 0.15; }}
  {marks(LIGHT)}
  @media (prefers-color-scheme: dark) {{
  .card {{ fill: #0d1117; stroke: #30363d; }} text {{ fill: #e6edf3; }} .small {{ fill: #9198a1; }}
  .grid {{ stroke: #30363d; }} .whisker {{ stroke: #9198a1; }}
  {marks(DARK)}
  }}
"""


def main():
    results, plots = Path(sys.argv[1]), Path(sys.argv[2])
    groups = newest(results)
    plots.mkdir(parents=True, exist_ok=True)
    for (section, what), (source, rows) in sorted(groups.items()):
        path = plots / file_name(section, what)
        path.write_text(draw(section, what, source, rows), encoding="utf-8")
        print(f"drew {path}")
    beside, repository = plots.parent / "README.md", plots.parent.parent / "README.md"
    show(beside, [picture(beside, plots, *group) for group in sorted(groups)])
    show(
        repository,
        [f"{tell(groups, *group)}\n\n{picture(repository, plots, *group)}" for group, tell in HIGHLIGHTS.items() if group in groups],
    )


def show(readme, parts):
    """Puts the parts between the two marks of a README, if it has the marks."""
    begin, end = "<!-- plots: written by plots.py -->", "<!-- end of plots -->"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if begin not in text or end not in text or not parts:
        return
    head, tail = text.split(begin)[0], text.split(end)[1]
    readme.write_text(f"{head}{begin}\n\n" + "\n\n".join(parts) + f"\n\n{end}{tail}", encoding="utf-8")
    print(f"showed {len(parts)} plots in {readme}")


def picture(readme, plots, section, what):
    folder = plots.relative_to(readme.parent).as_posix()
    return f"![{section}: {what}]({folder}/{file_name(section, what)})"


def tell_cpu(groups, section, what):
    rows = {row["contender"]: row for row in groups[section, what][1]}
    seal, opened = rows["sealflow seal"], rows["sealflow open"]
    return (
        f"**Client CPU**, {what.partition(', ')[2]}, exactly once: sealing takes {times(seal)} the CPU time of a plain rdkafka program that copies the "
        f"sealed topic with the same properties and guarantees, opening {times(opened)} ({seal['value']['median']:.1f} and "
        f"{opened['value']['median']:.1f} against {rows[seal['baseline']]['value']['median']:.1f} CPU seconds per million records)."
    )


def tell_speed(groups, section, what):
    seals = lambda what: {row["at"]: short(row["value"]["median"]) for row in groups[section, what][1] if row["contender"] == "sealflow seal"}
    records, megabytes = seals(what), seals("megabytes per second")
    where = {1: "one thread on one core", 2: "two threads on two cores"}
    rates = [f"{records[cores]} records ({megabytes[cores]} MB) a second with {where[cores]}" for cores in sorted(records)]
    return f"**Throughput**, topic to topic, the broker on the same machine: sealing does {', '.join(rates)}."


def tell_values(groups, section, what, size=128):
    rows = {row["contender"]: row for row in groups[section, what][1] if row["at"] == size}
    ours = rows.pop("sealflow")
    peers = [f"{name} {row['ratio']['median']:.2f}" for name, row in rows.items()]
    return f"**The ciphers alone**, no Kafka: sealing a value of {size} bytes in a column takes {short(ours['value']['median'])} ns of CPU time; in multiples of that, libraries called once per value take: {', '.join(peers)}."


def tell_kernel(groups, section, what, size=16):
    rows = {row["contender"]: row for row in groups[section, what][1] if row["at"] == size}
    ours = rows[rows["ring"]["baseline"]]
    peers = [f"{name} {rows[name]['ratio']['median']:.1f}" for name in ("ring", "aws-lc-rs", "aes-gcm")]
    return f"**The kernel alone**: a value of {size} bytes takes {short(ours['value']['median'])} ns by {ours['contender']}; in multiples of that, libraries called once per value into one buffer take: {', '.join(peers)}."


def tell_transform(groups, section, what):
    rows = {row["contender"]: row for row in groups[section, what][1]}
    ours = rows.pop("sealflow")
    # Trees are measured apart: the memory that they leave behind slows down others.
    apart = groups.get((section, "sample payments, against a tree"))
    rows |= {row["contender"]: row for row in apart[1]} if apart else {}
    peers = [f"{name} {row['ratio']['median']:.1f}" for name, row in rows.items() if row.get("ratio") and not name.startswith(("of it", "sealflow"))]
    return f"**Records to sealed records**, no Kafka, one core, {what}: {short(ours['value']['median'])} ns of CPU time a record; in multiples of that, what one would write instead takes: {'; '.join(peers)}."


# What the repository's README shows, and how it says it.
HIGHLIGHTS = {
    ("topic", "client CPU, records of about 1 KB with 4 sealed fields"): tell_cpu,
    ("topic", "records per second"): tell_speed,
    ("values", "seal a value"): tell_values,
    ("kernel", "seal a value"): tell_kernel,
    ("transform", "sample payments, 4 columns"): tell_transform,
}


def times(row):
    ratio = row["ratio"]
    return f"{ratio['median']:.2f} times ({ratio['low']:.2f} to {ratio['high']:.2f}, {ratio['samples']} pairs)"


def file_name(section, what):
    return re.sub(r"[^a-z0-9]+", "-", f"{section} {what}".lower()).strip("-") + ".svg"


def newest(folder):
    """Rows by (section, what), each group whole from the newest result that has it."""
    groups = {}
    for file in sorted(folder.glob("bench-*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in report["numbers"] if "section" in row]
        fresh = {}
        for row in rows:
            fresh.setdefault((row["section"], row["what"]), (report, []))[1].append(row)
        groups.update(fresh)
    return groups


def draw(section, what, report, rows):
    lines = len({row.get("at") for row in rows}) > 2
    body, height = line_chart(rows) if lines else bar_chart(rows)
    machine = report["machine"]
    note = f"{report['commit'][:9]}{'' if report['clean'] else ' and local changes'}, {report['date'][:10]}, {machine['processor']}, {machine['processors']} processors"
    if not report["ok"]:
        note += ", incomplete run"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(what)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<text class="title" x="24" y="30">{escape(section)}: {escape(what)}</text>',
            f'<text class="small" x="24" y="49">{escape(rows[0]["unit"])}{interval_note(rows, lines)}</text>',
            *body,
            f'<text class="small" x="24" y="{height - 14}">{escape(note)}</text>',
            "</svg>\n",
        ]
    )


def interval_note(rows, lines):
    if all(row["value"]["low"] == row["value"]["high"] for row in rows):
        return ""
    return f"; {'band' if lines else 'whiskers'}: interval of the median, {min(row['value']['confidence'] for row in rows):.0%} or more"


def bar_chart(rows):
    """One bar a row, ratio at its end."""
    left, step = 24 + max(text_width(label(row)) for row in rows) + 12, 30
    right = WIDTH - 24 - max(text_width(value_text(row)) for row in rows) - 16
    top = max(row["value"]["high"] for row in rows) or 1
    low = min(0, min(row["value"]["low"] for row in rows))
    x = lambda value: left + (value - low) / (top - low) * (right - left)
    body, colour = [], colours(rows)
    for n, row in enumerate(rows):
        y, value = TOP + n * step, row["value"]
        start, end = sorted((x(0), x(value["median"])))
        body += [
            f'<text x="{left - 12}" y="{y + 15}" text-anchor="end">{escape(label(row))}</text>',
            f'<rect class="bar c{colour[row["contender"]]}" x="{start:.1f}" y="{y + 2}" width="{max(end - start, 1):.1f}" height="18" rx="3"/>',
            *whisker(x(value["low"]), x(value["high"]), y + 11),
            f'<text class="small" x="{x(value["high"]) + 8:.1f}" y="{y + 15}">{escape(value_text(row))}</text>',
        ]
    return body, TOP + len(rows) * step + 34


def whisker(low, high, y):
    if high - low < 1:
        return []
    return [f'<path class="whisker" d="M{low:.1f} {y - 4}v8M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4}v8"/>']


def line_chart(rows):
    """The varied number from left to right, one line a contender."""
    height, bottom = 380, 380 - 92
    values = sorted({row["at"] for row in rows})
    highest = max(row["value"]["high"] for row in rows)
    lowest = min(row["value"]["low"] for row in rows)
    # Values that span decades are only readable on a logarithmic scale; then it says so.
    logarithmic = lowest > 0 and highest / lowest > 30
    scale = math.log10 if logarithmic else (lambda value: value)
    floor = 10 ** math.floor(math.log10(lowest)) if logarithmic else 0
    ticks = decades(floor, highest) if logarithmic else steps(highest)
    y = lambda value: bottom - (scale(max(value, floor)) - scale(floor)) / (scale(ticks[-1]) - scale(floor)) * (bottom - TOP)
    # Evenly spaced: the values are chosen to be interesting, mostly doubling.
    x = lambda value: LEFT + 24 + values.index(value) / (len(values) - 1) * (WIDTH - LEFT - RIGHT - 48)
    body = []
    for tick in ticks:
        body += [
            f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>',
            f'<text class="small" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{short(tick)}</text>',
        ]
    for value in values:
        body.append(f'<text class="small" x="{x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{whole(value)}</text>')
    axis = rows[0]["parameter"] + (" (logarithmic upwards)" if logarithmic else "")
    body.append(f'<text class="small" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">{escape(axis)}</text>')
    legend = LEFT
    for name, colour in colours(rows).items():
        points = sorted((row["at"], row["value"]) for row in rows if row["contender"] == name)
        path = " ".join(f"{x(at):.1f},{y(value['median']):.1f}" for at, value in points)
        band = [f"{x(at):.1f},{y(value['low']):.1f}" for at, value in points]
        band += [f"{x(at):.1f},{y(value['high']):.1f}" for at, value in reversed(points)]
        body.append(f'<polygon class="band c{colour}" points="{" ".join(band)}"/>')
        body.append(f'<polyline class="line c{colour}" points="{path}"/>')
        body += [f'<circle class="dot c{colour}" cx="{x(at):.1f}" cy="{y(value["median"]):.1f}" r="3.5"/>' for at, value in points]
        body.append(f'<rect class="bar c{colour}" x="{legend}" y="{bottom + 46}" width="12" height="12" rx="3"/>')
        body.append(f'<text class="small" x="{legend + 18}" y="{bottom + 57}">{escape(name)}</text>')
        legend += 18 + text_width(name) + 22
    return body, height


def label(row):
    return row["contender"] + (f", {whole(row['at'])} {row['parameter']}" if row.get("parameter") else "")


def value_text(row):
    ratio = row.get("ratio")
    return short(row["value"]["median"]) + (f" ({ratio['median']:.2f}x {row['baseline']})" if ratio else "")


def colours(rows):
    names = dict.fromkeys(row["contender"] for row in rows)
    return {name: n % len(LIGHT) for n, name in enumerate(names)}


def steps(highest):
    """Round numbers from 0 to at least `highest`."""
    size = 10 ** math.floor(math.log10(highest or 1))
    step = next(size * part for part in (0.2, 0.5, 1, 2) if highest / (size * part) <= 6)
    return [step * n for n in range(math.ceil(highest / step) + 1)]


def decades(floor, highest):
    ticks = [floor]
    while ticks[-1] < highest:
        ticks.append(ticks[-1] * 10)
    return ticks


def short(number):
    if abs(number) >= 10_000:
        return f"{number / 1000:,.0f}k" if abs(number) < 1e6 else f"{number / 1e6:.1f}M"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def whole(number):
    """Without the exponent that `g` gives a million."""
    return f"{number:.0f}" if number == int(number) else f"{number:g}"


def text_width(text):
    """Roughly, in pixels, at 13 px."""
    return 7.1 * len(text)


if __name__ == "__main__":
    main()
