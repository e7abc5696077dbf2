/** What the clients send and the routes answer: the same bytes on both sides of every pair. */

export type Path = '/payments' | '/large' | '/upload'

/** Fills the property `note` so that the JSON is this many bytes long. */
const padded = <T extends object>(value: T, bytes: number): T & { note: string } =>
  ({ ...value, note: 'x'.repeat(bytes - JSON.stringify({ ...value, note: '' }).length) })

const order = JSON.stringify(padded({ amount: 4200, currency: 'EUR', reference: 'order-1' }, 200))

export const answer = padded({ id: 'pay_1', amount: 4200, status: 'succeeded' }, 300)
export const largeAnswer = padded({ id: 'pay_1', amount: 4200, status: 'succeeded' }, 16_384)

export const sent: Record<Path, { type: string, body: string | Buffer }> = {
  '/payments': { type: 'application/json', body: order },
  '/large': { type: 'application/json', body: order },
  '/upload': { type: 'application/octet-stream', body: Buffer.alloc(262_144, 'x') }
}

/** What each route must answer with, for the verification. */
export const expected: Record<Path, string> = {
  '/payments': JSON.stringify(answer),
  '/large': JSON.stringify(largeAnswer),
  '/upload': JSON.stringify({ bytes: 262_144 })
}
