"""Reads a file of `profile: duckdb` with DuckDB, under the key that KMS gives for its footer.

usage: with_duckdb.py FILE COLUMN…     prints {column: [values]} as JSON
"""

import base64
import json
import sys

import duckdb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealflow_kms import unwrap


def footer_key(path):
    """The key material is JSON in the last bytes of the file, in clear; its keys are wrapped."""
    with open(path, "rb") as file:
        tail = file.read()[-(1 << 20):]
    length = int.from_bytes(tail[-8:-4], "little")
    footer = tail[-8 - length:-8]
    start = footer.index(b'{"keyMaterialType"')
    material, _ = json.JSONDecoder().raw_decode(footer[start:].decode("utf-8", "ignore"))
    kek = unwrap(material["wrappedKEK"], material["masterKeyID"])
    wrapped = base64.b64decode(material["wrappedDEK"])
    return AESGCM(kek).decrypt(wrapped[:12], wrapped[12:], base64.b64decode(material["keyEncryptionKeyID"]))


path, columns = sys.argv[1], sys.argv[2:]
key = base64.b64encode(footer_key(path)).decode()
connection = duckdb.connect()
connection.execute(f"PRAGMA add_parquet_key('footer', '{key}')")
names = ", ".join(f'"{name}"' for name in columns)
rows = connection.execute(f"SELECT {names} FROM read_parquet('{path}', encryption_config={{footer_key: 'footer'}})").fetchall()
print(json.dumps({name: [row[n] for row in rows] for n, name in enumerate(columns)}, default=str))
