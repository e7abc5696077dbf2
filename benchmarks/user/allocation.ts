/** Bytes that one request allocates, garbage included, with the kernel and the client left out. */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import type { Part } from '../part.ts'
import { spread, type Spread } from '../spread.ts'

const PROCESSES = 3

interface Row { work: string, app: AppName, keys: Keys }

const rows: Row[] = [
  { work: 'bare route', app: 'bare', keys: 'none' },
  { work: 'no key sent, route takes part', app: 'ours', keys: 'none' },
  { work: 'replay', app: 'ours', keys: 'same' },
  { work: 'first execution', app: 'ours', keys: 'fresh' }
]

/** New space so large that no collection falls into a round. */
const FLAGS = ['--expose-gc', '--max-semi-space-size=512', '--min-semi-space-size=512']

function measure ({ app, keys }: Row): number {
  const args = [...FLAGS, fileURLToPath(new URL('fed.js', import.meta.url)), app, keys, 'allocation']
  return Number(execFileSync(process.execPath, args, { env: { ...process.env, NODE_ENV: 'production' } }))
}

export const allocationPart: Part<Array<{ work: string } & Spread>> = {
  name: 'allocation',
  async run () {
    const data = rows.map(row => {
      process.stderr.write(`allocation, ${row.work} … `)
      const bytes = spread(Array.from({ length: PROCESSES }, () => measure(row)))
      process.stderr.write(`${(bytes.median / 1_000).toFixed(1)} kB\n`)
      return { work: row.work, ...bytes }
    })
    return {
      title: 'Bytes allocated on the JavaScript heap for one request, in-process store',
      notes: ['The growth of the heap over requests that no collection interrupts, garbage included. ' +
        `Medians of ${PROCESSES} processes; in brackets, the lowest and the highest.`],
      table: {
        columns: ['work', 'kB per request'],
        rows: data.map(({ work, median, min, max }) =>
          [work, `**${(median / 1_000).toFixed(1)}** (${(min / 1_000).toFixed(1)} to ${(max / 1_000).toFixed(1)})`])
      },
      data
    }
  }
}
