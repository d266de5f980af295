// What the tests have Chromium do: `samples/secure-form/seal.js`, called as a page would.

import { Session, enclaveKey, macKey, makeKeyPair, openAnswer, publicKey, sealValue } from './seal.js'

let keyPair

/** Seals fields of NDJSON, and puts the session into the field of that name; without one, each value has a key of its own. */
export async function seal({ key, dataset, fields, row, session, mac, input }) {
  const to = await publicKey(key)
  const proof = mac && (await macKey(JSON.parse(mac)))
  const current = session && (await Session.begin(to, dataset, proof))
  const lines = []
  for (const line of input.trimEnd().split('\n')) {
    const record = JSON.parse(line, (_, value, { source }) =>
      typeof value === 'number' && String(value) !== source ? JSON.rawJSON(source) : value)
    const id = row && [record[row]]
    for (const label of fields) {
      const one = async (value, ...index) => {
        if (value === null) return null
        const place = id && [...id, ...index]
        return current ? current.seal(label, value, place) : sealValue(to, dataset, label, value, place, proof)
      }
      const [list, name] = label.split('[*].')
      if (name) {
        for (const [n, item] of record[list].entries()) if (name in item) item[name] = await one(item[name], n)
      } else if (label in record) {
        record[label] = await one(record[label])
      }
    }
    if (current) record[session] = current.token
    lines.push(JSON.stringify(record) + '\n')
  }
  return lines.join('')
}

/** Makes the key pair of this page; its public half. */
export async function makeKey() {
  keyPair = await makeKeyPair()
  return JSON.stringify(keyPair.publicJwk)
}

export async function open(answer) {
  return openAnswer(keyPair.privateKey, answer, 'payments', 'card')
}

export async function sealOne({ key, dataset, label, value }) {
  return sealValue(await publicKey(key), dataset, label, value)
}

/** How an attempt to take the private key out ends. */
export async function stealKey() {
  const stolen = []
  for (const format of ['jwk', 'pkcs8']) {
    await crypto.subtle.exportKey(format, keyPair.privateKey).then(() => stolen.push(format), () => {})
  }
  return stolen
}

/** A value of an enclave's column with its session, if the documents are believed. */
export async function sealForEnclave({ documents, owners, dataset, label, value, seen }) {
  const key = await enclaveKey(documents, { owners, dataset, labels: [label], seen })
  const session = await Session.beginForEnclave(key)
  return JSON.stringify({ session: session.token, value: await session.seal(label, value) })
}

/** Whether a session for an enclave begins with what `enclaveKey` did not give, or takes a label that nobody signed. */
export async function trickSession({ key, documents, owners, dataset, label }) {
  const bare = await publicKey(key)
  const made = { ...bare, dataset, labels: [label], iat: 0, exp: 1e12 }
  const began = await Session.beginForEnclave(made).then(() => true, () => false)
  const session = await Session.beginForEnclave(await enclaveKey(documents, { owners, dataset, labels: [label] }))
  const sealed = await session.seal(`${label}2`, 1).then(() => true, () => false)
  return began || sealed
}
