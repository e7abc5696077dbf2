import { createHash } from 'node:crypto'

/**
 * A record in Redis is one string:
 *
 *     version u8 | state u8 | attempt u32 | since f64 | ttl f64 | token (36) | payload
 *
 * The state is `h` (held), `f` (freed) or `c` (completed). `since` is when a held key was claimed; in other states it
 * is 0 (earlier builds: their beginning), since such a key expires a ttl after its end, and Redis need not be asked for
 * the time. The payload of a completed key is the encoded outcome; that of the others is the fingerprint, with its
 * length u16 before it, and, where the key is bound to it, sections with the recorded steps (binding.ts).
 *
 * A held key expires a ttl after its lease, so its lease ends a ttl before its expiry: a renewal is a PEXPIRE, which
 * Redis takes when its memory is full, as it does nothing else but DEL. A key that had to be freed then expires as
 * if its lease had ended before it began: a second before if its handler had run, two seconds if nothing had. Times
 * are Redis' own clock in ms, so that clocks of the instances do not matter.
 */
export const HEAD = 58
export const VERSION = 1
/** More than the clocks of one command may differ by. */
export const FREED_MS = 1_000
export const UNKNOWN_VERSION = 'IDEMPOTENCY_VERSION'
/** A state, or a section of a key that is bound, which a later release has written. */
export const UNKNOWN_PART = 'IDEMPOTENCY_UNKNOWN'

const HELD = 104
const FREED = 102
const COMPLETED = 99

/*
 * The scripts are made of these parts, each of which sets some variables: a function that is defined costs at each
 * call of a script, also where it is not used, and each command of Redis costs more than anything else here. So the
 * usual ways come first, and the parts only where they are needed.
 */

/** Sets `record` and `state`. */
const RECORD_AND_STATE = `
local record, version, state = redis.call('GET', KEYS[1])
if record then
  version, state = string.byte(record, 1, 2)
  if version ~= ${VERSION} then return redis.error_reply('${UNKNOWN_VERSION} ' .. version) end
  if state ~= ${HELD} and state ~= ${COMPLETED} and state ~= ${FREED} then
    return redis.error_reply('${UNKNOWN_PART} state')
  end
end
`

/** Sets `now`. */
const NOW = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

/** Of a record that is there. */
const FIELDS = `
local attempt, since, ttl, token = struct.unpack('>I4ddc36', record, 3)
`

/** Sets `left`, of the lease; `freed`; and `executions`, how often a key that is free has been executed. */
const LEASE = `
local left, freed, executions = 0, state == ${FREED}, attempt
if state == ${HELD} then
  left = redis.call('PTTL', KEYS[1]) - ttl
  if left <= 0 then
    ${NOW}
    local early = math.floor((since - now - left) / ${FREED_MS} + 0.5)
    freed = early == 1 or early == 2
    if early == 2 then executions = attempt - 1 end
  end
end
`

/** Of a key that is not completed. */
const BINDING = `
local fingerprint = struct.unpack('>I2c0', record, ${HEAD + 1})
local bound = #record > ${HEAD + 2} + #fingerprint
`

/** A head with `ttl` in the place of its own. */
const head = (ttl: string): string => `string.sub(record, 1, 14) .. struct.pack('>d', ${ttl}) .. token`

/** What SET was refused for is that there is no memory left. */
const IS_FULL = 'string.find(written.err, \'OOM\', 1, true)'

export interface Script { source: string, sha: string }

const script = (source: string): Script => ({ source, sha: createHash('sha1').update(source).digest('hex') })

/**
 * ARGV: token, lease and ttl together, ttl, and `0` where nothing may be taken over. Answers one string: a completed
 * key's record as it is, which begins with its version; else a letter (acquired, taken over, held, or `x` for
 * abandoned), the attempt u32, and the fingerprint of who holds it or, acquired, what the key is bound to.
 */
export const CLAIM = script(`${RECORD_AND_STATE}
if not record then
  ${NOW}
  local held = '\\1h\\0\\0\\0\\1' .. struct.pack('>dd', now, ARGV[3]) .. ARGV[1] .. '\\0\\0'
  redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
  return 'a\\0\\0\\0\\1'
end
if state == ${COMPLETED} then return record end
${FIELDS}${LEASE}${BINDING}
local letter, known, rest = 'a', '', '\\0\\0'
if bound then
  local at = ${HEAD + 3} + #fingerprint
  while at <= #record do
    local kind, name, result, next = struct.unpack('>c1I4c0I4c0', record, at)
    if not string.find('srb', kind, 1, true) then return redis.error_reply('${UNKNOWN_PART} section') end
    at = next
  end
  known, rest = fingerprint, string.sub(record, ${HEAD + 1})
end
if state == ${HELD} and not freed then
  if token == ARGV[1] then
    if ttl == tonumber(ARGV[3]) then
      redis.call('PEXPIRE', KEYS[1], ARGV[2])
    else
      redis.call('SET', KEYS[1], ${head('ARGV[3]')} .. string.sub(record, ${HEAD + 1}), 'PX', ARGV[2])
    end
    return 'a' .. string.sub(record, 3, 6) .. known
  end
  if left > 0 then return 'h' .. string.sub(record, 3, 6) .. fingerprint end
  if ARGV[4] == '0' then return 'x' .. string.sub(record, 3, 6) .. fingerprint end
  letter = 't'
end
${NOW}
local count = struct.pack('>I4', executions + 1)
redis.call('SET', KEYS[1], '\\1h' .. count .. struct.pack('>dd', now, ARGV[3]) .. ARGV[1] .. rest, 'PX', ARGV[2])
return letter .. count .. known
`)

