"""Writes and reads a table with PyArrow's modular encryption, and says what that cost.

usage: pyarrow_peer.py PLAIN.parquet zstd|snappy GROUP_ROWS PROTECTED_COLUMN…

Answers each line `write` or `read` on standard input with CPU and wall nanoseconds. One thread; in memory. The key service is
a function of this process: what is measured asks it once, and takes its keys from PyArrow's cache afterwards.
"""

import base64
import sys
import time
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

LEVEL = {"zstd": 3, "snappy": None}


class InMemory(pe.KmsClient):
    """Not a key service: the cost of one is not what is compared."""

    def __init__(self, _config):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes, _master_key):
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key, _master_key):
        return base64.b64decode(wrapped_key)


def main():
    path, codec, group_rows, *protected = sys.argv[1:]
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    table = pq.read_table(path, use_threads=False)
    schema = pq.ParquetFile(path).schema
    leaves = [schema.column(n).path for n in range(len(schema))]
    missing = set(protected) - set(leaves)
    if missing:
        sys.exit(f"there are no columns {missing} among {leaves}")
    tools, connection = pe.CryptoFactory(InMemory), pe.KmsConnectionConfig()
    encryption = pe.EncryptionConfiguration(
        footer_key="ops",
        # Every leaf is named, as Sealflow does it: those that are not are left in clear.
        column_keys={"pii": protected, "ops": [leaf for leaf in leaves if leaf not in protected]},
        double_wrapping=True,
        data_key_length_bits=256,
        plaintext_footer=False,
        cache_lifetime=timedelta(hours=1),
    )
    decryption = pe.DecryptionConfiguration(cache_lifetime=timedelta(hours=1))

    def write():
        sink = pa.BufferOutputStream()
        properties = tools.file_encryption_properties(connection, encryption)
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression=codec,
            compression_level=LEVEL[codec],
            encryption_properties=properties,
            write_page_index=True,
        ) as writer:
            writer.write_table(table, row_group_size=int(group_rows))
        return sink.getvalue()

    def read(file):
        properties = tools.file_decryption_properties(connection, decryption)
        reader = pq.ParquetFile(pa.BufferReader(file), decryption_properties=properties)
        return sum(batch.num_rows for batch in reader.iter_batches(batch_size=8192, use_threads=False))

    file = write()
    if read(file) != table.num_rows or file.to_pybytes()[-4:] != b"PARE":
        sys.exit("it does not read what it wrote, or wrote it in clear")
    for line in sys.stdin:
        work = {"write": write, "read": lambda: read(file)}[line.strip()]
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        work()
        print(time.process_time_ns() - cpu, time.perf_counter_ns() - wall, flush=True)


if __name__ == "__main__":
    main()
