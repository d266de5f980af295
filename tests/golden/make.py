"""Writes the golden sealed values of format 1 with none of Sealflow's code: needs the package `cryptography`.

Run once, when the format was frozen; every later version must open what is in `sealed-values.txt` (G10). It
stays as the record of where those bytes come from, and for the vectors of the next suite.
"""

import base64
import hashlib
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DATA_KEY = hashlib.sha256(b"golden data key").digest()
DOMAIN = hashlib.sha512(b"golden domain secret").digest()


def derive(key, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)


def lp(data):
    return struct.pack("<I", len(data)) + data


def aad(suite, key_id, dataset, label, row):
    fixed = b"sealflow/1" + bytes([suite]) + key_id + lp(dataset) + lp(label)
    return fixed + (b"\x00" if row is None else b"\x01" + lp(row[0]) + lp(row[1]))


def text(sealed):
    return "sf1." + base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def randomised(plaintext, dataset, label, column, row, start, n):
    key_id = derive(DATA_KEY, b"sealflow key id v1", 16)
    nonce = ((start + n) % (1 << 96)).to_bytes(12, "big")
    body = AESGCM(derive(DATA_KEY, b"sealflow 0x11 v1", 32)).encrypt(nonce, plaintext, aad(0x11, key_id, dataset, label, row))
    return bytes([0x11]) + key_id + struct.pack(">H", column) + nonce + body


def deterministic(plaintext, domain):
    key_id = derive(DOMAIN, b"sealflow key id v1", 16)
    body = AESSIV(derive(DOMAIN, b"sealflow 0x12 v1", 64)).encrypt(plaintext, [aad(0x12, key_id, b"", b"domain:" + domain, None)])
    return bytes([0x12]) + key_id + body


PLAINTEXTS = {
    "null": "00",
    "false": "01",
    "true": "02",
    "integer zero": "0300",
    "integer 128": "030080",
    "integer beyond 2^64": "0301ffffffffffffffffff",
    "negative integer": "0380",
    "float64 minus zero": "048000000000000000",
    "float64 signalling NaN": "047ff0000000000001",
    "decimal 1.50": "05020096",
    "empty string": "06",
    "string with unicode": "06" + "grüße 🔑".encode().hex(),
    "bytes": "0700ff10",
    "timestamp in milliseconds with zone": "0801" + struct.pack(">q", 1_700_000_000_123).hex() + b"Europe/Berlin".hex(),
    "JSON object": "09" + b'{"a" : [1.0, null]}'.hex(),
    "date": "0a00004e20",
    "time in microseconds": "0b02" + struct.pack(">q", 86_399_999_999).hex(),
    "duration in nanoseconds": "0c03" + struct.pack(">q", -1).hex(),
    "padded string": "86" + struct.pack("<I", 3).hex() + b"abc".hex() + "00" * 8,
}


def stanza(**lines):
    print("---")
    for name, value in lines.items():
        print(f"{name.replace('_', '-')}: {value}")


def main():
    start = int.from_bytes(bytes.fromhex("fffffffffffffffffffffffa"), "big")
    print("# Sealed values of sealflow/1. Written once by make.py; every later version opens or refuses them as told here.")
    for n, (name, plaintext) in enumerate(PLAINTEXTS.items()):
        row = None if n % 3 else (b"order.id", bytes.fromhex("03") + bytes([n + 1]) + struct.pack(">I", n))
        sealed = randomised(bytes.fromhex(plaintext), b"payments", b"cards[*].number", n, row, start, n)
        stanza(
            name=f"0x11 {name}", expect="opens", secret=DATA_KEY.hex(), dataset="payments", label="cards[*].number",
            column=n, row_path=row[0].decode() if row else "-", row_id=row[1].hex() if row else "-",
            plaintext=plaintext, sealed=text(sealed),
        )
        stanza(
            name=f"0x12 {name}", expect="opens", secret=DOMAIN.hex(), domain="customers",
            plaintext=plaintext, sealed=text(deterministic(bytes.fromhex(plaintext), b"customers")),
        )
    good = randomised(bytes.fromhex("0661"), b"payments", b"email", 0, None, start, 0)
    bad = {
        "under another dataset": (good, "refunds", "email"),
        "under another label": (good, "payments", "phone"),
        "with a flipped tag bit": (good[:-1] + bytes([good[-1] ^ 1]), "payments", "email"),
        "with a flipped nonce bit": (good[:19] + bytes([good[19] ^ 1]) + good[20:], "payments", "email"),
        "without its last byte": (good[:-1], "payments", "email"),
        "of an unknown suite": (b"\x13" + good[1:], "payments", "email"),
    }
    for name, (sealed, dataset, label) in bad.items():
        stanza(
            name=f"0x11 {name}", expect="refused", secret=DATA_KEY.hex(), dataset=dataset, label=label,
            column=0, row_path="-", row_id="-", plaintext="0661", sealed=text(sealed),
        )


if __name__ == "__main__":
    sys.exit(main())
