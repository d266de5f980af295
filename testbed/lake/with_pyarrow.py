"""Reads an encrypted file with PyArrow, or writes one with column keys.

usage: with_pyarrow.py read FILE [COLUMN…]         prints {column: [values]} as JSON
       with_pyarrow.py write FILE FOOTER_ARN COLUMN_ARN double|single
"""

import json
import sys
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
from sealflow_kms import factory


def read(path, columns):
    tools, connection = factory()
    properties = tools.file_decryption_properties(connection, pe.DecryptionConfiguration(cache_lifetime=timedelta(minutes=5)))
    file = pq.ParquetFile(path, decryption_properties=properties)
    table = file.read(columns=columns or None)
    print(json.dumps(table.to_pydict(), default=lambda value: value.hex() if isinstance(value, bytes) else str(value)))


def write(path, footer, column, wrapping):
    tools, connection = factory()
    configuration = pe.EncryptionConfiguration(
        footer_key=footer,
        column_keys={column: ["card"]},
        double_wrapping=wrapping == "double",
        data_key_length_bits=256,
        plaintext_footer=False,
    )
    table = pa.table({"id": list(range(100)), "card": [f"4111-{n:04}" for n in range(100)]})
    properties = tools.file_encryption_properties(connection, configuration)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(sys.argv[2], sys.argv[3:])
    else:
        write(*sys.argv[2:6])
