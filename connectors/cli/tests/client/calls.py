"""The functions of the sample that its script does not use, for the tests."""

import json
import sys
from pathlib import Path

from joserfc.jwk import RSAKey

from sealed import open_answer, public_key, seal_value

what, path = sys.argv[1], Path(sys.argv[2])
if what == "make-key":
    key = RSAKey.generate_key(2048)
    path.write_bytes(key.as_pem(private=True))
    print(json.dumps(key.as_dict(private=False)))
elif what == "open":
    print(open_answer(RSAKey.import_key(path.read_text()), sys.stdin.read(), "payments", "card"), end="")
else:
    print(seal_value(public_key(path.read_text()), "payments", "card", json.load(sys.stdin)))
