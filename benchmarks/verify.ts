/** Shows, before anything is measured, that a server does what its row says. */
import { freshKey } from './keys.ts'
import { expected, sent, type Path } from './payloads.ts'
import type { RunningServer } from './servers.ts'

export async function post (port: number, path: Path, key: string): Promise<{ status: number, body: string }> {
  const { type, body } = sent[path]
  const response = await fetch(
    `http://127.0.0.1:${port}${path}`,
    { method: 'POST', headers: { 'content-type': type, 'idempotency-key': key }, body }
  )
  return { status: response.status, body: await response.text() }
}

/** What is wrong with the answers to two requests with one key; `undefined` when nothing is. */
export async function verify (server: RunningServer, path: Path, replays: boolean): Promise<string | undefined> {
  const key = freshKey()
  const before = (await server.usage()).executions
  const answers = [await post(server.port, path, key), await post(server.port, path, key)]
  const runs = (await server.usage()).executions - before
  for (const [i, { status, body }] of answers.entries()) {
    if (status !== 201) return `answer ${i + 1} had status ${status}: ${body.slice(0, 200)}`
    if (body !== expected[path]) return `answer ${i + 1} was not the response of the route: ${body.slice(0, 200)}`
  }
  if (runs !== (replays ? 1 : 2)) return `two requests with one key ran the handler ${runs} times`
  return undefined
}
