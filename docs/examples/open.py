"""Opens the worked example of docs/format.md without any of Sealflow's code.

An independent reading of the specification: needs Python 3.9 and the package `cryptography`.
Run it from anywhere: python docs/examples/open.py
"""

import base64
import re
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive(key, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(key)


def lp(data):
    return len(data).to_bytes(4, "little") + data


def aad(suite, key_id, dataset, label, row=None):
    fixed = b"sealflow/1" + bytes([suite]) + key_id + lp(dataset) + lp(label)
    return fixed + b"\x00" if row is None else fixed + b"\x01" + lp(row[0]) + lp(row[1])


def open_value(text, secret, dataset, label, row=None):
    """The plaintext encoding behind a text form; raises if anything was changed or moved."""
    if not text.startswith("sf1."):
        raise ValueError("not a sealed value")
    encoded = text[4:]
    value = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    suite, key_id = value[0], value[1:17]
    if derive(secret, b"sealflow key id v1", 16) != key_id:
        raise ValueError("another key")
    bound = aad(suite, key_id, dataset, label, row)
    if suite == 0x11:
        nonce, sealed = value[19:31], value[31:]
        return AESGCM(derive(secret, b"sealflow 0x11 v1", 32)).decrypt(nonce, sealed, bound)
    if suite == 0x12:
        return AESSIV(derive(secret, b"sealflow 0x12 v1", 64)).decrypt(value[17:], [bound])
    raise ValueError("unknown suite")


def unpadded(encoding):
    kind, value = encoding[0], encoding[1:]
    if kind & 0x80:
        length = int.from_bytes(value[:4], "little")
        value, zeros = value[4 : 4 + length], value[4 + length :]
        if len(value) != length or any(zeros):
            raise ValueError("bad padding")
    return kind & 0x7F, value


def main():
    document = (Path(__file__).parent.parent / "format.md").read_text(encoding="utf-8")
    example = document.split("<!-- begin:example -->")[1].split("<!-- end:example -->")[0]
    data_key = bytes.fromhex(re.search(r"data key +([0-9a-f]+)", example)[1])
    secret = bytes.fromhex(re.search(r"domain secret +([0-9a-f]+)", example)[1])
    plain, bound, domain = re.findall(r"text +(sf1\S+)", example)

    row = (b"order_id", b"\x06o-17" + (1).to_bytes(4, "big"))
    opened = [
        open_value(plain, data_key, b"payments", b"user.email"),
        open_value(bound, data_key, b"payments", b"cards[*].number", row),
        open_value(domain, secret, b"", b"domain:customers"),
    ]
    expected = [bytes.fromhex(text) for text in re.findall(r"plaintext +([0-9a-f]+)", example)]
    if opened != expected:
        raise SystemExit("the example does not open to what the document says")
    for encoding in opened:
        kind, value = unpadded(encoding)
        print(f"type {kind:02x}: {value.decode()}")

    moved = (b"order_id", b"\x06o-17" + (0).to_bytes(4, "big"))
    try:
        open_value(bound, data_key, b"payments", b"cards[*].number", moved)
    except Exception as refused:  # the library's own error
        print(f"moved to the first card: refused ({type(refused).__name__})")
    else:
        raise SystemExit("a moved value was opened")


if __name__ == "__main__":
    main()
