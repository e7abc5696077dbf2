import type { StoreBinding, StoreStep } from './contract.ts'
import { UnreadableRecordError } from './record.ts'

/**
 * What a key is bound to, for stores that keep bytes:
 *
 *     fingerprint's length u16 | fingerprint | sections
 *
 * and each section
 *
 *     kind u8 | name's length u32 | name | result's length u32 | result
 *
 * The kind is `s` (a step that has begun), `r` (a step's result) or `b` (bound, no step: both lengths are 0). A
 * fingerprint without a section is that of a key that is not bound.
 */
const BEGUN = 's'
const RESULT = 'r'
const BOUND = 'b'

export function encodeBinding ({ fingerprint, steps }: StoreBinding): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(Buffer.byteLength(fingerprint))
  const sections = steps.flatMap(
    ({ name, result }) => section(result === undefined ? BEGUN : RESULT, name, result ?? '')
  )
  return Buffer.concat([length, Buffer.from(fingerprint), ...(steps.length === 0 ? section(BOUND, '', '') : sections)])
}

/**
 * Decodes what stands from `start` on; `undefined` where the key is not bound. @throws {UnreadableRecordError} when
 * it is damaged.
 */
export function decodeBinding (bytes: Buffer, start = 0, end = bytes.length): StoreBinding | undefined {
  const at = start + 2
  if (at > end) throw damaged()
  const sectionsAt = at + bytes.readUInt16BE(start)
  const steps: StoreStep[] = []
  if (sectionsAt === end) return undefined
  for (let next = sectionsAt; next !== end;) {
    if (next + 9 > end) throw damaged()
    const kind = String.fromCharCode(bytes[next] as number)
    const nameAt = next + 5
    const nameEnd = nameAt + bytes.readUInt32BE(next + 1)
    if (nameEnd + 4 > end) throw damaged()
    next = nameEnd + 4 + bytes.readUInt32BE(nameEnd)
    if (next > end) throw damaged()
    const name = bytes.toString('utf8', nameAt, nameEnd)
    if (kind === RESULT) steps.push({ name, result: bytes.toString('utf8', nameEnd + 4, next) })
    else if (kind === BEGUN) steps.push({ name, result: undefined })
    else if (kind !== BOUND) throw damaged()
  }
  return { fingerprint: bytes.toString('utf8', at, sectionsAt), steps }
}

function section (kind: string, name: string, result: string): Buffer[] {
  return [Buffer.from(kind), length(name), Buffer.from(name), length(result), Buffer.from(result)]
}

function length (text: string): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(Buffer.byteLength(text))
  return bytes
}

function damaged (): Error {
  return new UnreadableRecordError('The steps recorded under the key are damaged. Remove the key, or let it expire.')
}
