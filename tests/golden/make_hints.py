"""Writes the golden keyed hashes of hints with none of Sealflow's code, and with Python's own modules only.

Run once, when the format was frozen: what a later version hashes must match what an earlier one did. A hint that is
sealed is a sealed value like others (`make.py`).
"""

import hashlib
import hmac
import struct

DOMAIN = hashlib.sha512(b"golden domain secret").digest()

PLAINTEXTS = {
    "empty string": b"\x06",
    "card number": b"\x064111111111111111",
    "string with unicode": b"\x06" + "grüße 🔑".encode(),
    "integer zero": b"\x03\x00",
    "integer 4111111111111111": b"\x03" + (4111111111111111).to_bytes(7, "big"),
    "true": b"\x02",
    "float64 1.5": b"\x04" + struct.pack(">d", 1.5),
    "decimal 1.50": b"\x05\x02\x00\x96",
    "bytes": b"\x07\x00\xff\x10",
    "date": b"\x0a" + struct.pack(">i", 20_000),
    "timestamp": b"\x08\x01" + struct.pack(">q", 1_700_000_000_123) + b"UTC",
    "longer than a block": b"\x06" + b"x" * 200,
}


def hkdf(secret, info, length):
    """RFC 5869 with SHA-256 and an empty salt; up to 32 bytes."""
    pseudorandom = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")[:length]


def main():
    key = hkdf(DOMAIN, b"sealflow hmac v1", 32)
    print("# Keyed hashes of hints of sealflow/1. Written once by make_hints.py; every later version computes the same.")
    for name, plaintext in PLAINTEXTS.items():
        print(f"---\nname: {name}\nsecret: {DOMAIN.hex()}\nplaintext: {plaintext.hex()}")
        print(f"hmac: {hmac.new(key, plaintext, 'sha256').hexdigest()}")


if __name__ == "__main__":
    main()
