import t from 'tap'
import { stopPostgres } from './fixtures/app.ts'
import { storm } from './fixtures/storm.ts'

/**
 * Instances are killed and frozen, the keys' store is emptied, and PostgreSQL ends sessions, while clients send on.
 * STORM_SEED draws a storm's choices again.
 */
const seed = Number(process.env['STORM_SEED'] ?? Date.now())
const STORMS = [
  { keys: 'Redis', size: { keys: 80, requests: 1000 } },
  { keys: 'PostgresStore', size: { keys: 40, requests: 500 } }
] as const

t.teardown(stopPostgres)

for (const { keys, size } of STORMS) {
  t.test(`G2, G6, G18: a storm over transactions leaves one row and one answer per key (${keys}, ${seed})`, async t => {
    const report = await storm(keys, { ...size, concurrency: 40, every: 200, seed })
    const { kills, freezes, mishaps, rows, rolledBack, seconds } = report
    const befell = [...mishaps].map(([name, count]) => `${name} ${count}`).join(', ')
    t.comment(`${kills} kills, ${freezes} freezes, ${befell}; ${rows} rows, ${rolledBack} rolled back; ${seconds} s`)
    t.same(report.repeated, [], 'no key has two rows')
    t.same(report.lost, [], 'a key has its row once a client was told so')
    t.same(report.contradicted, [], 'every answer to a key is that of its row, byte for byte')
    t.same(report.stuck, [], 'every key came to its answer')
    t.equal(report.wrong, 0, 'another body never got the answer')
    t.equal(rows, size.keys, 'every key has its row')
    t.ok(![kills, freezes, ...mishaps.values()].includes(0), 'there were faults of all kinds')
    if (!t.passing()) t.comment(JSON.stringify(report.evidence))
  })
}
