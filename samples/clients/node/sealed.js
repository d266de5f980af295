// Seals JSON values before they leave, and opens what is answered: JOSE by jose, as docs/format.md has it.

import { createHash, randomBytes } from 'node:crypto'
import {
  CompactEncrypt, CompactSign, calculateJwkThumbprint, compactDecrypt, compactVerify, decodeProtectedHeader, importJWK,
} from 'jose'

const MAX_VALUES = 2 ** 20
const MAX_AGE_MS = 3_600_000
const LONGEST_ENCLAVE_KEYS_S = 400 * 86_400
const CLOCK_SKEW_S = 300

/** The backend's key: what `sealflow keys public` prints, a JWK set (whose first key is the current one) or a JWK. */
export async function publicKey(document) {
  const parsed = JSON.parse(document)
  const jwk = parsed.keys ? parsed.keys[0] : parsed
  if (jwk.d) throw new Error('this is a private key: it belongs to the backend alone')
  return { key: await importJWK(jwk, 'RSA-OAEP-256'), kid: await calculateJwkThumbprint(jwk) }
}

// Keys that `enclaveKey` gave out: nothing else is one.
const believed = new WeakSet()

/**
 * The enclave's key out of what a server hands out at /.well-known/enclave-keys, or out of one document of it. Who serves it may have made it up:
 * it is believed only if one of `owners`, thumbprints that you have from the policy's owners, signed it for this dataset. `seen` is the
 * `iat` of the latest that you have seen: what is older is refused. Of several the latest counts.
 */
export async function enclaveKey(text, { owners, dataset, seen = 0 }) {
  const documents = text.trimStart().startsWith('{') ? JSON.parse(text).documents : [text.trim()]
  if (!Array.isArray(documents)) throw new Error('a bare key, or nothing that an owner signed')
  let newest
  let refused = new Error('there are no enclave keys')
  for (const document of documents.slice(0, 64)) {
    try {
      const key = await ownersKey(document, { owners, dataset, seen })
      if (!newest || newest.iat < key.iat) newest = key
    } catch (error) {
      refused = error
    }
  }
  if (!newest) throw refused
  believed.add(newest)
  return newest
}

async function ownersKey(jws, { owners, dataset, seen }) {
  if (typeof jws !== 'string' || jws.length > 131_072) throw new Error('this is not what an owner signs')
  const { alg, typ, kid, jwk, ...more } = decodeProtectedHeader(jws)
  const isOurs = alg === 'EdDSA' && typ === 'sealflow-enclave-keys' && !Object.keys(more).length
  if (!isOurs || jwk?.kty !== 'OKP' || jwk.crv !== 'Ed25519') throw new Error('this is not what an owner signs')
  const { kty, crv, x } = jwk
  const owner = await calculateJwkThumbprint({ kty, crv, x })
  if (owner !== kid || !owners.includes(owner)) throw new Error('signed by somebody who is not pinned')
  const { payload } = await compactVerify(jws, await importJWK({ kty, crv, x }, 'EdDSA'), { algorithms: ['EdDSA'] })
  // From here on the owner speaks.
  const claims = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(payload))
  const { iat, exp } = claims
  if (Object.keys(claims).sort().join() !== 'dataset,exp,iat,keys,labels') throw new Error('members are missing, or unknown')
  if (claims.dataset !== dataset) throw new Error('these are the keys of another dataset')
  const now = Date.now() / 1000
  if (!Number.isSafeInteger(iat) || !(exp > iat && exp - iat <= LONGEST_ENCLAVE_KEYS_S)) throw new Error('no span that can be')
  if (now >= exp) throw new Error('these keys have ended')
  if (iat > now + CLOCK_SKEW_S) throw new Error('these keys begin in the future')
  if (iat < seen) throw new Error('there have been newer keys')
  return Object.freeze({ ...(await publicKey(JSON.stringify(claims.keys[0]))), dataset, labels: claims.labels, iat, exp })
}

/**
 * A fresh key, wrapped once to the backend's key. `token` goes along with the values that are sealed under it. With `mac`, this
 * client's `macKey`, each value says who sealed it, and is taken once.
 */
