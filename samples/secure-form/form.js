// The form: seals the inputs marked `data-seal` before anything is sent, and opens the answers that are sealed to this browser.
// What is typed into them, and what is opened, goes into no address, no storage and no log.

import { Session, enclaveKey, openAnswer, publicKey } from './seal.js'
import { ownKeys, sawEnclaveKeys, seenEnclaveKeys } from './own-keys.js'

const order = document.querySelector('#order')
const look = document.querySelector('#look')
const { dataset, pins, owners } = order.dataset
let own

order.addEventListener('submit', (event) => {
  event.preventDefault()
  act('Sealing…', async () => {
    const { record, session } = await seal()
    await ask('POST', 'orders', { record, session })
    look.querySelector('input').value = record.order_id
    return 'The order was taken.'
  })
})

look.addEventListener('submit', (event) => {
  event.preventDefault()
  const outputs = look.querySelectorAll('[data-opens]')
  clear(outputs)
  act('Asking…', async () => {
    const id = look.querySelector('input').value
    const row = await ask('POST', `orders/${encodeURIComponent(id)}/answer`, { jwk: own.publicJwk })
    for (const output of outputs) output.value = await open(row, output.dataset.opens)
    return 'Opened in this page.'
  })
})

// Whoever goes back to this page, or finds it open, finds nothing in it.
addEventListener('pagehide', () => clear(document.querySelectorAll('[data-seal], [data-opens]')))

// Buttons work from here on: until then nothing can be sent.
act('', async () => {
  if (!isSecureContext || !crypto.subtle) throw new Error('This page needs HTTPS: without it the browser does not seal, and nothing can be sent.')
  own = await ownKeys()
  for (const button of document.querySelectorAll('button')) button.disabled = false
})

/** The record with its marked inputs sealed, and the session that they are sealed in. Empties the inputs. */
async function seal() {
  const marked = [...order.querySelectorAll('[data-seal]')]
  const session = await begin(marked)
  const record = { reader: own.publicJwk.kid }
  for (const input of order.querySelectorAll('input[name]')) record[input.name] = input.value
  for (const input of marked) {
    const label = input.dataset.seal
    put(record, label.split('.'), await session.seal(label, input.value, [record.reader]))
  }
  clear(marked)
  return { record, session: session.token }
}

/** A session for the marked inputs. One that is `data-enclave` is never sealed to a key that its server alone vouches for. */
async function begin(marked) {
  const ofEnclave = marked.filter((input) => 'enclave' in input.dataset)
  if (!ofEnclave.length) return Session.begin(await backendKey(), dataset)
  if (ofEnclave.length < marked.length) throw new Error('This form seals to two places; it can seal to one. Nothing was sent.')
  const labels = marked.map((input) => input.dataset.seal)
  const documents = JSON.stringify(await ask('GET', 'enclave-keys.json'))
  try {
    const pinned = { owners: owners.split(' ').filter(Boolean), dataset, labels, seen: await seenEnclaveKeys(dataset) }
    const key = await enclaveKey(documents, pinned)
    await sawEnclaveKeys(dataset, key.iat)
    return await Session.beginForEnclave(key)
  } catch (problem) {
    throw new Error(`The server offers no key of the enclave that this page can believe: ${problem.message}. Nothing was sent.`)
  }
}

/** The key that the backend publishes, if it is one of those that the page was given. */
async function backendKey() {
  const key = await publicKey(JSON.stringify(await ask('GET', 'keys.json')))
  const pinned = pins.split(' ').filter(Boolean)
  if (pinned.length && !pinned.includes(key.kid)) throw new Error('The server offers a key that this page does not know. Nothing was sent.')
  return key
}

/** What an answer's row holds at this label, opened. */
async function open(row, label) {
  const answer = label.split('.').reduce((value, name) => value?.[name], row)
  if (typeof answer !== 'string') throw new Error('The server may not open this.')
  try {
    return JSON.parse(await openAnswer(own.privateKey, answer, dataset, label))
  } catch {
    // Without a reason: it would tell whoever made the answer how far it came.
    throw new Error('The answer does not open here: it was sealed to another key, or changed on the way.')
  }
}

/** The JSON that the server answers; what it refuses is an error with its words. */
async function ask(method, path, body) {
  let answer
  try {
    const headers = body && { 'Content-Type': 'application/json' }
    const more = { cache: 'no-store', redirect: 'error', referrerPolicy: 'no-referrer' }
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), ...more })
  } catch {
    throw new Error('The server cannot be reached.')
  }
  const said = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(said.error ?? `The server answered ${answer.status}.`)
  return said
}

/** Does one thing at a time, and says how it ends. */
async function act(meanwhile, what) {
  const [status, error] = [document.querySelector('#status'), document.querySelector('#error')]
  const buttons = [...document.querySelectorAll('button:enabled')]
  for (const button of buttons) button.disabled = true
  status.textContent = meanwhile
  error.textContent = ''
  try {
    status.textContent = (await what()) ?? ''
  } catch (problem) {
    status.textContent = ''
    error.textContent = problem.message
  }
  for (const button of buttons) button.disabled = false
}

function put(record, [name, ...rest], value) {
  if (rest.length) put((record[name] ??= {}), rest, value)
  else record[name] = value
}

function clear(fields) {
  for (const field of fields) field.value = ''
}
