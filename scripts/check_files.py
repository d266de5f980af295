"""Checks of files as files: sizes, links between documents, tests that documents name, conflict marks.

Source files over 800 lines are named (look again); broken links and conflict marks fail.
"""

import re
import subprocess
import sys
from pathlib import Path

LOOK_AGAIN_LINES = 800
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"(?:src|srcset|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^\s*(```|~~~)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
CONFLICT = re.compile(r"^(<{7} |>{7} |={7}$)")


def main():
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True)
    files = [Path(name) for name in tracked.stdout.splitlines() if Path(name).is_file()]
    problems = []
    for file in files:
        if file.suffix in {".rs", ".py", ".sh", ".md", ".toml", ".yaml", ".yml"}:
            problems += check_text(file)
    problems += missing_tests(files)
    for problem in problems:
        print(f"broken: {problem}")
    print(f"{len(files)} files looked at, {len(problems)} problems")
    return 1 if problems else 0


def check_text(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    problems = [f"{file}:{n}: conflict mark" for n, line in enumerate(lines, 1) if CONFLICT.match(line) and file.suffix != ".md"]
    if file.suffix == ".rs" and len(lines) > LOOK_AGAIN_LINES:
        print(f"look again: {file} has {len(lines)} lines")
    if file.suffix == ".md":
        problems += broken_links(file, lines)
    return problems


def broken_links(file, lines):
    problems = []
    for n, line in outside_code(lines):
        for target in LINK.findall(line) + HTML_LINK.findall(line):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            place = file if not path else (file.parent / path)
            if not place.exists():
                problems.append(f"{file}:{n}: no such file: {target}")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                problems.append(f"{file}:{n}: no such heading: {target}")
    return problems


def missing_tests(files):
    """Tests that the guarantees name and no source file has: a promise whose proof went away."""
    guarantees = Path("docs/guarantees.md")
    named = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`", guarantees.read_text(encoding="utf-8")))
    sources = "".join(file.read_text(encoding="utf-8") for file in files if file.suffix == ".rs")
    return [f"{guarantees}: no such test: {name}" for name in sorted(named) if f"fn {name}(" not in sources]


def anchors(file):
    """GitHub's names of the headings of a document."""
    names = set()
    for _, line in outside_code(file.read_text(encoding="utf-8").splitlines()):
        heading = HEADING.match(line)
        if heading:
            text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            names.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return names


def outside_code(lines):
    fenced = False
    for n, line in enumerate(lines, 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield n, re.sub(r"`[^`]*`", "", line)


if __name__ == "__main__":
    sys.exit(main())