export class Session {
  #key = randomBytes(32)
  #labels
  #left = MAX_VALUES
  #ends = performance.now() + MAX_AGE_MS

  /** A session for the values of an enclave, of the labels that the owner signed: `to` is what `enclaveKey` gave. */
  static async beginForEnclave(to, mac) {
    const left = believed.has(to) ? to.exp * 1000 - Date.now() : 0
    if (left <= 0) throw new Error('this is no enclave key, or it has ended')
    const session = await Session.begin(to, to.dataset, mac)
    session.#labels = to.labels
    session.#ends = Math.min(session.#ends, performance.now() + left)
    return session
  }

  static async begin({ key, kid }, dataset, mac) {
    const session = new Session()
    const jwk = JSON.stringify({ kty: 'oct', k: session.#key.toString('base64url') })
    session.token = await seal('RSA-OAEP-256', kid, {}, jwk, key)
    session.id = createHash('sha256').update(session.token).digest().subarray(0, 16).toString('base64url')
    session.dataset = dataset
    session.mac = mac
    return session
  }

  /** Time to begin the next one. */
  get isUsedUp() {
    return this.#left <= 0 || performance.now() >= this.#ends
  }

  /** A JSON value as a compact JWE. `row` for columns with `bind_row`: its id, then the index at each `[*]`. */
  async seal(label, value, row) {
    if (this.isUsedUp) throw new Error('the session is used up: begin the next one')
    if (this.#labels && !this.#labels.includes(label)) throw new Error(`the owner said nothing of ${label}`)
    this.#left -= 1
    const { dataset, mac } = this
    return proved(mac, await seal('dir', this.id, place(dataset, label, row, mac), toJson(value), this.#key))
  }
}

/** A value with a key of its own, without a session: costs the backend one request to its KMS each. */
export async function sealValue({ key, kid }, dataset, label, value, row, mac) {
  return proved(mac, await seal('RSA-OAEP-256', kid, place(dataset, label, row, mac), toJson(value), key))
}

/** This client's own HMAC key: the JWK that `sealflow keys client` wrote. */
export async function macKey(document) {
  const { kty, alg, kid, k } = JSON.parse(document)
  if (kty !== 'oct' || alg !== 'HS256' || !kid) throw new Error('this is not a client\'s HMAC key')
  return { kid, key: await importJWK({ kty, k }, 'HS256') }
}

/** The value with the proof that this client sealed it, under a name that no other has: sent again, it is refused. */
async function proved(mac, sealed) {
  if (!mac) return sealed
  const [iat, jti] = [Math.floor(Date.now() / 1000), randomBytes(16).toString('base64url')]
  const header = { alg: 'HS256', cty: 'JWE', kid: mac.kid, iat, jti }
  return new CompactSign(new TextEncoder().encode(sealed)).setProtectedHeader(header).sign(mac.key)
}

/** The JSON text that was sealed to the public half of `privateKey`, your own, as a value of this dataset and label. */
export async function openAnswer(privateKey, answer, dataset, label) {
  const only = { keyManagementAlgorithms: ['RSA-OAEP-256'], contentEncryptionAlgorithms: ['A256GCM'] }
  const { plaintext, protectedHeader: header } = await compactDecrypt(answer, privateKey, only)
  if (header.sf_dataset !== dataset || header.sf_label !== label) throw new Error('the answer belongs to another place')
  return new TextDecoder().decode(plaintext)
}

function toJson(value) {
  const json = JSON.stringify(value)
  if (json === undefined) throw new TypeError('not a JSON value')
  return json
}

function place(dataset, label, row, mac) {
  const place = { sf_dataset: dataset, sf_label: label, ...(row && { sf_row: JSON.stringify(row) }) }
  return mac ? { ...place, sf_client: mac.kid } : place
}

function seal(alg, kid, place, plaintext, key) {
  const header = { alg, enc: 'A256GCM', kid, ...place }
  return new CompactEncrypt(new TextEncoder().encode(plaintext)).setProtectedHeader(header).encrypt(key)
}
