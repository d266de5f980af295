"""Adds up what each fuzz target has run, over sessions and commits, in a file that is checked in.

usage: fuzz_tally.py add TALLY.json RUNS.jsonl    adds the runs of one session
       fuzz_tally.py left TALLY.json              prints the targets that are short of the goal, the shortest first
       fuzz_tally.py show TALLY.json

The goal, per target: 24 million executions and one hour of processor time, both.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

GOAL = {"executions": 24_000_000, "cpu_seconds": 3_600}


def main():
    command, tally_file, *rest = sys.argv[1:]
    path = Path(tally_file)
    tally = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"goal": GOAL, "targets": {}}
    targets = sorted(file.stem for file in Path("fuzz/fuzz_targets").glob("*.rs"))
    if command == "add":
        add(tally, rest[0])
        path.write_text(json.dumps(tally, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if command == "left":
        short = [target for target in targets if share(tally, target) < 1]
        print("\n".join(sorted(short, key=lambda target: share(tally, target))), end="\n" if short else "")
        return
    for target in targets:
        done = tally["targets"].get(target, {"executions": 0, "cpu_seconds": 0})
        print(f"{share(tally, target):7.1%}  {target}: {done['executions']:,} executions, {done['cpu_seconds']:,.0f} s")


def add(tally, runs_file):
    commit = output("git", "rev-parse", "HEAD")
    if output("git", "status", "--porcelain", "--", "src", "fuzz", "connectors"):
        commit += " with changes"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    for line in Path(runs_file).read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        target = tally["targets"].setdefault(run["target"], {"executions": 0, "cpu_seconds": 0, "sessions": []})
        target["executions"] += run["executions"]
        target["cpu_seconds"] = round(target["cpu_seconds"] + run["cpu_seconds"], 1)
        sessions = target["sessions"]
        # Sessions of one day and commit are one line.
        if not sessions or (sessions[-1]["commit"], sessions[-1]["date"]) != (commit, today):
            sessions.append({"commit": commit, "date": today, "executions": 0, "cpu_seconds": 0})
        sessions[-1]["executions"] += run["executions"]
        sessions[-1]["cpu_seconds"] = round(sessions[-1]["cpu_seconds"] + run["cpu_seconds"], 1)


def share(tally, target):
    """How much of the goal a target has reached: the lesser of both parts."""
    done = tally["targets"].get(target, {})
    return min(done.get(part, 0) / goal for part, goal in GOAL.items())


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
