import { checkLibrary } from '../check.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of Prisma as is used. */
export interface PrismaTx {
  $queryRawUnsafe (text: string, ...values: string[]): PromiseLike<unknown>
}

/** As much of Prisma's client as is used. */
export interface PrismaDb<Tx, Options> {
  $transaction<T> (work: (tx: Tx) => Promise<T>, options?: Options): Promise<T>
}

/**
 * Interactive transactions of Prisma; `work` gets its client of the transaction. Options: Prisma's own.
 * @throws {TypeError} where `prisma` is no client of Prisma.
 */
export function viaPrisma<Tx extends PrismaTx, Options> (prisma: PrismaDb<Tx, Options>): Database<Tx, Options> {
  checkLibrary(prisma, '$transaction', 'viaPrisma', 'a client of Prisma')
  return {
    async transaction (work, options) {
      return await prisma.$transaction(work, options)
    },
    async query (tx, text, values) {
      return await tx.$queryRawUnsafe(text, ...values) as Row[]
    }
  }
}
