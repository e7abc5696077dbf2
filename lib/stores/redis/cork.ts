/** The part of a socket that holds writes back and sends them together (net.Socket, tls.TLSSocket). */
export interface Corkable { cork (): void, uncork (): void }

/**
 * Sends all that is written to a client's socket during one turn of the event loop in one
 * write: with many requests under way, most of a command's cost is the system call.
 *
 * Order and errors stay the client's: bytes only wait in the socket that they were written
 * to, until this turn ends. Corks are counted, so that other users' corks count too; a
 * socket that ends or is destroyed meanwhile flushes or drops them itself, and a new one
 * after a reconnect is corked on its own. (Node.js, "writable.cork()")
 */
export class TurnCork {
  #corked: Corkable | undefined

  cork (stream: Corkable | undefined): void {
    if (stream === undefined || stream === this.#corked) return
    this.#corked = stream
    stream.cork()
    setImmediate(() => {
      if (this.#corked === stream) this.#corked = undefined
      stream.uncork()
    })
  }
}
