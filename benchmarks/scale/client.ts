/** A raw keep-alive connection: cheaper than an HTTP client, so that the load leaves the CPU to the server. */
import { connect, type Socket } from 'node:net'

export interface Response { status: number, replayed: boolean, body: Buffer }

export class Connection {
  readonly #socket: Socket
  readonly #waiting: Array<(response: Response) => void> = []
  #rest: Buffer = Buffer.alloc(0)

  static async open (port: number, failed: (error: Error) => void): Promise<Connection> {
    return await new Promise((resolve, reject) => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true }, () => resolve(new Connection(socket, failed)))
      socket.once('error', reject)
    })
  }

  private constructor (socket: Socket, failed: (error: Error) => void) {
    this.#socket = socket.on('data', this.#onData).on('error', failed).on('close', () => {
      if (this.#waiting.length > 0) failed(new Error('The server closed a connection'))
    })
  }

  /** Requests that are not answered yet. */
  get depth (): number {
    return this.#waiting.length
  }

  send (request: string, answered: (response: Response) => void): void {
    this.#waiting.push(answered)
    this.#socket.write(request, 'latin1')
  }

  close (): void {
    this.#socket.destroy()
  }

  #onData = (chunk: Buffer): void => {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    for (let end = bytes.indexOf('\r\n\r\n'); end !== -1; end = bytes.indexOf('\r\n\r\n')) {
      const head = bytes.toString('latin1', 0, end).toLowerCase()
      const length = Number(/\r\ncontent-length: (\d+)/.exec(head)?.[1])
      if (Number.isNaN(length)) throw new Error(`An answer without a length: ${head}`)
      const bodyAt = end + 4
      if (bytes.length < bodyAt + length) break
      this.#waiting.shift()?.({
        status: Number(head.slice(9, 12)),
        replayed: head.includes('\r\nidempotent-replayed: true'),
        body: bytes.subarray(bodyAt, bodyAt + length)
      })
      bytes = bytes.subarray(bodyAt + length)
    }
    this.#rest = bytes
  }
}
