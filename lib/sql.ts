export { viaDrizzle, type DrizzleDb, type DrizzleSql, type DrizzleTx } from './sql/adapters/drizzle.ts'
export { viaKnex, type KnexDb, type KnexTransactionOptions, type KnexTx } from './sql/adapters/knex.ts'
export {
  viaKysely, type KyselyDb, type KyselyTransactionBuilder, type KyselyTransactionOptions, type KyselyTx
} from './sql/adapters/kysely.ts'
export { viaPg, type PgClient, type PgPool, type PgTransactionOptions } from './sql/adapters/pg.ts'
export { viaPostgres, type PostgresSql, type PostgresTx } from './sql/adapters/postgres.ts'
export { viaPrisma, type PrismaDb, type PrismaTx } from './sql/adapters/prisma.ts'
export type { Database, Row } from './sql/database.ts'
export type { Jsonified } from './protocol/step-result.ts'
export { transactions, type Transaction, type TransactionsOptions } from './sql/transactions.ts'
export { PostgresStore, type PostgresStoreOptions, type PostgresStorePool } from './stores/postgres/store.ts'
