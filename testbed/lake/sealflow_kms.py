"""A KMS client for Parquet's key tools (PyArrow) over AWS KMS: what a user who reads Sealflow's files writes.

A `wrappedKEK` of Sealflow is `sfk1.` + base64url(CBOR envelope): the key as KMS wrapped it, and the names that its
encryption context is made of (docs/format.md). One of others is base64 of what KMS wrapped, without a context.
"""

import base64
import os

import boto3
import cbor2
import pyarrow.parquet.encryption as pe

ARN, WRAPPED, DATASET, KEY, ACL = 3, 4, 5, 6, 7


def kms():
    return boto3.client("kms", endpoint_url=os.environ["SEALFLOW_KMS_ENDPOINT"], region_name="eu-central-1")


def arn(key):
    """A key named by its id alone is one of `SEALFLOW_KMS_KEYS`: column keys cannot be ARNs, which have colons in them."""
    return key if ":" in key else os.environ["SEALFLOW_KMS_KEYS"] + key


def unwrap(wrapped, master_key):
    """The key behind `wrapped`, text as it stands in key material."""
    if wrapped.startswith("sfk1."):
        text = wrapped[len("sfk1."):]
        envelope = cbor2.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        answer = kms().decrypt(
            KeyId=envelope[ARN],
            CiphertextBlob=envelope[WRAPPED],
            EncryptionContext={
                "sealflow:dataset": envelope[DATASET],
                "sealflow:key": envelope[KEY],
                "sealflow:acl": envelope[ACL],
            },
        )
    else:
        answer = kms().decrypt(KeyId=arn(master_key), CiphertextBlob=base64.b64decode(wrapped))
    return answer["Plaintext"]


class SealflowKms(pe.KmsClient):
    def __init__(self, _config):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key_bytes, master_key_identifier):
        answer = kms().encrypt(KeyId=arn(master_key_identifier), Plaintext=key_bytes)
        return base64.b64encode(answer["CiphertextBlob"])

    def unwrap_key(self, wrapped_key, master_key_identifier):
        wrapped = wrapped_key.decode() if isinstance(wrapped_key, bytes) else wrapped_key
        return unwrap(wrapped, master_key_identifier)


def factory():
    return pe.CryptoFactory(SealflowKms), pe.KmsConnectionConfig()
