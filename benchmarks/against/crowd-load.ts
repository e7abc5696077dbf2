/** Keeps the servers on the given ports busy until it is killed: `crowd-load.js <port> …`. */
import { fixedRate } from '../fixed-rate.ts'

const PER_SECOND = 500
const ports = process.argv.slice(2).map(Number)

process.on('disconnect', () => process.exit())
process.send?.('started')
await Promise.all(ports.map(async port => {
  // A rate that cannot be kept on a full core is what this is for.
  for (;;) await fixedRate({ port, path: '/payments', keys: 'none' }, PER_SECOND, 2).catch(() => {})
}))
