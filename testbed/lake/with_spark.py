"""Reads an encrypted file with Spark, or writes one with column keys. The KMS client is compiled first.

usage: with_spark.py read FILE[:COLUMN,…]…       prints for each {column: [values]} as JSON, or null if it is refused
       with_spark.py write FILE FOOTER_ARN COLUMN_ARN
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


def write(spark, path, footer, column):
    frame = spark.createDataFrame([(n, f"4111-{n:04}") for n in range(100)], ["id", "card"]).coalesce(1)
    frame.write.option("parquet.encryption.footer.key", footer).option(
        "parquet.encryption.column.keys", f"{column}:card"
    ).option("parquet.encryption.data.key.length.bits", "256").parquet(path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        spark = session(folder)
        if sys.argv[1] == "read":
            plain = lambda value: bytes(value).hex() if isinstance(value, bytearray) else str(value)
            for request in sys.argv[2:]:
                print(json.dumps(shown(spark, request), default=plain))
        else:
            write(spark, *sys.argv[2:5])
        spark.stop()
