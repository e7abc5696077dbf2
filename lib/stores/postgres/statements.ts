import { quotedTable } from '../../util/table-name.ts'

/**
 * The SQL of the keys. Every parameter is text or bytes, cast where it is used, and every column that comes back is
 * text, so that it does not matter what a client's type parsers make of numbers and timestamps. Times are the server's,
 * as a statement begins: one that has waited for another session counts too little time as passed, and is run again.
 */
export interface Statements {
  schema: string
  claim: string
  renew: string
  complete: string
  release: string
  record: string
  recorded: string
  read: string
  remove: string
  sweep: string
}

/** @throws {TypeError} when `table` is not the name of a table. */
export function statementsFor (table: string): Statements {
  const t = quotedTable(table, 'PostgresStore')
  const inMs = (parameter: string): string => `statement_timestamp() + ${parameter}::text::float8 * interval '1 ms'`
  const epochMs = (column: string): string => `(extract(epoch from ${column}) * 1000)::float8::text`
  const isLive = (row: string): string => `${row}.expires_at > statement_timestamp()`

  return {
    /**
     * The state is `h` (held), `f` (freed) or `c` (completed). `steps` is an object of base64 names and arrays, empty
     * for a step that has begun, else with its result in base64; null where the key is not bound to `fingerprint`. No
     * index but the key's, so that a step can be written into the row's own page (HOT), for which the fill factor
     * leaves room.
     */
    schema: `
create table if not exists ${t} (
  key text collate "C" primary key,
  state text collate "C" not null,
  token text collate "C" not null,
  attempt integer not null,
  taken_over boolean not null,
  since timestamptz not null,
  lease_ends_at timestamptz not null,
  expires_at timestamptz not null,
  fingerprint text collate "C" not null,
  steps jsonb,
  outcome bytea
) with (fillfactor = 70);
`,

    /**
     * $1 key, $2 token, $3 lease and $4 ttl in ms, $5 whether a dead holder's key may be taken over. A replay only
     * reads. No row comes back where somebody else was quicker between the reading and the writing: then it is run
     * again. A state of a later release comes back behind a `?`.
     */
    claim: `
with live as materialized (
  select state, token, attempt, fingerprint, outcome, lease_ends_at > statement_timestamp() as leased
  from ${t} e where key = $1::text and ${isLive('e')}
), taken as (
  insert into ${t} as e (key, state, token, attempt, taken_over, since, lease_ends_at, expires_at, fingerprint)
  select $1::text, 'h', $2::text, 1, false, statement_timestamp(), ${inMs('$3')},
    ${inMs('$3')} + $4::text::float8 * interval '1 ms', ''
  where not exists (
    select from live where state = 'c' or (state = 'h' and token <> $2::text and (leased or $5::text = 'false')))
  on conflict (key) do update set
    state = 'h', token = excluded.token, lease_ends_at = excluded.lease_ends_at, expires_at = excluded.expires_at,
    outcome = null,
    attempt = case when not ${isLive('e')} then 1
      when e.state = 'h' and e.token = $2::text then e.attempt else e.attempt + 1 end,
    since = case when ${isLive('e')} and e.state = 'h' and e.token = $2::text then e.since else excluded.since end,
    taken_over = ${isLive('e')} and e.state = 'h' and e.token <> $2::text,
    fingerprint = case when ${isLive('e')} and (e.steps is not null or (e.state = 'h' and e.token = $2::text))
      then e.fingerprint else '' end,
    steps = case when ${isLive('e')} then e.steps end
  where not ${isLive('e')} or e.state = 'f'
    or (e.state = 'h' and (e.token = $2::text or (e.lease_ends_at <= statement_timestamp() and $5::text = 'true')))
  returning attempt, taken_over, case when steps is null then '' else fingerprint end as bound
)
select case when taken_over then 't' else 'a' end as answer, attempt::text, bound as fingerprint, null as outcome
from taken
union all
select case when state = 'c' then 'c' when state <> 'h' then '?' || state when leased then 'h' else 'x' end,
  attempt::text, fingerprint, encode(outcome, 'base64') from live
where not exists (select from taken)
  and state <> 'f' and (state <> 'h' or (token <> $2::text and (leased or $5::text = 'false')))`,

    /** $1 key, $2 token, $3 lease and $4 ttl in ms, $5 fingerprint or '', $6 whether it binds. */
    renew: `
update ${t} e set lease_ends_at = ${inMs('$3')}, expires_at = ${inMs('$3')} + $4::text::float8 * interval '1 ms',
  fingerprint = case when $5::text = '' or steps is not null then fingerprint else $5::text end,
  steps = case when steps is null and $5::text <> '' and $6::text = 'true' then '{}'::jsonb else steps end
where key = $1::text and token = $2::text and state = 'h' and ${isLive('e')}
returning key`,

    /** $1 key, $2 token, $3 ttl in ms, $4 the encoded outcome. */
    complete: `
update ${t} e set
  state = 'c', since = statement_timestamp(), lease_ends_at = statement_timestamp(), expires_at = ${inMs('$3')},
  outcome = $4::bytea, fingerprint = '', steps = null
where key = $1::text and token = $2::text and ${isLive('e')}
returning key`,

    /**
     * $1 key, $2 token, $3 ttl in ms, $4 whether it was executed, $5 and $6 fingerprint and steps that it is bound to
     * where it is not bound yet, or ''. Repeated, it changes nothing.
     */
    release: `
update ${t} e set
  state = 'f', outcome = null,
  attempt = case when state = 'f' or $4::text = 'true' then attempt else attempt - 1 end,
  since = case when state = 'f' then since else statement_timestamp() end,
  lease_ends_at = case when state = 'f' then lease_ends_at else statement_timestamp() end,
  expires_at = case when state = 'f' then expires_at else ${inMs('$3')} end,
  fingerprint = case when state = 'f' or (state = 'h' and steps is not null) then fingerprint else $5::text end,
  steps = case when state = 'f' or (state = 'h' and steps is not null) then steps else nullif($6::text, '')::jsonb end
where key = $1::text and token = $2::text and ${isLive('e')}
returning key`,

    /**
     * $1 key, $2 token, $3 fingerprint, $4 name in base64, $5 what stands under it as JSON. No row: the key is lost.
     */
    record: `
with found as materialized (
  select token = $2::text as own, fingerprint, steps, steps -> $4::text as known
  from ${t} e where key = $1::text and state = 'h' and ${isLive('e')} for update
), allowed as materialized (
  select steps, known from found
  where case when own then steps is null or fingerprint = $3::text else
    $5::jsonb <> '[]'::jsonb and fingerprint = $3::text end
), changed as (
  update ${t} e set fingerprint = $3::text,
    steps = coalesce(allowed.steps, '{}'::jsonb) || jsonb_build_object($4::text, $5::jsonb)
  from allowed
  where e.key = $1::text and (known is null or (known = '[]'::jsonb and $5::jsonb <> '[]'::jsonb))
  returning 1
)
select exists (select from changed)::text as changed, known::text from allowed`,

    /** $1 key */
    recorded: `select steps::text from ${t} e where key = $1::text and state <> 'c' and ${isLive('e')}`,

    /** $1 key */
    read: `
select state, attempt::text, ${epochMs('since')} as since, encode(outcome, 'base64') as outcome,
  ${epochMs("case when state = 'h' then lease_ends_at else expires_at end")} as until
from ${t} e where key = $1::text and ${isLive('e')}`,

    /** $1 key */
    remove: `delete from ${t} e where key = $1::text returning (${isLive('e')})::text as live`,

    /** $1 the last key that was looked at, $2 how many to look at. Rows that somebody has locked are not dead. */
    sweep: `
with page as materialized (
  select key, expires_at from ${t} where key > $1::text order by key limit $2::text::bigint
), dead as materialized (
  select e.key from ${t} e join page on page.key = e.key
  where page.expires_at <= statement_timestamp() and not ${isLive('e')} for update of e skip locked
), gone as (
  delete from ${t} e using dead where e.key = dead.key returning 1
)
select (select count(*) from page)::text as seen, (select max(key) from page) as last,
  (select count(*) from gone)::text as gone`
  }
}
