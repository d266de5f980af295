// This browser's own key pair: made once, kept in IndexedDB. The private half can be used there and not be taken out.

import { makeKeyPair } from './seal.js'

/** `{ privateKey, publicJwk }`: those that are kept, or new ones. */
export async function ownKeys() {
  const database = await done(Object.assign(indexedDB.open('secure-form', 1), { onupgradeneeded: makeStore }))
  const store = (mode) => database.transaction('keys', mode).objectStore('keys')
  try {
    const kept = await done(store('readonly').get('own'))
    if (kept) return kept
    const made = await makeKeyPair()
    // Another window may have been faster: the first pair that is kept is everybody's.
    const writing = store('readwrite')
    const first = await done(writing.get('own'))
    if (first) return first
    await done(writing.put(made, 'own'))
    return made
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