/**
 * ARGV: token, lease and ttl together, ttl, fingerprint, whether it binds. Where Redis is full, a fingerprint, its
 * binding or another ttl waits for the next time.
 */
export const RENEW = script(`${RECORD_AND_STATE}
if state ~= ${HELD} then return 0 end
${FIELDS}${LEASE}
if token ~= ARGV[1] or freed then return 0 end
${BINDING}
local fresh = ARGV[4] ~= '' and not bound
local binds = fresh and ARGV[5] == '1'
local other = ttl ~= tonumber(ARGV[3])
if other or binds or (fresh and ARGV[4] ~= fingerprint) then
  local rest = string.sub(record, ${HEAD + 1})
  if fresh then rest = struct.pack('>I2', #ARGV[4]) .. ARGV[4] .. (binds and 'b' .. string.rep('\\0', 8) or '') end
  local written = redis.pcall('SET', KEYS[1], ${head('ARGV[3]')} .. rest, 'PX', ARGV[2])
  if not written.err then return 1 end
  if not ${IS_FULL} then return written end
end
redis.call('PEXPIRE', KEYS[1], other and ARGV[2] - ARGV[3] + ttl or ARGV[2])
return 1
`)

/**
 * ARGV: token, ttl, and the payload of a completed key; for a released one '', whether it was executed, and what it is
 * bound to where it is not bound yet, else ''. Where Redis is full, a key is freed by its expiry, and stays as it is
 * bound; one that has nothing to remember is deleted.
 */
export const END = script(`${RECORD_AND_STATE}
if not record or string.sub(record, 23, ${HEAD}) ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' then
  local completed = '\\1c' .. string.sub(record, 3, 6) .. struct.pack('>dd', 0, ARGV[2]) .. ARGV[1] .. ARGV[3]
  redis.call('SET', KEYS[1], completed, 'PX', ARGV[2])
  return 1
end
${FIELDS}${LEASE}
if freed then return 1 end
local count = ARGV[4] == '0' and attempt - 1 or attempt
local rest, keeps = ARGV[5] ~= '' and ARGV[5] or '\\0\\0', false
if state == ${HELD} then
  ${BINDING}
  keeps = bound
  if bound then rest = string.sub(record, ${HEAD + 1}) end
end
local freed = '\\1f' .. struct.pack('>I4dd', count, 0, ARGV[2]) .. token .. rest
local written = redis.pcall('SET', KEYS[1], freed, 'PX', ARGV[2])
if not written.err then return 1 end
if not ${IS_FULL} then return written end
if state == ${COMPLETED} and ARGV[5] ~= '' then return written end
if state == ${COMPLETED} or (count == 0 and not keeps) then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', since + ttl - (ARGV[4] == '0' and 2 or 1) * ${FREED_MS}))
end
return 1
`)

/**
 * ARGV: token, fingerprint, name, kind (`s` begun, `r` result), result. Answers a letter: `w` written, `l` lost, `s`
 * begun before, or `r` and the result that stands. What stands is touched, so that WAIT has a write to wait for.
 */
export const RECORD = script(`${RECORD_AND_STATE}
if state ~= ${HELD} then return 'l' end
${FIELDS}${LEASE}${BINDING}
if freed then return 'l' end
if token == ARGV[1] then
  if bound and fingerprint ~= ARGV[2] then return 'l' end
elseif ARGV[4] ~= 'r' or fingerprint ~= ARGV[2] then
  return 'l'
end
local at, rest = ${HEAD + 3} + #fingerprint, {}
while at <= #record do
  local kind, name, result, next = struct.unpack('>c1I4c0I4c0', record, at)
  if kind == 'b' or name ~= ARGV[3] then
    rest[#rest + 1] = string.sub(record, at, next - 1)
  elseif kind == 'r' or ARGV[4] == 's' then
    redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))
    return kind .. result
  end
  at = next
end
rest[#rest + 1] = struct.pack('>c1I4', ARGV[4], #ARGV[3]) .. ARGV[3] .. struct.pack('>I4', #ARGV[5]) .. ARGV[5]
local bound = struct.pack('>I2', #ARGV[2]) .. ARGV[2] .. table.concat(rest)
redis.call('SET', KEYS[1], string.sub(record, 1, ${HEAD}) .. bound, 'KEEPTTL')
return 'w'
`)

/** ARGV: token, state */
export const TOUCH = script(`${RECORD_AND_STATE}
if not record or string.sub(record, 23, ${HEAD}) ~= ARGV[1] or string.char(state) ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))
return 1
`)

/** Answers the record, the time and the milliseconds left, or nothing. */
export const READ = script(`${RECORD_AND_STATE}
if not record then return false end
${NOW}
return {record, string.format('%.0f', now), string.format('%.0f', redis.call('PTTL', KEYS[1]))}
`)
