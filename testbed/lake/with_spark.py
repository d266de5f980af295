"""Reads an encrypted file with Spark, or writes one with column keys. The KMS client is compiled first.

usage: with_spark.py read FILE[:COLUMN,…]…       prints for each {column: [values]} as JSON, or null if it is refused
       with_spark.py write FOLDER FOOTER_ARN CARD_ARN SALARY_ARN OPTION…
           writes 1,000 rows below FOLDER; options: `single` wrapping, `plaintext-footer`, `BITS` of the keys
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import pyspark
from pyspark.sql import SparkSession

HERE = pathlib.Path(__file__).parent
JARS = pathlib.Path(pyspark.__file__).parent / "jars"


def session(folder):
    classes = pathlib.Path(folder) / "classes"
    subprocess.run(["javac", "-cp", f"{JARS}/*", "-d", classes, HERE / "SealflowKms.java"], check=True)
    jar = pathlib.Path(folder) / "sealflow-kms.jar"
    subprocess.run(["jar", "cf", jar, "-C", classes, "."], check=True)
    hadoop = "spark.hadoop.parquet."
    return (
        SparkSession.builder.master("local[1]")
        .config("spark.driver.extraClassPath", str(jar))
        .config("spark.jars", str(jar))
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.warehouse.dir", f"{folder}/warehouse")
        .config(hadoop + "crypto.factory.class", "org.apache.parquet.crypto.keytools.PropertiesDrivenCryptoFactory")
        .config(hadoop + "encryption.kms.client.class", "SealflowKms")
        .getOrCreate()
    )


def read(spark, path, columns):
    """The columns of a file by name; an exception if it is refused."""
    frame = spark.read.parquet(path)
    rows = (frame.select(*columns) if columns else frame).collect()
    names = columns or frame.columns
    return {name: [row[name] for row in rows] for name in names}


def shown(spark, request):
    path, _, columns = request.partition(":")
    try:
        return read(spark, path, columns.split(",") if columns else [])
    except Exception as error:
        print(type(error).__name__, str(error)[:200], file=sys.stderr)
        return None


def write(spark, path, footer, card, salary, options):
    bits = [option for option in options if option.isdigit()]
    rows = [(n, f"4111-0000-{n:04}", 123450000 + n) for n in range(1000)]
    frame = spark.createDataFrame(rows, ["id", "card", "salary"]).coalesce(1)
    writer = frame.write.option("parquet.encryption.footer.key", footer)
    writer = writer.option("parquet.encryption.column.keys", f"{card}:card;{salary}:salary")
    writer = writer.option("parquet.encryption.data.key.length.bits", bits[0] if bits else "256")
    writer = writer.option("parquet.encryption.double.wrapping", str("single" not in options).lower())
    writer = writer.option("parquet.encryption.plaintext.footer", str("plaintext-footer" in options).lower())
    writer.parquet(path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spark = session(folder)
        if sys.argv[1] == "read":
            plain = lambda value: bytes(value).hex() if isinstance(value, bytearray) else str(value)
            for request in sys.argv[2:]:
                print(json.dumps(shown(spark, request), default=plain))
        else:
            write(spark, *sys.argv[2:6], sys.argv[6:])
        spark.stop()
