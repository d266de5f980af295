"""Reads an encrypted file with PyArrow, or writes one with column keys.

usage: with_pyarrow.py read FILE[:COLUMN,…]…       prints for each {column: [values]} as JSON, or null if it is refused
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
    """The columns of a file by name; an exception if it is refused."""
    tools, connection = factory()
    properties = tools.file_decryption_properties(connection, pe.DecryptionConfiguration(cache_lifetime=timedelta(minutes=5)))
    file = pq.ParquetFile(path, decryption_properties=properties)
    table = file.read(columns=columns or None)
    return table.to_pydict()


def shown(request):
    path, _, columns = request.partition(":")
    try:
        return read(path, columns.split(",") if columns else [])
    except Exception as error:
        print(type(error).__name__, str(error)[:200], file=sys.stderr)
        return None


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
        for request in sys.argv[2:]:
            print(json.dumps(shown(request), default=lambda value: value.hex() if isinstance(value, bytes) else str(value)))
    else:
        write(*sys.argv[2:6])
