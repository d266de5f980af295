"""The form's server: gives out the page, takes sealed orders into Kafka, and answers with values sealed to the browser that sent them.

    python server.py --brokers localhost:9092 --keys keys.json --table lake --pipeline pipeline.yaml

It holds no key. It never has a card's number: not in what it takes, which the page sealed, and not in what it answers, which `sealflow read`
seals to the page's key. It listens on loopback: put your proxy with TLS before it. Nothing of a request is logged but its kind and its end.
"""

import argparse
import base64
import binascii
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from confluent_kafka import KafkaException, Producer

DATASET, LABEL = "orders", "card.number"
MAX_BODY_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
MAX_READERS = 2  # processes of `sealflow read` at a time
READ_SECONDS = 30
NO_TABLE = 66  # how `sealflow read` ends before the first order has landed
DELIVERY_SECONDS = 10
HERE = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html"),
    "/form.css": ("form.css", "text/css"),
    "/form.js": ("form.js", "text/javascript"),
    "/own-keys.js": ("own-keys.js", "text/javascript"),
    "/seal.js": ("seal.js", "text/javascript"),
}
# Scripts of this origin alone; a form that the script does not send is sent nowhere.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

ORDER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
ANSWER_PATH = re.compile(r"/orders/([^/]+)/answer")


class Refused(Exception):
    """What the caller is told, and with which status. Never holds anything of the request."""

    def __init__(self, status, words):
        super().__init__(words)
        self.status, self.words = status, words


# ---- what is taken: every member is checked, and none is taken that is not known


def check_order(document):
    """The record and its session, if the record is one of ours and its card is sealed for this place, in this session."""
    record, session = members(document, "record", "session")
    order_id, name, reader, card = members(record, "order_id", "name", "reader", "card")
    (number,) = members(card, "number")
    text(order_id, ORDER_ID, "the order number takes letters, digits and hyphens, up to 64")
    text(reader, THUMBPRINT, "reader is no thumbprint of a key")
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
        raise Refused(422, "the name takes 1 to 100 characters")
    token = protected(session, wrapped=True, limit=2048)
    if (token.get("alg"), token.get("enc")) != ("RSA-OAEP-256", "A256GCM"):
        raise Refused(422, "the session is none")
    sealed = protected(number, wrapped=False, limit=4096)
    kid = base64url(hashlib.sha256(session.encode()).digest()[:16])
    place = {"alg": "dir", "enc": "A256GCM", "kid": kid, "sf_dataset": DATASET, "sf_label": LABEL, "sf_row": json.dumps([reader])}
    if sealed != place:
        raise Refused(422, "the card's number is sealed for another place or session")
    # Made anew of what was checked: nothing else of the request goes on.
    return {"order_id": order_id, "name": name, "reader": reader, "card": {"number": number}}, session


def check_key(document):
    """The page's public key, and its thumbprint (RFC 7638)."""
    (jwk,) = members(document, "jwk")
    if not isinstance(jwk, dict) or not jwk.keys() <= {"kty", "n", "e", "alg", "use", "kid"}:
        raise Refused(422, "jwk is no public RSA key")
    kty, n, e = jwk.get("kty"), jwk.get("n"), jwk.get("e")
    text(n, BASE64URL, "jwk is no public RSA key")
    if (kty, e) != ("RSA", "AQAB") or len(n) not in (342, 512, 683):  # 2048, 3072, 4096 bits
        raise Refused(422, "jwk is no RSA key of 2048, 3072 or 4096 bits")
    required = json.dumps({"e": e, "kty": kty, "n": n}, separators=(",", ":"))
    return {"kty": kty, "n": n, "e": e}, base64url(hashlib.sha256(required.encode()).digest())


def members(value, *names):
    if not isinstance(value, dict) or value.keys() != set(names):
        raise Refused(422, f"expected an object of exactly these members: {', '.join(names)}")
    return [value[name] for name in names]


def text(value, pattern, words):
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Refused(422, words)


def protected(jwe, wrapped, limit):
    """The protected header of a compact JWE (RFC 7516). What is none was not sealed, and goes no further."""
    not_sealed = Refused(422, "this comes sealed, as a JWE, or not at all")
    if not isinstance(jwe, str) or len(jwe) > limit:
        raise not_sealed
    parts = jwe.split(".")
    if len(parts) != 5 or bool(parts[1]) != wrapped:
        raise not_sealed
    header, key, *rest = parts
    if not all(BASE64URL.fullmatch(part) for part in [header, *rest, *[key] * wrapped]):
        raise not_sealed
    try:
        parsed = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        raise not_sealed from None
    if not isinstance(parsed, dict):
        raise not_sealed
    return parsed


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---- where it goes, and where answers come from


class Orders:
    """The topic: an order is taken when all replicas in sync have it."""

    def __init__(self, brokers, topic):
        self.topic = topic
        self.producer = Producer(
            {
                "bootstrap.servers": brokers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "reconnect.backoff.ms": 1000,
                "delivery.timeout.ms": DELIVERY_SECONDS * 1000,
                "queue.buffering.max.messages": 1000,
            }
        )
        threading.Thread(target=self._poll, daemon=True).start()

    def take(self, record, session):
        reported, failure = threading.Event(), []

        def report(error, _message):
            if error is not None:
                failure.append(error.name())
            reported.set()

        try:
            self.producer.produce(
                self.topic,
                key=record["order_id"],
                value=json.dumps(record),
                headers=[("sealflow-session", session.encode())],
                on_delivery=report,
            )
        except (BufferError, KafkaException):
            raise Refused(503, "orders are not taken at the moment: send it again") from None
        if not reported.wait(DELIVERY_SECONDS + 5) or failure:
            say(f"an order was not delivered: {failure[0] if failure else 'no report'}")
            raise Refused(503, "it is not known whether the order was taken: send it again")

    def end(self):
        self.producer.flush(DELIVERY_SECONDS)

    def _poll(self):
        while True:
            self.producer.poll(0.5)


