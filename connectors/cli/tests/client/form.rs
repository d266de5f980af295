//! The browser form, end to end: a number typed into the page is sealed there, goes by HTTP, the sample's server and Kafka into a
//! table, and comes back sealed to the page, which shows it. Nothing between has it in clear.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sealflow::columns::testing::Canary;
use sealflow::flow::hybrid::AnswerKey;
use sealflow_client::RsaPublicJwk;
use sealflow_testbed::{Message, Proxy, Site};
use serde_json::{Value, json};

use crate::bench::another_key;
use crate::clean::assert_clean;
use crate::clients::Browser;
use crate::common::Place;
use crate::enclave::Owner;
use crate::form_bench::{Form, LABEL, PATIENCE, Page, Server, copy_sample, order, python};

/// No test number of anybody's, so that nothing else writes it.
const CARD: &str = "4929318846027351";
const NAME: &str = "Philomena Nightingale";

/// Whether bytes hold the card's number, in any spelling: those of [`Canary`], and percent-encoding.
fn shows_card(canary: &Canary, bytes: &[u8]) -> bool {
    let percent: String = CARD.bytes().map(|byte| format!("%{byte:02x}")).collect();
    canary.is_in(bytes) || contains(&bytes.to_ascii_lowercase(), percent.as_bytes())
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn public(jwk: &str) -> RsaPublicJwk {
    RsaPublicJwk::from_json(jwk.as_bytes()).unwrap()
}

#[test]
fn a_number_typed_into_the_page_comes_back_to_it_and_is_in_clear_nowhere_between() {
    let test = "the browser form end to end";
    let Some(form) = Form::new(test) else { return };
    let Some(browser) = Browser::of_steps(test, &form.site.path().join("chromium")) else {
        return;
    };
    let proxy = Proxy::start(&format!("127.0.0.1:{}", form.server.port), 1).unwrap();
    proxy.record();
    let mut page = Page(browser);
    page.open(&format!("http://{}/", proxy.address()));
    page.send("order-1", NAME, CARD);
    assert_eq!(
        (page.text("#error"), page.text("#status")),
        (String::new(), "The order was taken.".to_owned())
    );
    assert_eq!(page.text("#card"), "", "emptied");

    // Shown once it has landed; and by the same browser at any time later, whose key has stayed in it.
    let until = Instant::now() + PATIENCE;
    page.press_show();
    while page.text("#shown").is_empty() {
        let error = page.text("#error");
        let landing = form.landing.last_lines();
        assert!(
            error.contains("has landed") && Instant::now() < until,
            "{error}\n{landing}"
        );
        std::thread::sleep(Duration::from_millis(300));
        page.press_show();
    }
    assert_eq!(page.text("#shown"), CARD);
    page.step("reload", &Value::Null);
    page.wait_until_it_is_ready();
    assert_eq!(
        (page.text("#card"), page.text("#shown")),
        (String::new(), String::new())
    );
    page.look_at("order-1");
    assert_eq!(
        (page.text("#shown"), page.text("#error")),
        (CARD.to_owned(), String::new())
    );
    let kept = page.look("[location.pathname + location.search + location.hash, document.cookie, localStorage.length, sessionStorage.length]");
    assert_eq!(kept, json!(["/", "", 0, 0]));

    nobody_else_gets_it(&form, &mut page);
    drop(page);

    // Nothing that went between browser and server shows it, in a recording that shows what it should.
    let (canary, recorded) = (Canary::new(CARD), proxy.recorded());
    let piece = |wanted: &str| recorded.iter().find(|piece| contains(piece, wanted.as_bytes()));
    let Some(sent) = piece(NAME) else {
        panic!("the recording does not have what was typed in clear");
    };
    assert!(piece("/order-1/answer").is_some() && piece("\"number\":\"eyJ").is_some());
    for piece in &recorded {
        assert!(!shows_card(&canary, piece), "{}", String::from_utf8_lossy(piece));
    }
    let escaped: String = CARD
        .chars()
        .map(|digit| format!("\\u00{:02x}", u32::from(digit)))
        .collect();
    let percent: String = CARD.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut spellings = vec![CARD.to_owned(), hex::encode(CARD), escaped, percent];
    for before in ["", "\"", "{\""] {
        spellings.push(STANDARD.encode(format!("{before}{CARD}\"")));
        spellings.push(URL_SAFE_NO_PAD.encode(format!("{before}{CARD}\"")));
    }
    for spelling in spellings {
        let with = [sent, format!("\n{spelling}\n").as_bytes()].concat();
        assert!(shows_card(&canary, &with), "{spelling} would be found");
    }
    // Nor does anything else that was written: topics, table, catalogue, logs, the browser's own files.
    let Form {
        kafka,
        site,
        server,
        landing,
        ..
    } = form;
    assert!(server.log().contains("POST /orders 202"));
    drop((server, landing));
    for file in ["server.log", "landing.log", "chromium", "lake", "catalogue"] {
        assert!(site.path().join(file).exists(), "{file}");
    }
    let holds = |bytes: &[u8]| shows_card(&canary, bytes);
    assert_clean(site.path(), &holds);
    assert_clean(&kafka.data_dir(), &holds);
}

/// The order is there, and: what comes in clear is not taken; another key gets no answer, also not by sending the sealed number again
/// as its own.
fn nobody_else_gets_it(form: &Form, page: &mut Page) {
    let server = &form.server;
    let mut clear = order(&form.to, "order-9", "1", &public(&another_key().1));
    clear["record"]["card"]["number"] = CARD.into();
    let (status, said) = server.post("/orders", &clear.to_string());
    assert!(status == 422 && said.contains("comes sealed"), "{status} {said}");

    let (key, jwk) = another_key();
    let stranger = public(&jwk).thumbprint().to_string();
    let ask = format!(r#"{{"jwk":{jwk}}}"#);
    let (status, said) = server.post("/orders/order-1/answer", &ask);
    assert_eq!((status, said.contains("eyJ")), (404, false));
    let taken = form.topics.read_all("orders");
    assert_eq!(taken.len(), 1, "what was refused is in no topic");
    let (name, session) = &taken[0].headers[0];
    assert_eq!((name.as_str(), taken[0].headers.len()), ("sealflow-session", 1));
    let record: Value = serde_json::from_slice(taken[0].value.as_ref().unwrap()).unwrap();
    assert_eq!(record["name"], NAME);
    let session = String::from_utf8(session.clone().unwrap()).unwrap();
    let mut again = json!({ "record": record, "session": session });
    again["record"]["reader"] = stranger.clone().into();
    assert_eq!(server.post("/orders", &again.to_string()).0, 422);
    // Past the server, as whoever may write to the topic can; the policy binds the value to its reader.
    let past_the_server = Message {
        headers: taken[0].headers.clone(),
        ..Message::new(0, again["record"].to_string())
    };
    form.topics.produce("orders", &[past_the_server]);
    // With the header of the value written anew the server cannot tell; the value can.
    let sealed = record["card"]["number"].as_str().unwrap();
    let (header, rest) = sealed.split_once('.').unwrap();
    let mut header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    header["sf_row"] = json!([stranger]).to_string().into();
    let header = URL_SAFE_NO_PAD.encode(header.to_string());
    again["record"]["card"]["number"] = format!("{header}.{rest}").into();
    assert_eq!(server.post("/orders", &again.to_string()), (202, "{}".to_owned()));
    let until = Instant::now() + PATIENCE;
    let letters = loop {
        let letters = form.topics.read_all("orders.dead");
        if letters.len() == 2 {
            break letters;
        }
        assert!(Instant::now() < until, "{}", form.landing.last_lines());
        std::thread::sleep(Duration::from_millis(200));
    };
    for letter in letters {
        let letter: Value = serde_json::from_slice(letter.value.as_ref().unwrap()).unwrap();
        assert_eq!(letter["code"], "cannot-open");
    }

    // An order of the stranger's own comes after all that, and is answered: to its key alone.
    let own = order(&form.to, "order-2", "a number of mine", &public(&jwk));
    assert_eq!(server.post("/orders", &own.to_string()).0, 202);
    let answer = form.answer("order-2", &jwk);
    let opened = key.open(&answer).unwrap();
    assert_eq!(opened.expose(), b"\"a number of mine\"");
    assert_eq!(server.post("/orders/order-1/answer", &ask).0, 404);
    page.look_at("order-2");
    let (shown, error) = (page.text("#shown"), page.text("#error"));
    assert!(
        shown.is_empty() && error.contains("no such order of this browser"),
        "{error}"
    );
}

/// The server alone, before a broker that is not there, and with this command instead of `sealflow`.
fn lonely_server(test: &str, place: &Place, keys: &str, sealflow: &str) -> Option<Server> {
    let python = python(test)?;
    copy_sample(&place.path(""));
    place.write("keys.json", keys);
    let mut command = std::process::Command::new(python);
    command.current_dir(place.path(""));
    Some(Server::start(
        command,
        "127.0.0.1:1",
        sealflow,
        &place.path("server.log"),
    ))
}

#[test]
fn the_page_says_what_is_wrong_and_shows_nothing_that_is_not_its_own() {
    let test = "the browser form's errors";
    let (place, (_, backend)) = (Place::new(), another_key());
    let Some(server) = lonely_server(test, &place, &backend, "sealflow") else {
        return;
    };
    let Some(browser) = Browser::of_steps(test, &place.path("chromium")) else {
        return;
    };
    let proxy = Proxy::start(&format!("127.0.0.1:{}", server.port), 1).unwrap();
    proxy.record();
    let mut page = Page(browser);
    let expect = |page: &mut Page, said: &str| {
        let (error, shown) = (page.text("#error"), page.text("#shown"));
        assert!(error.contains(said) && shown.is_empty(), "{error}; shown: {shown}");
    };

    // No WebCrypto where the page did not come safely: no button works, and Enter sends nothing.
    page.open(&format!("http://insecure.test:{}/", proxy.port()));
    let until = Instant::now() + PATIENCE;
    while page.text("#error").is_empty() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(50));
    }
    expect(&mut page, "needs HTTPS");
    for (at, text) in [
        ("#order-id", "order-1"),
        ("#name", NAME),
        ("#card", &format!("{CARD}\n")),
    ] {
        page.step("type", &json!([at, text]));
    }
    assert_eq!(
        page.look("document.querySelectorAll('button:enabled').length"),
        json!(0)
    );

    // A key that is not one of those that the page was given.
    let html = place.read("index.html");
    let other = public(&another_key().1).thumbprint().to_string();
    let pins = |pins: &str| html.replace("data-pins=\"\"", &format!("data-pins=\"{pins}\""));
    place.write("index.html", pins(&other));
    let address = format!("http://{}/", proxy.address());
    page.open(&address);
    page.send("order-1", NAME, CARD);
    expect(&mut page, "a key that this page does not know");

    // Sent past the script, it goes nowhere; and no script runs but the page's own.
    page.look("(document.querySelector('#order').submit(), null)");
    page.look("(() => { try { document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' })) } catch {} })()");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(page.look("[location.href, window.ran ?? 0]"), json!([address, 0]));
    let sent = proxy.recorded().concat();
    assert!(contains(&sent, b"GET /keys.json") && !contains(&sent, b"order-1") && !contains(&sent, b"POST /"));

    // A server that does not know whether the order was taken.
    place.write(
        "index.html",
        pins(&format!("{other} {}", public(&backend).thumbprint())),
    );
    page.open(&address);
    page.send("order-1", NAME, CARD);
    expect(&mut page, "it is not known whether the order was taken");
    assert_eq!(page.text("#card"), "");

    // What the server answers opens only if it was sealed to this page, for this place.
    let answering = |page: &mut Page, number: Value| {
        let row = json!({ "card": { "number": number } }).to_string();
        let answer =
            format!("window.fetch = async (_, {{ body }}) => {{ window.asked = body; return new Response({row:?}) }}");
        page.look(&format!("({answer}, null)"));
        page.look_at("order-1");
    };
    let sealed = |jwk: &str, dataset: &str, label: &str| -> Value {
        let key = AnswerKey::new(&public(jwk), dataset).unwrap();
        key.seal(label, format!("\"{CARD}\"").as_bytes()).unwrap().into()
    };
    answering(&mut page, Value::Null);
    expect(&mut page, "may not open this");
    let asked: Value = serde_json::from_str(page.look("window.asked").as_str().unwrap()).unwrap();
    let own = asked["jwk"].to_string();
    assert!(asked["jwk"].get("d").is_none());
    answering(&mut page, sealed(&another_key().1, "orders", LABEL));
    expect(&mut page, "does not open here");
    for (dataset, label) in [("payments", LABEL), ("orders", "name")] {
        answering(&mut page, sealed(&own, dataset, label));
        expect(&mut page, "does not open here");
    }
    answering(&mut page, CARD.into());
    expect(&mut page, "does not open here");
    answering(&mut page, sealed(&own, "orders", LABEL));
    assert_eq!(
        (page.text("#shown"), page.text("#error")),
        (CARD.to_owned(), String::new())
    );

    page.open(&address);
    page.wait_until_it_is_ready();
    drop(server);
    page.look_at("order-1");
    expect(&mut page, "cannot be reached");
    drop(page);
    let canary = Canary::new(CARD);
    assert!(proxy.recorded().iter().all(|piece| !shows_card(&canary, piece)));
    assert_clean(&place.path(""), &|bytes| shows_card(&canary, bytes));
}

