"""The last lines of `make test`: times, what failed, what was skipped and why, and one line with the sum.

usage: summary.py STAGES.tsv TESTS.json SKIPPED.txt CHECKS.tsv…

A test that finds its server missing notes "name: reason" in the ledger and returns; the test runner counts it as
passed, so it is moved from the passed to the skipped here. Exits with 1 if anything failed.
"""

import json
import os
import re
import sys


def main():
    stages_file, tests_file, ledger_file, *checks_files = sys.argv[1:]
    stages = [line.split("\t") for line in lines_of(stages_file)]
    tests = {"passed": 0, "failed": 0, "ignored": [], "passed_names": [], "failed_names": []}
    if os.path.exists(tests_file):
        with open(tests_file, encoding="utf-8") as file:
            tests = json.load(file)
    # Fuzz targets and other checks that are no Rust tests: verdict, name, detail.
    checks = [line.split("\t") for file in checks_files for line in lines_of(file)]

    failures = [f"test {name}" for name in tests["failed_names"]]
    failures += [f"{name}: {detail}" for verdict, name, detail in checks if verdict == "failed"]
    # A stage can fail on its own: a build of the fuzz targets, a runner that was killed.
    counted = tests["failed"] + sum(verdict == "failed" for verdict, _, _ in checks)
    # A stage can fail without a test to blame: a build of the fuzz targets, a runner that was killed.
    blamed = {"tests"} if tests["failed"] else set()
    blamed |= {stage_of(name) for verdict, name, _ in checks if verdict == "failed"}
    for name, _, status in stages:
        if status != "0" and name not in blamed:
            failures.append(f"stage {name}")
            counted += 1

    skipped = ledger(ledger_file)
    in_ledger = sum(1 for name in tests["passed_names"] if is_named(name, skipped))
    for name in tests["ignored"]:
        skipped.setdefault(name, "runs only when asked for (#[ignore])")
    passed = tests["passed"] - in_ledger + sum(verdict == "ok" for verdict, _, _ in checks)

    print("\n== summary")
    for name, seconds, _ in stages:
        print(f"{name:8} {int(seconds) // 60:3} min {int(seconds) % 60:2} s")
    for failure in failures:
        print(f"failed: {failure}")
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    print(f"{passed} passed, {counted} failed, {len(skipped)} skipped")
    return 1 if counted else 0


def stage_of(check):
    """The stage that a check is made in."""
    of_kernel = {"kernel-on-arm": "arm", "kernel-in-miri": "miri"}
    return of_kernel.get(check, "fuzz" if check.startswith("fuzz ") else "documents")


def ledger(path):
    """Name to reason, in the order noted; a check that was noted twice counts once."""
    skipped = {}
    for line in lines_of(path):
        name, _, reason = re.sub(r"^skipped:? ", "", line).partition(": ")
        skipped.setdefault(name.strip(), reason.strip() or "no reason given")
    return skipped


def is_named(test, names):
    """Whether the ledger names this test, with or without the path of its module."""
    return test in names or test.rsplit("::", 1)[-1] in names


def lines_of(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
