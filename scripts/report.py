"""Writes benchmarks/results/KIND-DATE.json: numbers together with the commit, machine and command behind them.

usage: report.py KIND NUMBERS.jsonl --seconds N --failed 0|1 [--fuzz F.tsv] [--skipped S.txt] [--command C]
       [--load L] [--folder D]
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

# What the numbers are of: soaks run the binaries that Cargo builds for tests.
BUILDS = {
    "bench": "cargo build --release",
    "nitro": "cargo test; worker and guest static, as scripts/test_nitro.sh builds them",
    "soak": "cargo test (own code opt-level 1, dependencies 2, all features)",
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("numbers")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--failed", type=int, required=True)
    parser.add_argument("--fuzz")
    parser.add_argument("--skipped")
    parser.add_argument("--command")
    parser.add_argument("--load", help="load averages before anything was measured")
    parser.add_argument("--folder", default="benchmarks/results")
    arguments = parser.parse_args()

    now = datetime.datetime.now(datetime.timezone.utc)
    report = {
        "kind": arguments.kind,
        "date": now.isoformat(timespec="seconds"),
        "command": arguments.command or f"make {arguments.kind}",
        "commit": git("rev-parse", "HEAD"),
        "clean": git("status", "--porcelain") == "",
        "rust": output("rustc", "--version"),
        "machine": machine() | ({"load_at_start": arguments.load} if arguments.load else {}),
        "build": BUILDS[arguments.kind] + "; RUSTFLAGS: " + (os.environ.get("RUSTFLAGS") or "none"),
        "seconds": arguments.seconds,
        "ok": arguments.failed == 0,
        "numbers": [json.loads(line) for line in lines(arguments.numbers)],
        "skipped": lines(arguments.skipped),
    }
    if arguments.fuzz:
        report["fuzz"] = [dict(zip(("verdict", "target", "detail"), line.split("\t"))) for line in lines(arguments.fuzz)]
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{arguments.kind}-{now:%Y-%m-%dT%H%MZ}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def machine():
    cpu = next((line.partition(": ")[2] for line in lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    memory = next((int(line.split()[1]) for line in lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": cpu,
        "processor_features": features(),
        "processors": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
    }


def features():
    """Those that AES-GCM is fast or slow by."""
    wanted = {"aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx2", "avx512f", "asimd", "pmull"}
    line = next((line for line in lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "")
    return sorted(wanted & set(line.split()))


def git(*arguments):
    return output("git", *arguments)


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def lines(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


if __name__ == "__main__":
    main()
