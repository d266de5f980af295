"""Tink for Python as a peer: one request a line on standard input, one answer a line on standard output.

    seal VALUES SIZE  or  open VALUES SIZE   ->   CPU-NANOSECONDS WALL-NANOSECONDS
"""

import sys
import time

import tink
from tink import aead

ASSOCIATED_DATA = bytes([7]) * 80


def main():
    aead.register()
    primitive = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)
    for line in sys.stdin:
        what, values, size = line.split()
        plaintext = bytes([6]) * int(size)
        sealed = primitive.encrypt(plaintext, ASSOCIATED_DATA)
        if primitive.decrypt(sealed, ASSOCIATED_DATA) != plaintext:
            raise SystemExit("it does not open what it sealed")
        call, text = (primitive.encrypt, plaintext) if what == "seal" else (primitive.decrypt, sealed)
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        for _ in range(int(values)):
            call(text, ASSOCIATED_DATA)
        print(time.process_time_ns() - cpu, time.perf_counter_ns() - wall, flush=True)


if __name__ == "__main__":
    main()
