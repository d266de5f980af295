"""Writes the golden dead letters to a recipient with none of Sealflow's code (Python's `cryptography`).

Run once, when the format was frozen: what a later version opens must be what an earlier one, or anybody's library, sealed.
"""

import base64
import hashlib
import json
import os
import struct
import sys

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DATASET = "payments#dead-letters"
CLEAR = {"code": "wrong-type", "stage": "seal", "topic": "payments", "partition": 3, "offset": 1041}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def head(major, n):
    if n < 24:
        return bytes([major << 5 | n])
    if n < 256:
        return bytes([major << 5 | 24, n])
    if n < 65536:
        return bytes([major << 5 | 25]) + struct.pack(">H", n)
    if n < 1 << 32:
        return bytes([major << 5 | 26]) + struct.pack(">I", n)
    return bytes([major << 5 | 27]) + struct.pack(">Q", n)


def cbor(value):
    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return head(3, len(text)) + text
    return head(4, len(value)) + b"".join(cbor(item) for item in value)


def public_json(key):
    numbers = key.public_key().public_numbers()
    n = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")
    return '{"e":"AQAB","kty":"RSA","n":"%s"}' % b64(n)


def thumbprint(key):
    return b64(hashlib.sha256(public_json(key).encode()).digest())


def row(clear):
    members = [clear["code"], clear["stage"], clear["topic"], clear["partition"], clear["offset"]]
    return json.dumps(members, separators=(",", ":"), ensure_ascii=False)


def jwe(key, record, header):
    protected = {
        "alg": "RSA-OAEP-256",
        "enc": "A256GCM",
        "kid": thumbprint(key),
        "sf_dataset": DATASET,
        "sf_label": "$record",
        "sf_row": row(CLEAR),
    }
    protected.update(header)
    protected = {name: text for name, text in protected.items() if text is not None}
    protected = b64(json.dumps(protected, separators=(",", ":"), ensure_ascii=False).encode())
    content_key, nonce = os.urandom(32), os.urandom(12)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    wrapped = key.public_key().encrypt(content_key, oaep)
    sealed = AESGCM(content_key).encrypt(nonce, cbor(record), protected.encode())
    return ".".join([protected, *map(b64, (wrapped, nonce, sealed[:-16], sealed[-16:]))])


def stanza(name, key, record, expect="opens", header=None, clear=None, form="dead-letter/2"):
    letter = {"sealflow": form, **CLEAR, **(clear or {}), "record": jwe(key, record, header or {})}
    lines = ["---", f"name: {name}", f"expect: {expect}", f"cbor: {cbor(record).hex()}"]
    lines.append("letter: " + json.dumps(letter, separators=(",", ":"), ensure_ascii=False))
    return lines


def main():
    key = rsa.generate_private_key(65537, 2048)
    other = rsa.generate_private_key(65537, 2048)
    pkcs8 = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    record = [b"customer-9", b'{"card":4111111111111111} trailing', [["trace", b"t-1"], ["empty", None]], 1, 1767225600000]
    odd = {"code": "cannot-open", "stage": "open", "topic": 'a "quoted"\\ \u00fc \u2028', "partition": 0, "offset": 9223372036854775807}
    lines = [
        "# Dead letters to a recipient (dead-letter/2). Written once by make_dead_letters.py; every later version opens or refuses",
        "# them as told here. The key is for tests alone.",
        "---",
        "dataset: payments",
        f"recipient: {public_json(key)}",
        f"pkcs8: {pkcs8.hex()}",
    ]
    lines += stanza("a record with key, headers and time stamp", key, record)
    lines += stanza("a tombstone without a time stamp", key, [None, None, [], 0, 0])
    lines += stanza("time of the broker, before 1970", key, [b"", b"", [["", b""]], 2, -1])
    lines += stanza("characters that JSON escapes", key, record, clear=odd, header={"sf_row": row({**CLEAR, **odd})})
    for name, change in [
        ("another code", {"code": "invalid-json"}),
        ("another stage", {"stage": "open"}),
        ("another topic", {"topic": "orders"}),
        ("another partition", {"partition": 4}),
        ("another offset", {"offset": 1042}),
    ]:
        lines += stanza(name, key, record, "refused", clear=change)
    for name, header in [
        ("another dataset", {"sf_dataset": "orders#dead-letters"}),
        ("the dataset itself", {"sf_dataset": "payments"}),
        ("no dataset", {"sf_dataset": None}),
        ("another label", {"sf_label": "card"}),
        ("no label", {"sf_label": None}),
        ("no row", {"sf_row": None}),
        ("a client", {"sf_client": "web-7"}),
        ("another name of the key", {"kid": thumbprint(other)}),
        ("another algorithm", {"alg": "RSA-OAEP"}),
        ("compressed", {"zip": "DEF"}),
    ]:
        lines += stanza(name, key, record, "refused", header=header)
    lines += stanza("sealed to another key under this one's name", other, record, "refused", header={"kid": thumbprint(key)})
    lines += stanza("as the form under a policy key", key, record, "refused", form="dead-letter/1")
    sys.stdout.write("\n".join(lines) + "\n")


main()
