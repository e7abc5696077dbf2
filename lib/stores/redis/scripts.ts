import { createHash } from 'node:crypto'

/**
 * A record in Redis is one string:
 *
 *     version u8 | state u8 | attempt u32 | since f64 | ttl f64 | token (36) | payload
 *
 * The state is `h` (held), `f` (freed) or `c` (completed). The payload of a completed key is the encoded outcome;
 * that of the others is the fingerprint, with its length u16 before it, and, where the key is bound to it, sections
 * with the recorded steps (binding.ts).
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

const PRELUDE = `
local record = redis.call('GET', KEYS[1])
local version, state, attempt, since, ttl, token
if record then
  version = string.byte(record, 1)
  if version ~= ${VERSION} then return redis.error_reply('${UNKNOWN_VERSION} ' .. version) end
  state = string.sub(record, 2, 2)
  if not string.find('hfc', state, 1, true) then return redis.error_reply('${UNKNOWN_PART} state') end
end
`

const LIBRARY = `
if record then
  attempt, since, ttl = struct.unpack('>I4dd', string.sub(record, 3, 22))
  token = string.sub(record, 23, ${HEAD})
end
local function now ()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function put (call, state, attempt, since, ttl, token, payload, px)
  local head = struct.pack('>BBI4dd', ${VERSION}, string.byte(state), attempt, since, ttl) .. token
  if px == nil then return call('SET', KEYS[1], head .. payload, 'KEEPTTL') end
  return call('SET', KEYS[1], head .. payload, 'PX', px)
end
local function fingerprint ()
  local length = struct.unpack('>I2', string.sub(record, ${HEAD + 1}, ${HEAD + 2}))
  return string.sub(record, ${HEAD + 3}, ${HEAD + 2} + length)
end
local function framed (text) return struct.pack('>I2', #text) .. text end
local function bound () return #record > ${HEAD} + 2 + #fingerprint() end
local function known_sections ()
  local at = ${HEAD + 3} + #fingerprint()
  while at <= #record do
    local kind, name, result, next = struct.unpack('>c1I4c0I4c0', record, at)
    if not string.find('srb', kind, 1, true) then return false end
    at = next
  end
  return true
end
local function payload () return string.sub(record, ${HEAD + 1}) end
local function left () return redis.call('PTTL', KEYS[1]) - ttl end
local function early () return math.floor((since - now() - left()) / ${FREED_MS} + 0.5) end
local function freed () return state == 'f' or (state == 'h' and left() <= 0 and (early() == 1 or early() == 2)) end
local function executions () return state == 'h' and freed() and early() == 2 and attempt - 1 or attempt end
local function full (answer) return answer.err ~= nil and string.find(answer.err, 'OOM') ~= nil end
`

export interface Script { source: string, sha: string }

const script = (source: string): Script => ({ source, sha: createHash('sha1').update(source).digest('hex') })

/**
 * ARGV: token, lease, ttl, takeover. Answers one string: a completed key's record as it is, which begins with its
 * version; else a letter (acquired, taken over, held, or `x` for abandoned), the attempt u32, and the fingerprint of
 * who holds it or, acquired, what the key is bound to.
 */
export const CLAIM = script(`${PRELUDE}
if state == 'c' then return record end
${LIBRARY}
local function answer (letter, attempt, rest) return letter .. struct.pack('>I4', attempt) .. rest end
local count, letter, known, rest = 1, 'a', '', framed('')
if record then
  if bound() then
    if not known_sections() then return redis.error_reply('${UNKNOWN_PART} section') end
    known, rest = fingerprint(), payload()
  end
  if state == 'h' and not freed() then
    if token == ARGV[1] then
      if ttl == tonumber(ARGV[3]) then
        redis.call('PEXPIRE', KEYS[1], ARGV[2] + ttl)
      else
        put(redis.call, 'h', attempt, since, ARGV[3], token, payload(), ARGV[2] + ARGV[3])
      end
      return answer('a', attempt, known)
    end
    if left() > 0 then return answer('h', attempt, fingerprint()) end
    if ARGV[4] == '0' then return answer('x', attempt, fingerprint()) end
    letter = 't'
  end
  count = executions() + 1
end
put(redis.call, 'h', count, now(), ARGV[3], ARGV[1], rest, ARGV[2] + ARGV[3])
return answer(letter, count, known)
`)

/**
 * ARGV: token, lease, ttl, fingerprint, whether it binds. Where Redis is full, a fingerprint, its binding or another
 * ttl waits for the next time.
 */
export const RENEW = script(`${PRELUDE}${LIBRARY}
if state ~= 'h' or token ~= ARGV[1] or freed() then return 0 end
local fresh = ARGV[4] ~= '' and not bound()
local binds = fresh and ARGV[5] == '1'
if ttl ~= tonumber(ARGV[3]) or binds or (fresh and ARGV[4] ~= fingerprint()) then
  local rest = fresh and framed(ARGV[4]) .. (binds and 'b' .. string.rep('\\0', 8) or '') or payload()
  local written = put(redis.pcall, 'h', attempt, since, ARGV[3], token, rest, ARGV[2] + ARGV[3])
  if not full(written) then return written.err and written or 1 end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ttl)
return 1
`)

/**
 * ARGV: token, ttl, payload of a completed key, else '', whether it was executed, what a released key is bound to
 * where it is not bound yet, else ''. Where Redis is full, a key is freed by its expiry, and stays as it is bound; one
 * that has nothing to remember is deleted.
 */
export const END = script(`${PRELUDE}${LIBRARY}
if not record or token ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' then
  put(redis.call, 'c', attempt, now(), ARGV[2], token, ARGV[3], ARGV[2])
  return 1
end
if freed() then return 1 end
local count = ARGV[4] == '0' and attempt - 1 or attempt
local keeps = state == 'h' and bound()
local rest = keeps and payload() or (ARGV[5] ~= '' and ARGV[5] or framed(''))
local written = put(redis.pcall, 'f', count, now(), ARGV[2], token, rest, ARGV[2])
if not full(written) then return written.err and written or 1 end
if state == 'c' and ARGV[5] ~= '' then return written end
if state == 'c' or (count == 0 and not keeps) then
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
export const RECORD = script(`${PRELUDE}${LIBRARY}
if state ~= 'h' or freed() then return 'l' end
local known = fingerprint()
if token == ARGV[1] then
  if bound() and known ~= ARGV[2] then return 'l' end
elseif ARGV[4] ~= 'r' or known ~= ARGV[2] then
  return 'l'
end
local at, rest = ${HEAD + 3} + #known, {}
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
put(redis.call, 'h', attempt, since, ttl, token, framed(ARGV[2]) .. table.concat(rest))
return 'w'
`)

/** ARGV: token, state */
export const TOUCH = script(`${PRELUDE}${LIBRARY}
if not record or token ~= ARGV[1] or state ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))
return 1
`)

/** Answers the record, the time and the milliseconds left, or nothing. */
export const READ = script(`${PRELUDE}${LIBRARY}
if not record then return false end
return {record, string.format('%.0f', now()), string.format('%.0f', redis.call('PTTL', KEYS[1]))}
`)
