"""Runs `cargo test`, shows one line per test binary and the whole output of those that fail, and counts.

usage: run_tests.py REPORT.json -- cargo test …

The report holds {passed, failed, ignored: [names], passed_names: [names], failed_names: [names]}. The exit code
is cargo's. Everything that the tests print is kept in the file REPORT.log beside the report.
"""

import json
import queue
import re
import subprocess
import sys
import threading
import time

QUIET_SECONDS = 60  # after so long without news, say what is still running

SUITE = re.compile(r"^\s+(?:Running (?:unittests )?(?P<target>.+) \(.*?(?P<binary>[^/]+)-[0-9a-f]+\)|Doc-tests (?P<docs>\S+))$")
TEST = re.compile(r"^test (?P<name>.+?) (?:- should panic )?\.\.\. (?P<outcome>ok|FAILED|ignored)\b")
RESULT = re.compile(r"^test result: (?P<verdict>\w+)\. (?P<passed>\d+) passed; (?P<failed>\d+) failed; (?P<ignored>\d+) ignored;")
NOISE = re.compile(r"^(running \d+ tests?|\s*(Compiling|Finished|Fresh|Blocking|Checking)\b.*|)$")


class Suites:
    """Follows cargo's output suite by suite."""

    def __init__(self):
        self.passed = self.failed = 0
        self.ignored, self.passed_names, self.failed_names = [], [], []
        self.name = None
        self.lines = []
        self.started = time.monotonic()

    def line(self, line):
        suite = SUITE.match(line)
        if suite:
            self.close_unfinished()
            self.name = f"{suite['binary']}: {suite['target']}" if suite["target"] else f"documentation of {suite['docs']}"
            self.lines = []
            self.started = time.monotonic()
            return
        if self.name is None:
            if not NOISE.match(line):
                print(line, flush=True)
            return
        test = TEST.match(line)
        if test:
            name = test["name"].split(" - should panic")[0]
            names = {"ok": self.passed_names, "FAILED": self.failed_names, "ignored": self.ignored}
            names[test["outcome"]].append(name)
        result = RESULT.match(line)
        if result:
            self.close(result)
        elif not (test and test["outcome"] == "ok") and not NOISE.match(line):
            self.lines.append(line)

    def close(self, result):
        passed, failed = int(result["passed"]), int(result["failed"])
        self.passed += passed
        self.failed += failed
        if failed:
            print("\n".join(self.lines), flush=True)
        took = time.monotonic() - self.started
        if passed or failed or int(result["ignored"]):
            verdict = "FAILED" if failed else "ok"
            print(f"{verdict:6} {passed:5} passed {failed:3} failed {took:6.1f} s  {self.name}", flush=True)
        self.name = None

    def close_unfinished(self):
        """A test binary that died before its result: one failure more."""
        if self.name is None:
            return
        print("\n".join(self.lines), flush=True)
        print(f"FAILED {self.name} ended without a result", flush=True)
        self.failed += 1
        self.failed_names.append(f"{self.name} (ended without a result)")
        self.name = None


def main():
    report, command = sys.argv[1], sys.argv[3:]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    lines = queue.Queue()
    threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()

    suites = Suites()
    with open(report.removesuffix(".json") + ".log", "w", encoding="utf-8") as log:
        while True:
            try:
                line = lines.get(timeout=QUIET_SECONDS)
            except queue.Empty:
                if suites.name:
                    print(f"       … {suites.name} runs for {time.monotonic() - suites.started:.0f} s", flush=True)
                continue
            if line is None:
                break
            log.write(line + "\n")
            suites.line(line)
    status = process.wait()
    suites.close_unfinished()

    if status != 0 and suites.failed == 0:
        suites.failed += 1
        suites.failed_names.append("cargo test itself (see above)")
    counts = {
        "passed": suites.passed,
        "failed": suites.failed,
        "ignored": suites.ignored,
        "passed_names": suites.passed_names,
        "failed_names": suites.failed_names,
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(counts, file)
    return status


def pump(stream, lines):
    for raw in stream:
        lines.put(raw.decode("utf-8", "replace").rstrip("\n"))
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
