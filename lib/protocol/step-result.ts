/** What the results of one key may take together, names included. */
export const MAX_STEP_BYTES = 65_536
export const MAX_STEPS = 256

/**
 * Recorded in the place of a result that there was no room for: the step has run, and with what result is not known.
 * No JSON text is like it. Under the name '' it stands for steps for whose names there was no room either.
 */
export const NOT_KEPT = '!'

/** What `JSON.stringify` makes of a value, and `JSON.parse` of that. */
export type Jsonified<T> =
  0 extends 1 & T ? T
    : unknown extends T ? unknown
      : T extends string | number | boolean | null ? T
        : T extends bigint ? never
          : T extends undefined | void | symbol | ((...args: never[]) => unknown) ? undefined
            : T extends { toJSON: (...args: never[]) => infer Json } ? Jsonified<Json>
              : T extends ReadonlyMap<unknown, unknown> | ReadonlySet<unknown> ? Record<never, never>
                : T extends readonly unknown[] ? { -readonly [Index in keyof T]: Element<T[Index]> }
                  : { -readonly [Name in keyof T as Kept<T, Name>]: Member<T, Name> }

type Member<T, Name extends keyof T> = Exclude<Jsonified<T[Name]>, undefined> | Missing<T, Name>
/** `undefined` in an array becomes `null`. */
type Element<T> = T extends undefined | symbol | ((...args: never[]) => unknown) ? null : Jsonified<T>
type Kept<T, Name extends keyof T> = Name extends symbol ? never : [T[Name]] extends [
  symbol | ((...args: never[]) => unknown)
] ? never : Name
/** What is optional is not there, rather than `undefined`. */
type Missing<T, Name extends keyof T> = Record<never, never> extends Pick<T, Name> ? never
  : undefined extends T[Name] ? undefined : never

/** The text of a result; '' for `undefined`. @throws {TypeError} where JSON has no form for it. */
export function encodeResult (kind: 'step' | 'transaction', name: string, value: unknown): string {
  try {
    return JSON.stringify(value) ?? ''
  } catch (error) {
    throw new TypeError(
      `The result of the ${kind} "${name}" cannot be recorded: ${(error as Error).message}`, { cause: error }
    )
  }
}

export function decodeResult (text: string): unknown {
  return text === '' ? undefined : JSON.parse(text)
}
