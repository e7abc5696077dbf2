import { inspect } from 'node:util'
import { checkNames } from '../util/option-names.ts'

/** @throws {TypeError} where a step was not called as its type says: before anything runs, in every execution. */
export function checkCall (name: unknown, work: unknown, options: unknown): void {
  if (typeof name !== 'string' || name === '') {
    const got = name === '' ? '""' : typeof name
    throw new TypeError(`The name of a step must be a string that is not empty, got ${got}`)
  }
  const quoted = JSON.stringify(name)
  // What stores keep as UTF-8 must come back as it was.
  if (Buffer.from(name).toString() !== name) {
    throw new TypeError(`The name of a step must be well-formed Unicode; ${quoted} has half a surrogate pair`)
  }
  if (typeof work !== 'function') {
    throw new TypeError(`The step ${quoted} needs its work, a function, after the name; got ${shown(work)}`)
  }
  if (options === undefined) return
  checkNames(options, ['interrupted'], `The options of the step ${quoted}`)
  const { interrupted } = options as { interrupted?: unknown }
  if (interrupted === undefined || typeof interrupted === 'function') return
  throw new TypeError(`The step ${quoted}: option "interrupted" must be a function, got ${shown(interrupted)}`)
}

function shown (value: unknown): string {
  return inspect(value, { depth: -1 })
}
