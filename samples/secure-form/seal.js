// Seals JSON values in the browser, before they leave, and opens what is answered: JOSE by WebCrypto alone, as
// docs/format.md has it. The page must come over HTTPS (or from localhost), or there is no WebCrypto.

const MAX_VALUES = 2 ** 20
const MAX_AGE_MS = 3_600_000
const RSA = { name: 'RSA-OAEP', hash: 'SHA-256' }
const LONGEST_ENCLAVE_KEYS_S = 400 * 86_400
const CLOCK_SKEW_S = 300
const { subtle } = crypto

/** The backend's key: what `sealflow keys public` prints, a JWK set (whose first key is the current one) or a JWK. */
export async function publicKey(document) {
  const parsed = JSON.parse(document)
  const jwk = parsed.keys ? parsed.keys[0] : parsed
  if (jwk.d) throw new Error('this is a private key: it belongs to the backend alone')
  const { kty, n, e } = jwk
  const key = await subtle.importKey('jwk', { kty, n, e }, RSA, false, ['wrapKey'])
  if (key.algorithm.modulusLength < 2048) throw new Error('RSA keys of less than 2048 bits protect nothing')
  return { key, kid: await thumbprint({ e, kty, n }) }
}

// Keys that `enclaveKey` gave out: nothing else is one.
const believed = new WeakSet()

/**
 * The enclave's key out of what a server hands out at /.well-known/enclave-keys, or out of one document of it. Who serves it may have made it up:
 * it is believed only if one of `owners`, the thumbprints of policy owners that this page was given, signed it for this dataset and
 * these labels. `seen` is the `iat` of the latest that this page has seen: what is older is refused. Of several the latest counts.
 */
export async function enclaveKey(text, { owners, dataset, labels, seen = 0 }) {
  const documents = text.trimStart().startsWith('{') ? JSON.parse(text).documents : [text.trim()]
  if (!Array.isArray(documents)) throw new Error('a bare key, or nothing that an owner signed')
  let newest
  let refused = new Error('there are no enclave keys')
  for (const document of documents.slice(0, 64)) {
    try {
      const key = await ownersKey(document, { owners, dataset, labels, seen })
      if (!newest || newest.iat < key.iat) newest = key
    } catch (error) {
      refused = error
    }
  }
  if (!newest) throw refused
  believed.add(newest)
  return newest
}

async function ownersKey(jws, { owners, dataset, labels, seen }) {
  const isJws = typeof jws === 'string' && jws.length <= 131_072 && /^[\w-]+\.[\w-]+\.[\w-]+$/.test(jws)
  if (!isJws) throw new Error('this is not what an owner signs')
  const [header, payload, signature] = jws.split('.')
  const { alg, typ, kid, jwk, ...more } = JSON.parse(decode(bytes(header)))
  const isOurs = alg === 'EdDSA' && typ === 'sealflow-enclave-keys' && !Object.keys(more).length
  if (!isOurs || jwk?.kty !== 'OKP' || jwk.crv !== 'Ed25519') throw new Error('this is not what an owner signs')
  const { crv, kty, x } = jwk
  const owner = base64url(await sha256(JSON.stringify({ crv, kty, x })))
  if (owner !== kid || !owners.includes(owner)) throw new Error('signed by somebody whom this page does not know')
  const verifying = await subtle.importKey('jwk', { crv, kty, x }, 'Ed25519', false, ['verify'])
  const signed = encode(`${header}.${payload}`)
  if (!(await subtle.verify('Ed25519', verifying, bytes(signature), signed))) throw new Error('the signature does not verify')
  // From here on the owner speaks.
  const claims = JSON.parse(decode(bytes(payload)))
  const { iat, exp } = claims
  if (Object.keys(claims).sort().join() !== 'dataset,exp,iat,keys,labels') throw new Error('members are missing, or unknown')
  if (claims.dataset !== dataset) throw new Error('these are the keys of another dataset')
  if (!labels.every((label) => claims.labels.includes(label))) throw new Error('these keys are for other fields')
  const now = Date.now() / 1000
  if (!Number.isSafeInteger(iat) || !(exp > iat && exp - iat <= LONGEST_ENCLAVE_KEYS_S)) throw new Error('no span that can be')
  if (now >= exp) throw new Error('these keys have ended')
  if (iat > now + CLOCK_SKEW_S) throw new Error('these keys begin in the future')
  if (iat < seen) throw new Error('there have been newer keys')
  const key = await publicKey(JSON.stringify(claims.keys[0]))
  return Object.freeze({ ...key, dataset, labels: claims.labels, iat, exp })
}

/**
 * A fresh key, wrapped once to the backend's key. `token` goes along with the values that are sealed under it. With `mac`, this
 * client's `macKey`, each value says who sealed it, and is taken once.
 */
export class Session {
  #key
  #id
  #dataset
  #mac
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

  static async begin(to, dataset, mac) {
    const session = new Session()
    const k = crypto.getRandomValues(new Uint8Array(32))
    session.#key = await subtle.importKey('raw', k, 'AES-GCM', false, ['encrypt'])
    session.#dataset = dataset
    session.#mac = mac
    session.token = await sealWrapped(to, {}, JSON.stringify({ kty: 'oct', k: base64url(k) }))
    k.fill(0)
    session.#id = base64url((await sha256(session.token)).subarray(0, 16))
    return session
  }

  /** Time to begin the next one. */
  get isUsedUp() {
    return this.#left <= 0 || performance.now() >= this.#ends
  }

