"""Reads an encrypted file with PyArrow, or writes one with column keys.

usage: with_pyarrow.py read FILE[:COLUMN,…]…       prints for each {column: [values]} as JSON, or null if it is refused
       with_pyarrow.py write FILE FOOTER_ARN CARD_ARN SALARY_ARN OPTION…      writes 1,000 rows; options: `single` wrapping,
           `plaintext-footer`, `elsewhere` (key material in a file of its
           own), `ctr`, `BITS` of the keys
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


def write(path, footer, card, salary, options):
    tools, connection = factory()
    bits = [int(option) for option in options if option.isdigit()]
    configuration = pe.EncryptionConfiguration(
        footer_key=footer,
        column_keys={card: ["card"], salary: ["salary"]},
        double_wrapping="single" not in options,
        data_key_length_bits=bits[0] if bits else 256,
        plaintext_footer="plaintext-footer" in options,
        internal_key_material="elsewhere" not in options,
        encryption_algorithm="AES_GCM_CTR_V1" if "ctr" in options else "AES_GCM_V1",
    )
    table = pa.table({
        "id": list(range(1000)),
        "card": [f"4111-0000-{n:04}" for n in range(1000)],
        "salary": [123450000 + n for n in range(1000)],
        "ratio": [n / 3 if n % 7 else float("nan") for n in range(1000)],
    })
    properties = tools.file_encryption_properties(connection, configuration, path)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties, write_page_index=True) as writer:
        writer.write_table(table, row_group_size=300)


if __name__ == "__main__":
    if sys.argv[1] == "read":
        for request in sys.argv[2:]:
            print(json.dumps(shown(request), default=lambda value: value.hex() if isinstance(value, bytes) else str(value)))
    else:
        write(*sys.argv[2:6], sys.argv[6:])
