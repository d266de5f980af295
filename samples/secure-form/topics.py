"""Makes the topics of the form, on the brokers that KAFKA_BROKERS names: `orders`, and `orders.dead` for what cannot be sealed."""

import os
import sys

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

admin = AdminClient({"bootstrap.servers": os.environ["KAFKA_BROKERS"]})
for topic, made in admin.create_topics([NewTopic(topic, num_partitions=3) for topic in ("orders", "orders.dead")]).items():
    try:
        made.result(timeout=30)
    except KafkaException as problem:
        if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            sys.exit(f"{topic}: {problem.args[0].str()}")
