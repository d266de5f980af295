"""Chromium for the tests: a page on loopback whose functions are called by lines on standard input.

python3 drive.py FOLDER…    serves the folders' .js files to a page (http://localhost, so that it has WebCrypto), and opens it in
Chromium without a window. Each line of input is [FUNCTION, ARGUMENT]: the export of that name of `page.js` is awaited with the
argument, and a line {"value": …} or {"error": TEXT} is the answer. The page stays the same until the input ends.

python3 drive.py --steps PROFILE    opens no page of its own. Each line of input is a step that a person would do, or a look at the page:
["open", URL], ["type", [SELECTOR, TEXT]], ["press", SELECTOR], ["reload", null], ["look", EXPRESSION] (its value is the answer). What
Chromium writes stays in the folder PROFILE. The name insecure.test is this machine's, and to Chromium no safe one.

WebDriver (https://www.w3.org/TR/webdriver2/) by the standard library alone.
"""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

PAGE = b"<!doctype html><meta charset=utf-8><title>test</title><body></body>"
CALL = """
const [name, argument, done] = arguments
import('/page.js')
  .then((page) => page[name](argument))
  .then((value) => done({ value }), (error) => done({ error: String(error) }))
"""


def main():
    if sys.argv[1] == "--steps":
        profile = sys.argv[2]
        with window(profile) as session:
            answer_lines(lambda step, argument: {"value": STEPS[step](session, argument)})
        return
    page = serve([Path(folder) for folder in sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="sealflow-chromium-", ignore_cleanup_errors=True) as profile, window(profile) as session:
        session.post("/url", {"url": page})
        session.post("/timeouts", {"script": 60_000})
        answer_lines(lambda name, argument: session.post("/execute/async", {"script": CALL, "args": [name, argument]}))


def answer_lines(answer):
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


STEPS = {
    "open": lambda session, url: session.post("/url", {"url": url}),
    "reload": lambda session, _: session.post("/refresh", {}),
    "type": lambda session, to: session.post(f"/element/{session.element(to[0])}/value", {"text": to[1]}),
    "press": lambda session, selector: session.post(f"/element/{session.element(selector)}/click", {}),
    "look": lambda session, expression: session.post("/execute/sync", {"script": f"return {expression}", "args": []}),
}


@contextlib.contextmanager
def window(profile):
    """A window of a Chromium of its own."""
    driver, port = start(profile)
    try:
        session = Session(f"http://127.0.0.1:{port}", profile)
        try:
            yield session
        finally:
            session.delete()
    finally:
        driver.terminate()
        driver.wait()


def start(profile):
    """chromedriver and its port. It takes one of IPv6 that may be taken in IPv4, and ends then: it is started again."""
    for _ in range(5):
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment(profile)
        )
        said = []
        for line in driver.stdout:
            said.append(line)
            if "started successfully on port" in line:
                # What it says after that is read too, or its pipe would fill.
                threading.Thread(target=driver.stdout.read, daemon=True).start()
                return driver, int(line.rstrip().rstrip(".").rsplit(" ", 1)[1])
        driver.wait()
    sys.exit("chromedriver does not start: " + "".join(said))


def environment(home):
    """Chromium writes into its home, whatever its profile is."""
    return {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}


class Session:
    """A window of Chromium."""

    def __init__(self, driver, profile):
        arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"]
        arguments.append("--host-resolver-rules=MAP insecure.test 127.0.0.1")
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # root has none
        options = {"binary": shutil.which("chromium"), "args": arguments}
        self.url = f"{driver}/session"
        made = self.post("", {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}})
        self.url = f"{driver}/session/{made['sessionId']}"

    def post(self, path, body):
        return self._request("POST", path, json.dumps(body).encode())

    def element(self, selector):
        (found,) = self.post("/element", {"using": "css selector", "value": selector}).values()
        return found

    def delete(self):
        self._request("DELETE", "", None)

    def _request(self, method, path, body):
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}, method=method)
        # Loopback: never through a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            sys.exit(f"WebDriver: {value['error']}: {value['message']}")


def serve(folders):
    """The folders' scripts under one origin, with a policy that lets nothing else run; returns its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            found = [folder / name for folder in folders if name.endswith(".js") and "/" not in name and (folder / name).is_file()]
            if found:
                self.answer(200, "text/javascript", found[0].read_bytes())
            elif name == "":
                self.answer(200, "text/html", PAGE)
            else:
                self.answer(404, "text/plain", b"")

        def answer(self, status, kind, body):
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Security-Policy", "default-src 'none'; script-src 'self'")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://localhost:{server.server_port}/"


if __name__ == "__main__":
    main()
