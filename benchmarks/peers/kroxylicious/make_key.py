"""Makes the key encryption key of the comparison in moto: make_key.py ENDPOINT"""

import sys

import boto3

kms = boto3.client("kms", endpoint_url=sys.argv[1], region_name="eu-central-1", aws_access_key_id="test", aws_secret_access_key="test")
key = kms.create_key(Description="benchmark")["KeyMetadata"]["KeyId"]
kms.create_alias(AliasName="alias/sealflow-bench", TargetKeyId=key)
print(key)
