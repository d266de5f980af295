"""Seals fields of JSON records, one a line, from standard input to standard output.

python seal_ndjson.py --key web.jwk --dataset payments --field user.email --field 'cards[*].number' <in >out
"""

import argparse
import json
import re
import sys
from decimal import Decimal
from pathlib import Path

from sealed import Session, enclave_key, mac_key, public_key, seal_value, to_json


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--key", type=Path, help="what `sealflow keys public` printed")
    to.add_argument("--enclave-keys", type=Path, help="for an enclave's columns: the answer of /.well-known/enclave-keys")
    parser.add_argument("--owner", action="append", default=[], help="thumbprint of an owner whose enclave keys are believed")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--field", required=True, action="append", help="as the policy names it; may be repeated")
    parser.add_argument("--row", metavar="FIELD", help="the field that names the record's row, for `bind_row`")
    parser.add_argument("--session", metavar="FIELD", default="session", help="where the session goes")
    parser.add_argument("--per-value", action="store_true", help="no session, but a key for each value")
    parser.add_argument("--mac-key", type=Path, help="what `sealflow keys client` wrote: proves who sealed")
    args = parser.parse_args()

    if args.enclave_keys:
        if args.per_value:
            raise ValueError("an enclave's columns are sealed in a session")
        enclave = enclave_key(args.enclave_keys.read_text(), args.owner, args.dataset)
        begin = lambda: Session.for_enclave(enclave, mac)
    else:
        key = public_key(args.key.read_text())
        begin = lambda: Session(key, args.dataset, mac)
    mac = mac_key(args.mac_key.read_text()) if args.mac_key else None
    session = None
    for line in sys.stdin.buffer:
        record = json.loads(line, parse_float=Decimal)
        row = [field(record, args.row)] if args.row else None
        if args.per_value:
            for label in args.field:
                seal = lambda value, index: seal_value(key, args.dataset, label, value, row and row + index, mac)
                replace(record, steps(label), seal)
        else:
            if args.session in record:
                raise ValueError("the record has a member for the session already")
            if session is None or session.is_used_up:
                session = begin()
            for label in args.field:
                seal = lambda value, index: session.seal(label, value, row and row + index)
                replace(record, steps(label), seal)
            record[args.session] = session.token
        print(to_json(record))


def steps(path: str) -> list[str]:
    if not re.fullmatch(r"\w+(\[\*\])*(\.\w+(\[\*\])*)*", path):
        raise ValueError(f"{path}: this sample knows paths like user.email and cards[*].number")
    return re.findall(r"\[\*\]|[^.\[]+", path)


def field(record, path: str):
    for step in steps(path):
        record = record[step]
    return record


def replace(value, path: list[str], seal, index: list[int] = []):
    """`value` with what the path leads to sealed. Null stays null, and what is not there stays away."""
    if value is None:
        return None
    if not path:
        return seal(value, index)
    step, rest = path[0], path[1:]
    if step == "[*]":
        if not isinstance(value, list):
            raise TypeError("a field is no list where its path has [*]")
        return [replace(item, rest, seal, index + [n]) for n, item in enumerate(value)]
    if not isinstance(value, dict):
        raise TypeError("a field is no object where its path goes on")
    if step in value:
        value[step] = replace(value[step], rest, seal, index)
    return value


if __name__ == "__main__":
    main()