  /** A JSON value as a compact JWE. `row` for columns with `bind_row`: its id, then the index at each `[*]`. */
  async seal(label, value, row) {
    if (this.isUsedUp) throw new Error('the session is used up: begin the next one')
    if (this.#labels && !this.#labels.includes(label)) throw new Error('the owner said nothing of this field')
    this.#left -= 1
    const header = { alg: 'dir', enc: 'A256GCM', kid: this.#id, ...place(this.#dataset, label, row, this.#mac) }
    return proved(this.#mac, await encrypt(header, '', this.#key, toJson(value)))
  }
}

/** A value with a key of its own, without a session: costs the backend one request to its KMS each. */
export async function sealValue(to, dataset, label, value, row, mac) {
  return proved(mac, await sealWrapped(to, place(dataset, label, row, mac), toJson(value)))
}

/**
 * This client's own HMAC key, from the JWK that `sealflow keys client` wrote. WebCrypto keeps it: it signs, and nobody gets it out.
 * A page that everybody may open has no secret, so this is for pages behind a login that bring one key to each client.
 */
export async function macKey({ kty, alg, kid, k }) {
  if (kty !== 'oct' || alg !== 'HS256' || !kid) throw new Error('this is not the HMAC key of a client')
  const key = await subtle.importKey('jwk', { kty, k }, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign'])
  return { kid, key }
}

/** The value with the proof that this client sealed it, under a name that no other has: sent again, it is refused. */
async function proved(mac, sealed) {
  if (!mac) return sealed
  const [iat, jti] = [Math.floor(Date.now() / 1000), base64url(crypto.getRandomValues(new Uint8Array(16)))]
  const header = { alg: 'HS256', cty: 'JWE', kid: mac.kid, iat, jti }
  const signed = [JSON.stringify(header), sealed].map((text) => base64url(encode(text))).join('.')
  return `${signed}.${base64url(new Uint8Array(await subtle.sign('HMAC', mac.key, encode(signed))))}`
}

/** A key pair for answers. The private half never leaves WebCrypto; keep it in IndexedDB, give `publicJwk` away. */
export async function makeKeyPair() {
  const params = { ...RSA, modulusLength: 3072, publicExponent: Uint8Array.of(1, 0, 1) }
  const pair = await subtle.generateKey(params, false, ['wrapKey', 'unwrapKey'])
  const { kty, n, e } = await subtle.exportKey('jwk', pair.publicKey)
  const publicJwk = { kty, n, e, alg: 'RSA-OAEP-256', use: 'enc', kid: await thumbprint({ e, kty, n }) }
  return { privateKey: pair.privateKey, publicJwk }
}

/** The JSON text that was sealed to the public half of `privateKey`, your own, as a value of this dataset and label. */
export async function openAnswer(privateKey, answer, dataset, label) {
  const [protectedHeader, encryptedKey, iv, ciphertext, tag, ...more] = answer.split('.')
  const { alg, enc, crit, zip, sf_dataset, sf_label } = JSON.parse(decode(bytes(protectedHeader)))
  if (more.length || alg !== 'RSA-OAEP-256' || enc !== 'A256GCM' || crit || zip) throw new Error('not an answer')
  if (sf_dataset !== dataset || sf_label !== label) throw new Error('the answer belongs to another place')
  const key = await subtle.unwrapKey('raw', bytes(encryptedKey), privateKey, 'RSA-OAEP', 'AES-GCM', false, ['decrypt'])
  const params = { name: 'AES-GCM', iv: bytes(iv), additionalData: encode(protectedHeader), tagLength: 128 }
  const [text, mac] = [bytes(ciphertext), bytes(tag)]
  const sealed = new Uint8Array(text.length + mac.length)
  sealed.set(text)
  sealed.set(mac, text.length)
  return decode(await subtle.decrypt(params, key, sealed))
}

async function sealWrapped({ key, kid }, place, plaintext) {
  const content = await subtle.generateKey({ name: 'AES-GCM', length: 256 }, true, ['encrypt'])
  const encryptedKey = base64url(new Uint8Array(await subtle.wrapKey('raw', content, key, 'RSA-OAEP')))
  return encrypt({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid, ...place }, encryptedKey, content, plaintext)
}

async function encrypt(header, encryptedKey, key, plaintext) {
  const protectedHeader = base64url(encode(JSON.stringify(header)))
  const iv = crypto.getRandomValues(new Uint8Array(12))
  const params = { name: 'AES-GCM', iv, additionalData: encode(protectedHeader), tagLength: 128 }
  const sealed = new Uint8Array(await subtle.encrypt(params, key, encode(plaintext)))
  const parts = [iv, sealed.subarray(0, -16), sealed.subarray(-16)].map(base64url)
  return [protectedHeader, encryptedKey, ...parts].join('.')
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

/** RFC 7638: of the required members, in alphabetical order. */
async function thumbprint({ e, kty, n }) {
  return base64url(await sha256(JSON.stringify({ e, kty, n })))
}

async function sha256(text) {
  return new Uint8Array(await subtle.digest('SHA-256', encode(text)))
}

function encode(text) {
  return new TextEncoder().encode(text)
}

function decode(bytes) {
  return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
}

function base64url(bytes) {
  let binary = ''
  for (const byte of bytes) binary += String.fromCharCode(byte)
  return btoa(binary).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '')
}

function bytes(text) {
  return Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (character) => character.charCodeAt(0))
}
