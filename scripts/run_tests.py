"""Builds and runs the tests, several binaries side by side, as most of what they do is to wait. Shows one line for each, and the
whole output of those that fail, and counts.

usage: run_tests.py REPORT.json -- cargo test …

The report holds {passed, failed, ignored: [names], passed_names: [names], failed_names: [names]}. The exit code is 0 if all
passed. Everything that the tests print is kept in the file REPORT.log beside the report. SEALFLOW_TEST_LANES (2) binaries run at
a time, those of LONGEST first; documentation tests come last.
"""

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time

QUIET_SECONDS = 60  # after so long without news, say what is still running
# What would keep the others waiting at the end.
LONGEST = ["topic", "faults", "table", "serve", "real_broker", "landing", "oversize", "mock_cluster", "s3", "redaction", "workflow"]

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


class Binary:
    """A test binary, run by a lane."""

    def __init__(self, message):
        target = message["target"]
        self.name = target["name"]
        self.executable = message["executable"]
        self.folder = os.path.dirname(message["manifest_path"])
        unit = "" if "test" in target["kind"] else "unittests "
        path = os.path.relpath(target["src_path"], self.folder)
        self.title = f"     Running {unit}{path} ({self.executable})"

    def order(self):
        return LONGEST.index(self.name) if self.name in LONGEST else len(LONGEST)

    def run(self):
        environment = {**os.environ, "CARGO_MANIFEST_DIR": self.folder, "INSTA_WORKSPACE_ROOT": os.getcwd()}
        ran = subprocess.run(
            [self.executable], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        lines = ran.stdout.decode("utf-8", "replace").splitlines()
        if ran.returncode != 0 and not any("test result: FAILED" in line for line in lines):
            # It died: after the last test, or before.
            lines = [line for line in lines if not RESULT.match(line)] + [f"exit code {ran.returncode}"]
        return lines


def built(command):
    """The test binaries that `cargo test …` would run; exits with cargo's code if they cannot be built."""
    listed = subprocess.run([*command, "--no-run", "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if listed.returncode != 0:
        sys.exit(listed.returncode)
    messages = map(json.loads, listed.stdout.splitlines())
    artifacts = (message for message in messages if message["reason"] == "compiler-artifact" and message["profile"]["test"])
    binaries = [Binary(message) for message in artifacts if message["executable"]]
    return sorted(binaries, key=Binary.order)


def lane(waiting, running, done):
    while True:
        try:
            binary = waiting.get_nowait()
        except queue.Empty:
            return
        running[binary.title] = started = time.monotonic()
        lines = binary.run()
        del running[binary.title]
        done.put((binary, lines, time.monotonic() - started))


def main():
    report, command = sys.argv[1], sys.argv[3:]
    binaries = built(command)
    waiting, running, done = queue.Queue(), {}, queue.Queue()
    for binary in binaries:
        waiting.put(binary)
    for _ in range(int(os.environ.get("SEALFLOW_TEST_LANES", "2"))):
        threading.Thread(target=lane, args=(waiting, running, done), daemon=True).start()

    suites = Suites()
    with open(report.removesuffix(".json") + ".log", "w", encoding="utf-8") as log:

        def tell(lines, started):
            for number, line in enumerate(lines):
                log.write(line + "\n")
                suites.line(line)
                if number == 0:
                    suites.started = started
            suites.close_unfinished()

        left = len(binaries)
        while left:
            try:
                binary, lines, took = done.get(timeout=QUIET_SECONDS)
            except queue.Empty:
                for title, since in list(running.items()):
                    print(f"       … {title.strip()} runs for {time.monotonic() - since:.0f} s", flush=True)
                continue
            tell([binary.title, *lines], time.monotonic() - took)
            left -= 1
        documentation = subprocess.run(
            [*command, "--doc"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        tell(documentation.stdout.decode("utf-8", "replace").splitlines(), time.monotonic())

    if documentation.returncode != 0 and suites.failed == 0:
        suites.failed += 1
        suites.failed_names.append("documentation tests (see above)")
    counts = {
        "passed": suites.passed,
        "failed": suites.failed,
        "ignored": suites.ignored,
        "passed_names": suites.passed_names,
        "failed_names": suites.failed_names,
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(counts, file)
    return 1 if suites.failed else 0


if __name__ == "__main__":
    sys.exit(main())
