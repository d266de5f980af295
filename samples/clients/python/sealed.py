"""Seals JSON values before they leave, and opens what is answered: JOSE by joserfc, as docs/format.md has it."""

import base64
import hashlib
import json
import secrets
import time
import warnings
from dataclasses import dataclass
from decimal import Decimal

from joserfc import jwe, jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OctKey, OKPKey, RSAKey
from joserfc.registry import HeaderParameter

MAX_VALUES = 1 << 20
MAX_AGE_SECONDS = 3600
LONGEST_ENCLAVE_KEYS_SECONDS = 400 * 86_400
CLOCK_SKEW_SECONDS = 300


class _Registry(jwe.JWERegistry):
    max_protected_header_length = 2048  # of base64url; labels and row ids stand in headers
    max_ciphertext_length = 16 << 20


_MEMBERS = ("sf_client", "sf_dataset", "sf_label", "sf_row")
_REGISTRY = _Registry(
    header_registry={name: HeaderParameter(f"Sealflow's {name}", "str") for name in _MEMBERS},
    algorithms=["RSA-OAEP-256", "dir", "A256GCM"],
)
_PROOFS = jws.JWSRegistry(
    header_registry={"iat": HeaderParameter("when it was sealed", "int"), "jti": HeaderParameter("its name", "str")},
    algorithms=["HS256"],
)
_OWNERS = jws.JWSRegistry(algorithms=["EdDSA"])


def public_key(document: str) -> RSAKey:
    """The backend's key: what `sealflow keys public` prints, a JWK set (whose first key is the current one) or a JWK."""
    jwk = json.loads(document)
    key = RSAKey.import_key(jwk["keys"][0] if "keys" in jwk else jwk)
    if key.is_private:
        raise ValueError("this is a private key: it belongs to the backend alone")
    return key


@dataclass(frozen=True)
class EnclaveKey:
    """What the values of an enclave's columns are sealed to. `enclave_key` makes it: no other code should."""

    key: RSAKey
    dataset: str
    labels: frozenset
    issued: int  # keep it for the next time's `seen`
    expires: int


def enclave_key(text: str, owners, dataset: str, seen: int = 0) -> EnclaveKey:
    """The enclave's key out of what a server hands out at /.well-known/enclave-keys, or out of one document of it. Who serves it may have made
    it up: it is believed only if one of `owners`, thumbprints that you have from the policy's owners, signed it for this dataset. What was
    issued before `seen` is refused. Of several the latest counts."""
    if text.lstrip().startswith("{"):
        documents = json.loads(text).get("documents")
        if not isinstance(documents, list):
            raise ValueError("a bare key, or nothing that an owner signed")
    else:
        documents = [text.strip()]
    newest, refused = None, ValueError("there are no enclave keys")
    for document in documents[:64]:
        try:
            key = _owners_key(document, owners, dataset, seen)
        except (ValueError, TypeError, KeyError, IndexError, JoseError) as error:
            refused = error
        else:
            newest = key if newest is None or newest.issued < key.issued else newest
    if newest is None:
        raise refused
    return newest


def _owners_key(document, owners, dataset: str, seen: int) -> EnclaveKey:
    if not isinstance(document, str) or len(document) > 131_072 or document.count(".") != 2:
        raise ValueError("this is not what an owner signs")
    header = json.loads(base64.urlsafe_b64decode(document.split(".")[0] + "=="))
    if header.keys() != {"alg", "jwk", "kid", "typ"} or (header["alg"], header["typ"]) != ("EdDSA", "sealflow-enclave-keys"):
        raise ValueError("this is not what an owner signs")
    owner = OKPKey.import_key({name: header["jwk"][name] for name in ("kty", "crv", "x")})
    if owner.curve_name != "Ed25519" or owner.thumbprint() != header["kid"] or header["kid"] not in owners:
        raise ValueError("signed by somebody who is not pinned")
    with warnings.catch_warnings():
        # RFC 9864 calls the algorithm Ed25519; owners sign by its older name (RFC 8037), and with that curve alone.
        warnings.simplefilter("ignore", SecurityWarning)
        claims = json.loads(jws.deserialize_compact(document, owner, registry=_OWNERS).payload)
    # From here on the owner speaks.
    if claims.keys() != {"dataset", "labels", "keys", "iat", "exp"}:
        raise ValueError("members are missing, or unknown")
    if claims["dataset"] != dataset:
        raise ValueError("these are the keys of another dataset")
    issued, expires, now = claims["iat"], claims["exp"], time.time()
    if type(issued) is not int or type(expires) is not int or not 0 < expires - issued <= LONGEST_ENCLAVE_KEYS_SECONDS:
        raise ValueError("no span that can be")
    if now >= expires:
        raise ValueError("these keys have ended")
    if issued > now + CLOCK_SKEW_SECONDS:
        raise ValueError("these keys begin in the future")
    if issued < seen:
        raise ValueError("there have been newer keys")
    return EnclaveKey(public_key(json.dumps(claims["keys"][0])), dataset, frozenset(claims["labels"]), issued, expires)