#[test]
fn a_server_that_serves_keys_as_it_likes_gets_no_value_of_the_enclave_out_of_the_page() {
    let test = "enclave keys in the browser form";
    let (place, owner, (_, bare)) = (Place::new(), Owner::new(), another_key());
    let Some(server) = lonely_server(test, &place, &bare, "sealflow") else {
        return;
    };
    let html = place
        .read("index.html")
        .replace("data-seal=\"card.number\"", "data-seal=\"card.number\" data-enclave");
    assert!(html.contains(" data-enclave required"));
    let pinned = |owners: &str| html.replace("data-owners=\"\"", &format!("data-owners=\"{owners}\""));
    place.write("index.html", pinned(&owner.thumbprint()));
    let Some(browser) = Browser::of_steps(test, &place.path("chromium")) else {
        return;
    };
    let proxy = Proxy::start(&format!("127.0.0.1:{}", server.port), 1).unwrap();
    proxy.record();
    let mut page = Page(browser);
    let address = format!("http://{}/", proxy.address());
    let mut send = |document: &str, said: &str| {
        place.write("enclave-keys.json", document);
        page.open(&address);
        page.send("order-1", NAME, CARD);
        let error = page.text("#error");
        assert!(error.contains(said), "{document}: {error}");
    };
    let answer = |document: &str| match document.starts_with('{') {
        true => document.to_owned(),
        false => format!("{{\"documents\":[\"{document}\"]}}"),
    };
    let older = answer(&owner.signed_ago("orders", &[LABEL], Duration::from_secs(600)));
    for (_, document) in owner.hostile("orders", LABEL) {
        send(&answer(&document), "no key of the enclave that this page can believe");
    }
    // Nothing of it has left the page, sealed or not.
    let sent = proxy.recorded().concat();
    assert!(contains(&sent, b"GET /enclave-keys.json") && !contains(&sent, b"POST /") && !contains(&sent, b"order-1"));

    // The owner's word: the page seals, and what it sends the enclave opens. There is no broker to take it.
    send(
        &answer(&owner.signed_ago("orders", &[LABEL], Duration::ZERO)),
        "it is not known whether",
    );
    let sent = String::from_utf8_lossy(&proxy.recorded().concat()).into_owned();
    let body = sent.split("\r\n\r\n").find(|body| body.starts_with("{\"record\""));
    let body = serde_json::Deserializer::from_str(body.unwrap())
        .into_iter::<Value>()
        .next();
    let order = body.unwrap().unwrap();
    let number = order["record"]["card"]["number"].as_str().unwrap();
    assert_eq!(
        owner.open(order["session"].as_str().unwrap(), number),
        format!("\"{CARD}\"")
    );
    // From then on this browser takes nothing older, and without a pinned owner nothing at all.
    send(&older, "there have been newer keys");
    place.write("index.html", pinned(""));
    send(
        &answer(&owner.signed_ago("orders", &[LABEL], Duration::ZERO)),
        "does not know",
    );
    let canary = Canary::new(CARD);
    assert!(proxy.recorded().iter().all(|piece| !shows_card(&canary, piece)));
}

