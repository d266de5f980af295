// The functions of the sample that its script does not use, for the tests.

import { readFileSync, writeFileSync } from 'node:fs'
import { exportJWK, exportPKCS8, generateKeyPair, importPKCS8 } from 'jose'
import { openAnswer, publicKey, sealValue } from './sealed.js'

const [what, path] = process.argv.slice(2)
const input = () => readFileSync(0, 'utf8')
if (what === 'make-key') {
  const { publicKey, privateKey } = await generateKeyPair('RSA-OAEP-256', { extractable: true })
  writeFileSync(path, await exportPKCS8(privateKey))
  console.log(JSON.stringify(await exportJWK(publicKey)))
} else if (what === 'open') {
  const key = await importPKCS8(readFileSync(path, 'utf8'), 'RSA-OAEP-256')
  process.stdout.write(await openAnswer(key, input(), 'payments', 'card'))
} else {
  const key = await publicKey(readFileSync(path, 'utf8'))
  console.log(await sealValue(key, 'payments', 'card', JSON.parse(input())))
}
