//! The OpenAPI 3.1 document, made of the types that requests are read into and answers are written from.

use hyper::StatusCode;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::answer::{Document, Opened, Whoami};
use crate::api::RawRequest;
use crate::problem::Code;

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let request = reference::<RawRequest<'_>>(&mut schemas);
    let opened = reference::<Opened<'_>>(&mut schemas);
    let whoami = reference::<Whoami<'_>>(&mut schemas);
    let problem = reference::<Document<'_>>(&mut schemas);
    let open = json!({
        "operationId": "open",
        "summary": "Open sealed values, or records with sealed values in them",
        "description": "Each value is opened or masked by the access list of the label that it proves, in the newest \
            policy of its dataset. One value that is refused, or does not open, takes nothing from the others. Values of enclave columns \
            the enclave opens, for requests with `seal_to` and `nonce`: single values have to name their label then. Its signature is over \
            the JSON texts of its values or records as they are spelled in the answer.",
        "requestBody": { "required": true, "content": { "application/json": { "schema": request } } },
        "responses": responses("What the caller sees", &opened, &problem, |_| true),
    });
    let whoami = json!({
        "operationId": "whoami",
        "summary": "Who the service takes the caller to be",
        "responses": responses("Who, and how it was proved", &whoami, &problem, |code| {
            code.status().is_server_error() || [400, 401, 429].contains(&code.status().as_u16())
        }),
    });
    let set = json!({ "type": "object", "required": ["keys"], "properties": { "keys": { "type": "array" } } });
    let mut client_keys = json!({
        "operationId": "clientKeys",
        "summary": "The RSA public keys that clients seal to (RFC 7517), if this service publishes them",
        "security": [],
        "responses": responses("A JWK set, the current keys first", &set, &problem, |code| {
            code.status().is_server_error() || [400, 404].contains(&code.status().as_u16())
        }),
    });
    let content = json!({ "application/jwk-set+json": { "schema": set } });
    client_keys["responses"]["200"]["content"] = content;
    let set = json!({
        "type": "object",
        "required": ["documents"],
        "properties": { "documents": { "type": "array", "items": { "type": ["string", "object"] } } },
    });
    let enclave_keys = json!({
        "operationId": "enclaveKeys",
        "summary": "What clients seal enclave columns to, if this service publishes it",
        "description": "Documents that clients verify by their own pins: an owner's JWS (a string), or keys with an attestation \
            document (an object). This service cannot vouch for them.",
        "security": [],
        "responses": responses("Documents, those of each dataset newest first", &set, &problem, |code| {
            code.status().is_server_error() || [400, 404].contains(&code.status().as_u16())
        }),
    });
    let definitions: Map<String, Value> = schemas.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sealflow reading service",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Opens what Sealflow sealed, for whom the policies' access lists let.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }, { "presigned": [] }],
        "paths": {
            "/v1/open": { "post": open },
            "/v1/whoami": { "get": whoami },
            "/.well-known/jwks.json": { "get": client_keys },
            "/.well-known/enclave-keys": { "get": enclave_keys },
        },
        "components": {
            "schemas": definitions,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token of an issuer that the service trusts.",
                },
                "presigned": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Sealflow-STS REQUEST`: a presigned GetCallerIdentity with this service's name as a \
                        signed header, as `sealflow token` makes it.",
                },
            },
        },
    })
}

fn reference<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

/// 200, and one response for each status of the problems that `may` happen.
fn responses(what: &str, body: &Value, problem: &Value, may: impl Fn(&Code) -> bool) -> Value {
    let mut responses = Map::new();
    let content = json!({ "application/json": { "schema": body } });
    responses.insert("200".to_owned(), json!({ "description": what, "content": content }));
    let mut codes: Vec<Code> = Code::ALL.iter().copied().filter(may).collect();
    codes.sort_by_key(|code| code.status().as_u16());
    for status in codes.chunk_by(|a, b| a.status() == b.status()) {
        let names: Vec<&str> = status.iter().map(|code| code.as_str()).collect();
        let status = status
            .first()
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |code| code.status());
        let mut response = json!({
            "description": names.join(", "),
            "content": { "application/problem+json": { "schema": problem } },
        });
        let headers = match status.as_u16() {
            401 => Some(json!({ "WWW-Authenticate": { "schema": { "type": "string" } } })),
            429 => Some(json!({ "Retry-After": { "schema": { "type": "integer" }, "required": true } })),
            405 => Some(json!({ "Allow": { "schema": { "type": "string" }, "required": true } })),
            _ => None,
        };
        if let Some(headers) = headers {
            response["headers"] = headers;
        }
        responses.insert(status.as_str().to_owned(), response);
    }
    responses.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_every_code_and_has_no_reference_that_leads_nowhere() {
        let document = document();
        let text = document.to_string();
        for code in Code::ALL {
            assert!(text.contains(code.as_str()), "{}", code.as_str());
        }
        let mut references = 0;
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            references += 1;
        }
        assert!(references >= 6, "{references}");
        assert!(!text.contains("$schema") && !text.contains("$defs"), "{text}");
    }
}
