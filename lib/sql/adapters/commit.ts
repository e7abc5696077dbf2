/**
 * For postgres (https://github.com/porsager/postgres), by itself or under another library: up to version 3.4 at least,
 * it prepares its COMMIT by a name, and does not look at the answer. Where a pooler gives each transaction another
 * session, which may not know that name, the server has rolled back, and the library goes on as if it had committed.
 * So this sends a COMMIT that is not prepared; what the library ends then is an empty transaction.
 */
export const COMMIT = 'commit and chain'

/** @throws {Error} where COMMIT was answered with anything else: in a transaction that has failed, with ROLLBACK. */
export function checkCommitted ({ command }: { command?: unknown }): void {
  if (command !== 'COMMIT') throw new Error(`The transaction was not committed: ${String(command)}`)
}
