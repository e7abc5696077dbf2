import Fastify from 'fastify'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import idempotency from './lib/index.ts'
const app = Fastify({ logger: { level: 'trace' } })
await app.register(idempotency)
let go: any
const paused = new Promise(r => { go = r })
app.post('/stream', async (request, reply) => { await paused; return await reply.send(Readable.from(['a', 'b'])) })
await app.listen({ port: 0, host: '127.0.0.1' })
const s = connect((app.server.address() as any).port, '127.0.0.1')
s.write('POST /stream HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}')
await new Promise(r => setTimeout(r, 50))
s.destroy()
await new Promise(r => setTimeout(r, 50))
go()
await new Promise(r => setTimeout(r, 100))
console.log(await app.idempotency.inspect({ key: 'k' }))
await app.close()