#[test]
fn the_server_takes_nothing_in_clear_and_no_name_that_means_something_else() {
    let (place, (_, backend), (_, jwk)) = (Place::new(), another_key(), another_key());
    let stand_in = place.write("stand-in", "#!/bin/sh\necho \"$@\" >>ran\necho '{}'\n");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&stand_in, executable).unwrap();
    let test = "what the form's server refuses";
    let Some(server) = lonely_server(test, &place, &backend, stand_in.to_str().unwrap()) else {
        return;
    };
    let good = order(&public(&backend), "order-1", CARD, &public(&jwk));
    let changed = |pointer: &str, value: Value| {
        let mut order = good.clone();
        *order.pointer_mut(pointer).unwrap() = value;
        order.to_string()
    };
    let refused = |(status, said): (u16, String), expected: u16| {
        assert_eq!(status, expected, "{said}");
        assert!(!said.contains("4929") && !said.contains("hostile"), "{said}");
    };
    // This one passes every check: what is refused below is so for what was changed.
    refused(server.post("/orders", &good.to_string()), 503);
    let other_session = order(&public(&backend), "order-1", CARD, &public(&jwk))["session"].clone();
    let (dots, wrapped) = (format!("{CARD}...."), good["session"].clone());
    for (pointer, value) in [
        ("/record/card/number", json!(CARD)),
        ("/record/card/number", json!(4_929_318_846_027_351_u64)),
        ("/record/card/number", json!(null)),
        (
            "/record/card/number",
            json!({ "sealed": good["record"]["card"]["number"] }),
        ),
        ("/record/card/number", json!(format!("eyJ{CARD}"))),
        ("/record/card/number", json!(dots)),
        ("/record/card/number", json!(format!("eyJ9..{CARD}.{CARD}.{CARD}"))),
        ("/record/card/number", wrapped),
        ("/record/card", json!(CARD)),
        (
            "/record/card",
            json!({ "number": good["record"]["card"]["number"], "code": "hostile" }),
        ),
        ("/record/order_id", json!("' or 1=1")),
        ("/record/order_id", json!("--help")),
        ("/record/order_id", json!("../x")),
        ("/record/order_id", json!("order-1\n")),
        ("/record/order_id", json!("a".repeat(65))),
        ("/record/order_id", json!(7)),
        ("/record/name", json!("")),
        ("/record/name", json!("hostile\r\nname")),
        ("/record/name", json!("a".repeat(101))),
        ("/record/reader", json!(public(&backend).thumbprint().to_string())),
        ("/record/reader", json!("\" or 1=1")),
        ("/session", other_session),
        ("/session", json!(null)),
        ("/session", json!("hostile")),
        ("/session", good["record"]["card"]["number"].clone()),
        ("/record", json!([CARD])),
    ] {
        refused(server.post("/orders", &changed(pointer, value)), 422);
    }
    let mut more = good.clone();
    more["record"]["note"] = CARD.into();
    refused(server.post("/orders", &more.to_string()), 422);
    refused(server.post("/orders", &format!("[{good}]")), 422);
    refused(server.post("/orders", &"[".repeat(15_000)), 400);
    refused(server.post("/orders", "{\"hostile"), 400);
    refused(server.post("/hostile", &good.to_string()), 404);
    let head = |more: &str| format!("POST /orders HTTP/1.1\r\nHost: x{more}");
    for (more, expected) in [
        ("\r\nContent-Type: text/plain\r\nContent-Length: 2", 415),
        ("\r\nContent-Length: 2", 415),
        ("\r\nContent-Type: application/json", 411),
        ("\r\nContent-Type: application/json\r\nContent-Length: -2", 411),
        (
            "\r\nContent-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked",
            411,
        ),
        ("\r\nContent-Type: application/json\r\nContent-Length: 16385", 413),
    ] {
        let (status, _, said) = server.ask(&head(more), "{}");
        refused((status, said), expected);
    }
    for line in [
        "hostile",
        "hostile / HTTP/1.1",
        "DELETE /orders HTTP/1.1",
        "GET / HTTP/hostile",
        "GET /../server.py HTTP/1.1",
        "GET /keys.json%00 HTTP/1.1",
    ] {
        let (status, _, said) = server.ask(line, "");
        assert!((400..=505).contains(&status), "{line}: {status}");
        refused((status, said), status);
    }

    // Only an order's number gets as far as the command, as one argument.
    let ask = format!(r#"{{"jwk":{jwk}}}"#);
    for id in [
        "--help",
        "%27%20or%201=1",
        "..%2Fx",
        "a\"b",
        "a_b",
        "-",
        "%61",
        &"a".repeat(65),
    ] {
        refused(server.post(&format!("/orders/{id}/answer"), &ask), 422);
    }
    for path in [
        "/orders/../x/answer",
        "/orders//answer",
        "/orders/a/answer/",
        "/orders/a/b/answer",
        "/orders/a/answer?x",
    ] {
        refused(server.post(path, &ask), 404);
    }
    refused(server.post("/orders/' or 1=1/answer", &ask), 400);
    let small = crate::bench::small_key();
    let private = crate::bench::private_key();
    for key in [r#"{"kty":"RSA"}"#, &small, &private, r#""hostile""#, "null"] {
        refused(
            server.post("/orders/order-1/answer", &format!(r#"{{"jwk":{key}}}"#)),
            422,
        );
    }
    assert!(!place.path("ran").exists());
    assert_eq!(server.post("/orders/order-1/answer", &ask), (200, "{}".to_owned()));
    let thumbprint = public(&jwk).thumbprint();
    let ran = place.read("ran");
    let filter = format!("--where order_id = \"order-1\" and reader = \"{thumbprint}\" --seal-to ");
    assert!(ran.contains(&filter) && ran.lines().count() == 1, "{ran}");

    let (status, head, _) = server.ask("GET / HTTP/1.1\r\nHost: x", "");
    assert_eq!(status, 200);
    for header in [
        "default-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "nosniff",
        "no-store",
    ] {
        assert!(head.contains(header), "{head}");
    }
    let (canary, log) = (Canary::new(CARD), server.log());
    assert!(
        log.contains("POST /orders 422") && log.contains("POST /orders/ID/answer 200"),
        "{log}"
    );
    assert!(
        !log.contains("hostile") && !shows_card(&canary, log.as_bytes()),
        "{log}"
    );
}

#[test]
fn the_samples_policy_holds_and_seals_what_the_page_marks() {
    let place = Place::new();
    copy_sample(&place.path(""));
    assert_eq!(
        place.ok(&["policy", "check"]),
        "policy.yaml: policy of orders, version 1, 1 columns: ok\n"
    );
    let html = place.read("index.html");
    assert!(html.contains("data-dataset=\"orders\""));
    let marked: Vec<&str> = html
        .split("data-seal=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(marked, [LABEL]);
    assert!(place.read("policy.yaml").contains(&format!(
        "path: {LABEL}, key: default, acl: form, flow: hybrid, bind_row: reader"
    )));
    // Published as it is, it is one that pipelines take.
    Site::new("localhost:1").publish("orders", 1, &place.read("policy.yaml"));
}
