"""Draws where the time went as a flame graph: flame.py OUT.svg TITLE [BELOW] <samples

Reads what `perf script -F ip,sym` prints. BELOW: only stacks with a frame whose name contains it, from the outermost such frame on.
A box is a function, as wide as its share of the samples; below it stands its caller. Only Python's standard library; colours
follow the reader's light or dark theme.
"""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, ROW, TOP = 1200, 12, 18, 62
# Narrower boxes are left out: nobody sees them, and the file stays small.
NARROWEST = 1.5
LETTER = 6.6
# Whose a function is: the first whose pattern its name has.
OWNERS = {
    "sealflow_kernel": "kernel",
    "sealflow": "ours",
    "aes|ghash|polyval|aead|cipher|universal_hash|ring|aws_lc|CRYPTO": "ciphers",
    "base64|serde_json|sonic|std::str|core::str|memchr|simdutf8": "text",
    "alloc|malloc|free|realloc|mem(cpy|move|set)|RawVec|drop_in_place": "memory",
}
NAMES = {"kernel": "the kernel", "ours": "the rest of Sealflow", "ciphers": "ciphers of others", "text": "JSON, base64, UTF-8", "memory": "memory", "other": "other"}
LIGHT = {"kernel": "#9fd8cf", "ours": "#a8cdf0", "ciphers": "#e3b8dc", "text": "#f3d19c", "memory": "#d3d6da", "other": "#ece7e0"}
DARK = {"kernel": "#0f766e", "ours": "#1d4f82", "ciphers": "#7b3f74", "text": "#7d5a15", "memory": "#484f58", "other": "#30363d"}


def fills(palette):
    return " ".join(f".{owner} {{ fill: {colour}; }}" for owner, colour in palette.items())


STYLE = f"""
  .card {{ fill: #ffffff; stroke: #d0d7de; }} text {{ fill: #1f2328; font: 11px ui-monospace, monospace; }}
  .title {{ font: 600 15px system-ui, "Segoe UI", sans-serif; }} .small {{ font: 12px system-ui, "Segoe UI", sans-serif; }} {fills(LIGHT)}
  @media (prefers-color-scheme: dark) {{ .card {{ fill: #0d1117; stroke: #30363d; }} text {{ fill: #e6edf3; }} {fills(DARK)} }}
"""


class Frame:
    def __init__(self):
        self.samples, self.callees = 0, {}


def main():
    out, title, below = Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [""])[0]
    root = fold(stacks(sys.stdin), below)
    if not root.samples:
        sys.exit(f"no samples{f' below {below}' if below else ''}")
    out.write_text(draw(root, title), encoding="utf-8")
    print(f"drew {out}: {root.samples} samples")


def stacks(lines):
    """Names of each sample, the outermost caller first."""
    stack = []
    for line in lines:
        if frame := re.match(r"\s+[0-9a-f]+ (.+)", line):
            stack.append(name(frame[1].strip()))
        elif not line.strip() and stack:
            yield stack[::-1]
            stack = []
    if stack:
        yield stack[::-1]


def name(symbol):
    """Without what only the compiler needs: offset, hash, generic arguments and the crate's disambiguator."""
    symbol = re.sub(r"\+0x[0-9a-f]+$|::h[0-9a-f]{16}$", "", symbol)
    symbol = re.sub(r"\[[0-9a-f]{16}\]", "", symbol)
    while (shorter := re.sub(r"::<[^<>]*>", "", symbol)) != symbol:
        symbol = shorter
    # <Type as Trait>::function, innermost first
    while (shorter := re.sub(r"<([^<>]*?) as [^<>]*>", r"\1", symbol)) != symbol:
        symbol = shorter
    return symbol.replace("::{{closure}}", "").replace("::{closure#0}", "")


def fold(samples, below):
    root = Frame()
    for stack in samples:
        first = next((n for n, frame in enumerate(stack) if below in frame), None)
        if first is None:
            continue
        frame = root
        frame.samples += 1
        last = None
        for function in stack[first:]:
            # A function and its closures are one box.
            if function != last:
                frame = frame.callees.setdefault(function, Frame())
                frame.samples += 1
            last = function
    return root


def draw(root, title):
    scale = (WIDTH - 2 * LEFT) / root.samples
    boxes = []
    place(root, LEFT, 0, scale, root.samples, boxes)
    depth = max(row for row, *_ in boxes) + 1
    height = TOP + depth * ROW + 16
    body = []
    for row, x, width, function, samples in boxes:
        y = TOP + (depth - 1 - row) * ROW
        text = function if len(function) * LETTER < width - 6 else function.rsplit("::", 1)[-1]
        text = text[: int((width - 6) / LETTER)]
        label = f'<text x="{x + 3:.0f}" y="{y + 13}">{escape(text)}</text>' if len(text) > 2 else ""
        tip = escape(f"{function}: {samples / root.samples:.1%}")
        body.append(f'<g><title>{tip}</title><rect class="{owner(function)}" x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}" rx="2"/>{label}</g>')
    legend, x = [], LEFT + 2
    for key, text in NAMES.items():
        legend.append(f'<rect class="{key}" x="{x}" y="38" width="12" height="12" rx="2"/><text class="small" x="{x + 17}" y="48">{text}</text>')
        x += 17 + 7 * len(text) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<text class="title" x="{LEFT + 2}" y="26">{escape(title)} ({root.samples} samples)</text>',
            *legend,
            *body,
            "</svg>\n",
        ]
    )


def place(frame, x, row, scale, whole, boxes):
    for function, callee in sorted(frame.callees.items()):
        width = callee.samples * scale
        if width >= NARROWEST:
            boxes.append((row, x, width, function, callee.samples))
            place(callee, x, row + 1, scale, whole, boxes)
        x += width


def owner(function):
    return next((owner for pattern, owner in OWNERS.items() if re.search(pattern, function)), "other")


if __name__ == "__main__":
    main()
