import { quotedTable } from '../util/table-name.ts'

/**
 * The SQL. Every parameter is text, cast where it is used, and every column that comes back is text: what a client
 * library, or its type parsers, makes of bytes, numbers and timestamps does not matter. Times are the server's.
 */
export interface Statements {
  /** The table and its index, for the application's migrations. */
  schema: string
  open: string
  read: string
  record: string
  fence: string
  forget: string
  sweep: string
}

/**
 * A row (key, name) says that a named piece of work has happened, and with which result. The row whose name is empty
 * is the fence: executions with another token cannot record. `table` may have a schema in front: `app.once`.
 * @throws {TypeError} when `table` is not the name of a table.
 */
export function statementsFor (table: string): Statements {
  const t = quotedTable(table, 'fastify-idempotency/sql')
  const index = `"${String(table.split('.').at(-1)).slice(0, 52)}_expires_at"`

  // Executions hold the lock together, and a fence alone: it waits for all of them.
  const lockKey = `hashtextextended('${table} ' || $1::text, 0)`
  const insert = `insert into ${t} as e (key, name, token, attempt, fingerprint, expires_at)`
  const inMs = (parameter: string): string => `clock_timestamp() + ${parameter}::text::float8 * interval '1 ms'`
  // Above READ COMMITTED all statements see what was there before the lock was taken.
  const hasOldSnapshot = "current_setting('transaction_isolation') in ('repeatable read', 'serializable')"
  // The session's own limit is text with a unit, such as 200ms or 1min; 0 is none.
  const idleLimit = "current_setting('idle_in_transaction_session_timeout')"
  const otherFence = `select from ${t} f where f.key = $1::text and f.name = '' and f.token <> $2::text::uuid`

  return {
    schema: `
create table if not exists ${t} (
  key text collate "C" not null,
  name text collate "C" not null,
  token uuid not null,
  attempt integer not null,
  fingerprint text collate "C" not null,
  result bytea,
  expires_at timestamptz not null,
  primary key (key, name)
) with (fillfactor = 80);
create index if not exists ${index} on ${t} (expires_at);
`,

    /**
     * The first statement of a transaction: $1 key, $2 name, $3 token, $4 attempt, $5 fingerprint, $6 ms to live, $7 ms
     * that the session may be idle in this transaction, $8 whether a stricter limit that the session has stays. Returns
     * whether the lock was taken, the row's place where this transaction has it, the transaction's own number, and
     * another execution's fence. Whoever has the row open is waited for.
     *
     * With an old snapshot a fence may be there that cannot be seen. An insert in its place meets it all the same:
     * it is a serialization failure (40001), and the next try sees it. Otherwise the insert is a fence of one's own.
     * The fence is read only where it met one: at SERIALIZABLE, reading a gap would make strangers conflict.
     */
    open: `
with lock as materialized (
  select pg_try_advisory_xact_lock_shared(${lockKey}) as ok,
    set_config('idle_in_transaction_session_timeout', case when $8::text = 'true'
      and ${idleLimit}::interval > interval '0' and ${idleLimit}::interval < $7::text::float8 * interval '1 ms'
      then ${idleLimit} else $7::text end, true) as idle
), probe as (
  ${insert}
  select $1::text, '', $3::text::uuid, $4::text::int, '', ${inMs('$6')} from lock where ok and ${hasOldSnapshot}
  on conflict (key, name) do nothing
  returning 1
), fence as materialized (
  select token::text as token from ${t}
  where key = $1::text and name = '' and token <> $3::text::uuid and not exists (select from probe)
), opened as (
  ${insert}
  select $1::text, $2::text, $3::text::uuid, $4::text::int, $5::text, ${inMs('$6')}
  from lock where ok and not exists (select from fence)
  on conflict (key, name) do update set token = excluded.token, attempt = excluded.attempt,
    fingerprint = excluded.fingerprint, result = null, expires_at = excluded.expires_at
  where e.expires_at <= clock_timestamp()
  returning ctid::text as place, pg_current_xact_id()::text as number
)
select (select ok::text from lock) as locked, (select place from opened) as place,
  (select number from opened) as number, (select token from fence) as fence`,

    /** $1 key, $2 name: what stands, and the fence. The work of a row without a result ended its transaction. */
    read: `
select name, token::text as token, fingerprint, encode(result, 'base64') as result from ${t}
where key = $1::text and name in ('', $2::text) and (name = '' or expires_at > clock_timestamp())`,

    /**
     * The last statement before COMMIT: $1 key, $2 token, $3 result in base64, $4 the row's place, $5 name, $6 the
     * number of OPEN's transaction. Returns whether the result was recorded, and if not, why: the work has ended that
     * transaction; or a later execution has set its fence between the start of OPEN and its lock. With neither, the
     * work has touched the row. By the place, since a search in the index would make strangers conflict at
     * SERIALIZABLE.
     */
    record: `
with recorded as (
  update ${t} set result = decode($3::text, 'base64')
  where ctid = $4::text::tid and key = $1::text and name = $5::text and token = $2::text::uuid
    and pg_current_xact_id_if_assigned()::text = $6::text
    and (${hasOldSnapshot} or not exists (${otherFence}))
  returning 1
)
select exists (select from recorded)::text as recorded,
  (pg_current_xact_id_if_assigned()::text is distinct from $6::text)::text as ended,
  case when exists (select from recorded) or ${hasOldSnapshot} then 'false'
    else exists (${otherFence})::text end as fenced`,

    /**
     * A transaction of its own: $1 key, $2 token, $3 attempt, $4 ms to live, $5 ms to wait for transactions that are
     * open, $6 the fence that may be replaced though it is not of an earlier attempt, or ''. No row comes back where
     * it is neither; a wait that is too long is an error (55P03).
     */
    fence: `
with lock as materialized (
  select set_config('lock_timeout', $5::text, true) as timeout, pg_advisory_xact_lock(${lockKey})::text as ok
)
${insert}
select $1::text, '', $2::text::uuid, $3::text::int, '', ${inMs('$4')} from lock
on conflict (key, name) do update set
  token = excluded.token, attempt = excluded.attempt, expires_at = excluded.expires_at
where e.token = excluded.token or e.attempt < excluded.attempt or e.token = nullif($6::text, '')::uuid
returning name`,

    /** $1 key. The fence stays: whoever is late stays fenced. */
    forget: `delete from ${t} where key = $1::text and name <> '' returning name`,

    /** $1 how many at most. */
    sweep: `
with dead as (
  select key, name from ${t} where expires_at <= now()
  order by expires_at limit $1::text::bigint for update skip locked
), gone as (
  delete from ${t} e using dead where e.key = dead.key and e.name = dead.name returning 1
)
select count(*)::text as count from gone`
  }
}