class Answers:
    """What `sealflow read` shows of a row to whom this server reads as, sealed to a key."""

    def __init__(self, sealflow, table, pipeline):
        self.command = [sealflow, "read", table, "--pipeline", pipeline, "--output", "json", "--columns", LABEL]
        self.slots = threading.BoundedSemaphore(MAX_READERS)

    def of(self, order_id, jwk, thumbprint):
        """The newest row of this order that was sent by the browser with this key. Nobody else's."""
        if not self.slots.acquire(blocking=False):
            raise Refused(503, "too many ask at the moment: ask again")
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".jwk") as file:
                json.dump(jwk, file)
                file.flush()
                # Both were checked: neither holds a quote, nor anything else that a filter gives a meaning.
                where = f'order_id = "{order_id}" and reader = "{thumbprint}"'
                command = [*self.command, "--where", where, "--seal-to", file.name]
                # What it says on standard error is for whoever runs this server, and names no value.
                ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=READ_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise Refused(503, "the answer took too long: ask again") from None
        finally:
            self.slots.release()
        if ran.returncode not in (0, NO_TABLE):
            say(f"sealflow read ended with {ran.returncode}")
            raise Refused(502, "the order cannot be read")
        rows = ran.stdout.splitlines()
        if not rows:
            raise Refused(404, "no such order of this browser has landed: ask again in a moment")
        return rows[-1]


# ---- HTTP


class Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "form", ""
    timeout = 10  # seconds that a read of the connection may take

    def do_GET(self):
        if self.path == "/keys.json":
            self.answering("GET /keys.json", lambda: (200, "application/json", self.server.keys.read_bytes()))
        elif self.path == "/enclave-keys.json" and self.server.enclave_keys:
            self.answering("GET /enclave-keys.json", lambda: (200, "application/json", self.server.enclave_keys.read_bytes()))
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self.answering("GET a file", lambda: (200, kind, (HERE / name).read_bytes()))
        else:
            self.answering("GET", self.nothing_here)

    def do_POST(self):
        answer = ANSWER_PATH.fullmatch(self.path)
        if self.path == "/orders":
            self.answering("POST /orders", self.take_order)
        elif answer:
            self.answering("POST /orders/ID/answer", lambda: self.give_answer(answer[1]))
        else:
            self.answering("POST", self.nothing_here)

    def take_order(self):
        record, session = check_order(self.body())
        self.server.orders.take(record, session)
        return 202, "application/json", b"{}"

    def give_answer(self, order_id):
        document = self.body()
        text(order_id, ORDER_ID, "the order number takes letters, digits and hyphens, up to 64")
        return 200, "application/json", self.server.answers.of(order_id, *check_key(document))

    def nothing_here(self):
        raise Refused(404, "there is nothing here")

    def body(self):
        # Other sites cannot send this type without being asked first, and nobody answers that question.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "say how long the body is")
        if int(length) > MAX_BODY_BYTES:
            raise Refused(413, "the body is too large")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None

    def answering(self, kind, make):
        try:
            status, content_type, body = make()
        except Refused as refused:
            status, content_type, body = refused.status, "application/json", json.dumps({"error": refused.words}).encode()
        except OSError as error:
            say(f"{kind}: {type(error).__name__}")
            status, content_type, body = 500, "application/json", b'{"error":"the server failed"}'
        say(f"{kind} {status}")
        self.answer(status, content_type, body)

    def answer(self, status, content_type, body):
        self.send_response_only(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """The library's own would answer and log parts of the request."""
        say(f"a request that is none: {int(code)}")
        self.request_version = self.protocol_version  # or what has no version would be answered without a head
        self.answer(int(code), "application/json", b'{"error":"this is no request that is answered here"}')

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, keys, enclave_keys, orders, answers):
        super().__init__(address, Handler)
        self.keys, self.enclave_keys, self.orders, self.answers = keys, enclave_keys, orders, answers
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request, client_address):
        self.slots.acquire()  # others wait in the listen queue
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        # A client that has gone, or a mistake of ours: by its name, since its text may hold what was sent.
        say(f"a connection ended by {sys.exc_info()[0].__name__}")


def say(line):
    print(line, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description="The secure form's server.")
    parser.add_argument("--port", type=int, default=8080, help="port of 127.0.0.1; 0 takes a free one")
    parser.add_argument("--brokers", required=True, help="HOST:PORT of Kafka")
    parser.add_argument("--topic", default="orders", help="topic that orders go to")
    parser.add_argument("--keys", type=Path, required=True, help="what `sealflow keys public` printed; read for every page")
    parser.add_argument("--enclave-keys", type=Path, help="the answer of a service's /.well-known/enclave-keys, if an input is data-enclave")
    parser.add_argument("--table", required=True, help="where the pipeline lands orders")
    parser.add_argument("--pipeline", required=True, help="the pipeline's file, for catalogue, owners and KMS")
    parser.add_argument("--sealflow", default="sealflow", help="the command, run with this process's AWS credentials")
    return parser.parse_args()


def main():
    options = arguments()
    orders = Orders(options.brokers, options.topic)
    answers = Answers(options.sealflow, options.table, options.pipeline)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Server(("127.0.0.1", options.port), options.keys, options.enclave_keys, orders, answers) as server:
        say(f"listening on http://127.0.0.1:{server.server_port}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            orders.end()


if __name__ == "__main__":
    main()