class Session:
    """A fresh key, wrapped once to the backend's key. `token` goes along with the values that are sealed under it. With `mac`,
    this client's `mac_key`, each value says who sealed it, and is taken once."""

    @classmethod
    def for_enclave(cls, to: EnclaveKey, mac: OctKey | None = None) -> "Session":
        """For the values of an enclave: of the dataset and labels that the owner signed, and until the document ends."""
        session = cls(to.key, to.dataset, mac)
        session._labels = to.labels
        session._ends = min(session._ends, time.monotonic() + to.expires - time.time())
        return session

    def __init__(self, key: RSAKey, dataset: str, mac: OctKey | None = None):
        self._labels = None
        self._key = OctKey.generate_key(256)
        self._dataset = dataset
        self._mac = mac
        self._left = MAX_VALUES
        self._ends = time.monotonic() + MAX_AGE_SECONDS
        jwk = json.dumps({"kty": "oct", "k": self._key.as_dict(private=True)["k"]})
        self.token = _seal("RSA-OAEP-256", key.thumbprint(), {}, jwk, key)
        digest = hashlib.sha256(self.token.encode()).digest()
        self._id = base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()

    @property
    def is_used_up(self) -> bool:
        """Time to begin the next one."""
        return self._left <= 0 or time.monotonic() >= self._ends

    def seal(self, label: str, value, row: list | None = None) -> str:
        """A JSON value as a compact JWE. `row` for columns with `bind_row`: its id, then the index at each `[*]`."""
        if self.is_used_up:
            raise RuntimeError("the session is used up: begin the next one")
        if self._labels is not None and label not in self._labels:
            raise ValueError(f"the owner said nothing of {label}")
        self._left -= 1
        place = _place(self._dataset, label, row, self._mac)
        return _proved(self._mac, _seal("dir", self._id, place, to_json(value), self._key))


def seal_value(key: RSAKey, dataset: str, label: str, value, row: list | None = None, mac: OctKey | None = None) -> str:
    """A value with a key of its own, without a session: costs the backend one request to its KMS each."""
    place = _place(dataset, label, row, mac)
    return _proved(mac, _seal("RSA-OAEP-256", key.thumbprint(), place, to_json(value), key))


def mac_key(document: str) -> OctKey:
    """This client's own HMAC key: the JWK that `sealflow keys client` wrote."""
    jwk = json.loads(document)
    if (jwk.get("kty"), jwk.get("alg")) != ("oct", "HS256") or not jwk.get("kid"):
        raise ValueError("this is not a client's HMAC key: kty oct, alg HS256, kid its name")
    return OctKey.import_key(jwk)


def open_answer(key: RSAKey, answer: str, dataset: str, label: str) -> str:
    """The JSON text that was sealed to the public half of `key`, your own, as a value of this dataset and label."""
    opened = jwe.decrypt_compact(answer, key, registry=_REGISTRY)
    if (opened.protected.get("sf_dataset"), opened.protected.get("sf_label")) != (dataset, label):
        raise ValueError("the answer belongs to another dataset or label")
    return opened.plaintext.decode()


def to_json(value) -> str:
    """As `json.dumps`, but a `Decimal` stays as it is spelled: a float would lose digits."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{to_json(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    return json.dumps(value, allow_nan=False)


def _place(dataset: str, label: str, row: list | None, mac: OctKey | None) -> dict:
    place = {"sf_dataset": dataset, "sf_label": label}
    if row is not None:
        place["sf_row"] = to_json(row)
    return place if mac is None else place | {"sf_client": mac.kid}


def _proved(mac: OctKey | None, sealed: str) -> str:
    """The value with the proof that this client sealed it, under a name that no other has: sent again, it is refused."""
    if mac is None:
        return sealed
    header = {"alg": "HS256", "cty": "JWE", "kid": mac.kid, "iat": int(time.time()), "jti": secrets.token_urlsafe(16)}
    return jws.serialize_compact(header, sealed, mac, registry=_PROOFS)


def _seal(alg: str, kid: str, place: dict, plaintext: str, key) -> str:
    return jwe.encrypt_compact({"alg": alg, "enc": "A256GCM", "kid": kid} | place, plaintext, key, registry=_REGISTRY)
