// What this browser keeps in IndexedDB: its own key pair, made once, whose private half can be used there and not be taken out;
// and when the latest enclave keys were signed that it has seen.

import { makeKeyPair } from './seal.js'

/** `{ privateKey, publicJwk }`: those that are kept, or new ones. */
export async function ownKeys() {
  return withStore(async (store) => {
    const kept = await done(store('readonly').get('own'))
    if (kept) return kept
    const made = await makeKeyPair()
    // Another window may have been faster: the first pair that is kept is everybody's.
    const writing = store('readwrite')
    const first = await done(writing.get('own'))
    if (first) return first
    await done(writing.put(made, 'own'))
    return made
  })
}

/** The `iat` of the latest enclave keys of a dataset that were seen here; 0 if none were. */
export async function seenEnclaveKeys(dataset) {
  return withStore(async (store) => (await done(store('readonly').get(`enclave ${dataset}`))) ?? 0)
}

/** Keeps the `iat` of enclave keys that were believed. */
export async function sawEnclaveKeys(dataset, iat) {
  return withStore(async (store) => {
    const writing = store('readwrite')
    const seen = (await done(writing.get(`enclave ${dataset}`))) ?? 0
    if (iat > seen) await done(writing.put(iat, `enclave ${dataset}`))
  })
}

async function withStore(work) {
  const database = await done(Object.assign(indexedDB.open('secure-form', 1), { onupgradeneeded: makeStore }))
  try {
    return await work((mode) => database.transaction('keys', mode).objectStore('keys'))
  } catch {
    throw new Error('This browser keeps no keys for this page: allow it to store data, or leave private browsing.')
  } finally {
    database.close()
  }
}

function makeStore(event) {
  event.target.result.createObjectStore('keys')
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}
