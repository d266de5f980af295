"""Writes the golden audit log of format 1 with none of Sealflow's code: needs the package `cryptography`.

usage: make_audit.py FOLDER, which gets `audit-log.jsonl` and `audit-checkpoints.txt`. The key is that of RFC 8037, appendix A.1.
"""

import base64
import hashlib
import json
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

D, X = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
INSTANCE = "000102030405060708090a0b0c0d0e0f"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def dump(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


KEY = Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(D + "="))
JWK = {"crv": "Ed25519", "kty": "OKP", "x": X}
KID = b64(hashlib.sha256(dump(JWK).encode()).digest())


def jws(payload):
    header = {"alg": "EdDSA", "jwk": JWK, "kid": KID, "typ": "sealflow-audit"}
    signed = b64(dump(header).encode()) + "." + b64(dump(payload).encode())
    return signed + "." + b64(KEY.sign(signed.encode()))


LINES, CHECKPOINTS = [], []


def add(at, kind, **members):
    prev = b64(hashlib.sha256(LINES[-1].encode()).digest()) if LINES else None
    LINES.append(dump({"v": 1, "instance": INSTANCE, "seq": len(LINES), "prev": prev, "at": at, "kind": kind} | members))


def seal(at):
    last = b64(hashlib.sha256(LINES[-1].encode()).digest())
    CHECKPOINTS.append(jws({"instance": INSTANCE, "seq": len(LINES) - 1, "sha256": last, "at": at}))
    add(at, "checkpoint", jws=CHECKPOINTS[-1])


add("2026-01-01T00:00:00.000Z", "start", name="serve-0")
seal("2026-01-01T00:00:00.000Z")
add(
    "2026-01-01T00:00:00.250Z",
    "decision",
    principal="arn:aws:iam::111122223333:role/analyst",
    proof="sts-credentials",
    purpose="fraud",
    dataset="payments",
    label="card.number",
    policy_version=3,
    decision="allowed",
    rule="acls.pii.allow[0]",
    count=12,
    place={"source": "payments.sealed", "partition": 0, "first": 100, "last": 111},
)
# What callers wrote: quotes, line ends, control characters, letters beyond ASCII.
add(
    "2026-01-01T00:00:01.000Z",
    "decision",
    principal='oidc:https://idp.example#sub="x"\n\u0001\\é',
    proof="oidc",
    decision="refused",
    rule="nothing in acls.pii.allow names it",
    count=1,
    place={"source": "request"},
)
seal("2026-01-01T00:00:01.000Z")
add("2026-01-01T01:00:00.000Z", "resume", name="serve-0", dropped=17)
seal("2026-01-01T01:00:00.000Z")

FOLDER = pathlib.Path(sys.argv[1])
(FOLDER / "audit-log.jsonl").write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
(FOLDER / "audit-checkpoints.txt").write_text("".join(line + "\n" for line in CHECKPOINTS), encoding="utf-8")
