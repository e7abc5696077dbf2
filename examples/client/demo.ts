/**
 * Shows how send.ts survives a lost response, a 503 and a crash: two instances of an API on one
 * Redis (`REDIS_URL`, or one that is started here), behind a load balancer that can lose a response.
 */
import { fork, spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { send } from './send.ts'

interface Instance { name: string, child: ChildProcess, port: number }

const children: ChildProcess[] = []

async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

async function startRedis (): Promise<string> {
  const command = ['redis-server', 'valkey-server'].find(command => spawnSync(command, ['--version']).status === 0)
  if (command === undefined) throw new Error('Set REDIS_URL, or install redis-server or valkey-server')
  const port = await freePort()
  const child = spawn(
    command, ['--port', String(port), '--bind', '127.0.0.1', '--save', ''], { stdio: ['ignore', 'pipe', 'inherit'] }
  )
  children.push(child)
  for await (const line of child.stdout) {
    if (String(line).includes('Ready to accept connections')) break
  }
  return `redis://127.0.0.1:${port}`
}

async function startInstance (name: string, redisUrl: string): Promise<Instance> {
  // Compiled or not, with what this process was started with.
  const child = fork(fileURLToPath(new URL(`api${import.meta.url.slice(-3)}`, import.meta.url)), [redisUrl])
  children.push(child)
  const [{ port }] = await once(child, 'message') as [{ port: number }]
  return { name, child, port }
}

/** Sends each connection to the first instance that lives. */
async function startBalancer (instances: Instance[]): Promise<{ url: string, loseNext: () => void, stop: () => void }> {
  let lose = false
  const server = createServer(client => {
    const alive = instances.find(({ child }) => child.exitCode === null && child.signalCode === null)
    if (alive === undefined) return client.destroy()
    const upstream = connect(alive.port, '127.0.0.1')
    const close = (): void => {
      client.destroy()
      upstream.destroy()
    }
    client.on('error', close).on('close', close).pipe(upstream)
    upstream.on('error', close).on('close', close).on('data', bytes => {
      if (!lose) return client.write(bytes)
      lose = false
      close()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/payments`,
    loseNext: () => { lose = true },
    stop: () => server.close()
  }
}

async function pay (title: string, url: string, order: object): Promise<void> {
  console.log(`\n${title}`)
  const { status, text, replayed, attempts } = await send(url, order, {
    onRetry: ({ attempt, why, delay }) => console.log(`  attempt ${attempt}: ${why}; again in ${Math.round(delay)} ms`)
  })
  console.log(`  attempt ${attempts}: ${status}${replayed ? ', replayed' : ''} ${text}`)
}

try {
  const redisUrl = process.env['REDIS_URL'] ?? await startRedis()
  const instances = await Promise.all(['A', 'B'].map(async name => await startInstance(name, redisUrl)))
  for (const { name, child } of instances) {
    child.on('message', ({ running }: { running: number }) => console.log(
      `  ${name} runs the handler, attempt ${running} of this key`
    ))
  }
  const { url, loseNext, stop } = await startBalancer(instances)

  loseNext()
  await pay('The response is lost:', url, { amount: 100 })

  await pay('The API answers 503:', url, { amount: 200, fault: '503' })

  const [a] = instances as [Instance, Instance]
  a.child.once('message', () => {
    console.log('  A is killed (SIGKILL)')
    a.child.kill('SIGKILL')
  })
  await pay('The process dies in the handler; its lease of two seconds must pass:', url, {
    amount: 300, fault: 'crash'
  })
  stop()
} finally {
  for (const child of children) child.kill('SIGKILL')
}
