/** What the server's own code costs: requests are fed to Node.js' HTTP server from memory. */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import type { Part } from '../part.ts'
import { serverPrefix } from '../pin.ts'
import { spread, type Spread } from '../spread.ts'

const PROCESSES = 5

interface Row { work: string, app: AppName, keys: Keys }

const rows: Row[] = [
  { work: 'bare route', app: 'bare', keys: 'none' },
  { work: 'no key sent, route takes part', app: 'ours', keys: 'none' },
  { work: 'replay', app: 'ours', keys: 'same' },
  { work: 'first execution, a store that does nothing', app: 'ours-without-store', keys: 'fresh' },
  { work: 'first execution', app: 'ours', keys: 'fresh' }
]

function measure ({ app, keys }: Row): number {
  const [command = process.execPath, ...args] = [
    ...serverPrefix, process.execPath, fileURLToPath(new URL('fed.js', import.meta.url)), app, keys
  ]
  return Number(execFileSync(command, args, { env: { ...process.env, NODE_ENV: 'production' } }))
}

export const userPart: Part = {
  name: 'user',
  async run () {
    const samples = rows.map((): number[] => [])
    for (let i = 0; i < PROCESSES; i++) {
      process.stderr.write(`user, ${i + 1} of ${PROCESSES} … `)
      rows.forEach((row, at) => samples[at]?.push(measure(row)))
    }
    process.stderr.write('\n')
    const costs = samples.map(spread)
    const [{ median: bare }] = costs as [Spread]
    return {
      title: 'Without the kernel and the client: CPU µs per request, in-process store',
      notes: ['Requests are fed to Node.js\' HTTP server from memory, 32 in a turn of the event loop. ' +
        `Medians of ${PROCESSES} processes, one after the other; in brackets, the lowest and the highest.`],
      table: {
        columns: ['work', 'µs', 'more than the bare route'],
        rows: rows.map(({ work }, at) => {
          const { median, min, max } = costs[at] as Spread
          return [work, `**${median.toFixed(1)}** (${min.toFixed(1)} to ${max.toFixed(1)})`, (median - bare).toFixed(1)]
        })
      },
      data: rows.map(({ work }, at) => ({ work, ...costs[at] }))
    }
  }
}
