// Seals fields of JSON records, one a line, from standard input to standard output.
//
// node seal-ndjson.js --key web.jwk --dataset payments --field user.email --field 'cards[*].number' <in >out

import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Session, enclaveKey, macKey, publicKey, sealValue } from './sealed.js'

if (!JSON.rawJSON) throw new Error('numbers would be rounded: use Node 22, or node --harmony-json-parse-with-source')

const { values: args } = parseArgs({
  options: {
    key: { type: 'string' }, // what `sealflow keys public` printed
    'enclave-keys': { type: 'string' }, // instead of it, for an enclave's columns: the answer of /.well-known/enclave-keys
    owner: { type: 'string', multiple: true, default: [] }, // thumbprint of an owner whose enclave keys are believed
    dataset: { type: 'string' },
    field: { type: 'string', multiple: true }, // as the policy names it
    row: { type: 'string' }, // the field that names the record's row, for `bind_row`
    session: { type: 'string', default: 'session' }, // where the session goes
    'per-value': { type: 'boolean', default: false }, // no session, but a key for each value
    'mac-key': { type: 'string' }, // what `sealflow keys client` wrote: proves who sealed
  },
})
const documents = args['enclave-keys']
for (const name of [documents ? 'owner' : 'key', 'dataset', 'field']) if (!args[name]) throw new Error(`--${name} is missing`)
if (documents && (args.key || args['per-value'])) throw new Error("an enclave's columns have their own keys, and a session")

const to = documents
  ? await enclaveKey(await readFile(documents, 'utf8'), { owners: args.owner, dataset: args.dataset })
  : await publicKey(await readFile(args.key, 'utf8'))
const begin = () => (documents ? Session.beginForEnclave(to, mac) : Session.begin(to, args.dataset, mac))
const mac = args['mac-key'] && (await macKey(await readFile(args['mac-key'], 'utf8')))
let session
let lines = 0
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  const record = parse(line, (lines += 1))
  const row = args.row && [steps(args.row).reduce((value, step) => value[step], record)]
  if (args['per-value']) {
    await sealFields((label, value, row) => sealValue(to, args.dataset, label, value, row, mac), record, row)
  } else {
    if (Object.hasOwn(record, args.session)) throw new Error('the record has a member for the session already')
    if (!session || session.isUsedUp) session = await begin()
    await sealFields((label, value, row) => session.seal(label, value, row), record, row)
    record[args.session] = session.token
  }
  process.stdout.write(JSON.stringify(record) + '\n')
}

async function sealFields(seal, record, row) {
  for (const label of args.field) {
    await replace(record, steps(label), (value, index) => seal(label, value, row && [...row, ...index]))
  }
}

/** What JSON.parse says of a bad record shows a part of it. */
function parse(line, number) {
  try {
    return JSON.parse(line, asSpelled)
  } catch {
    throw new Error(`record ${number} is not JSON`)
  }
}

/** A reviver that keeps numbers as they are spelled where JavaScript would round them. */
function asSpelled(_name, value, { source }) {
  return typeof value === 'number' && String(value) !== source ? JSON.rawJSON(source) : value
}

function steps(path) {
  if (!/^\w+(\[\*\])*(\.\w+(\[\*\])*)*$/.test(path)) {
    throw new Error(`${path}: this sample knows paths like user.email and cards[*].number`)
  }
  return path.match(/\[\*\]|[^.[]+/g)
}

/** `value` with what the path leads to sealed. Null stays null, and what is not there stays away. */
async function replace(value, [step, ...rest], seal, index = []) {
  if (value === null) return null
  if (step === undefined) return seal(value, index)
  if (step === '[*]') {
    if (!Array.isArray(value)) throw new TypeError('a field is no list where its path has [*]')
    for (const n of value.keys()) value[n] = await replace(value[n], rest, seal, [...index, n])
    return value
  }
  if (typeof value !== 'object' || Array.isArray(value) || JSON.isRawJSON(value)) {
    throw new TypeError('a field is no object where its path goes on')
  }
  if (Object.hasOwn(value, step)) value[step] = await replace(value[step], rest, seal, index)
  return value
}
